//! From what is in force to what should be: input of `iptables-restore --noflush`, one transaction a table.

use std::fmt::Write as _;

use super::parts::{Part, Parts};

/// Empty where there is nothing to do.
pub(super) fn transition(now: &Parts, want: &Parts) -> String {
    let mut text = String::new();
    for part in &want.tables {
        one(&mut text, now.tables.iter().find(|other| other.table == part.table), Some(part));
    }
    for part in now.tables.iter().filter(|part| !want.tables.iter().any(|other| other.table == part.table)) {
        one(&mut text, Some(part), None);
    }
    text
}

/// Writing to a text can not fail.
fn one(text: &mut String, now: Option<&Part>, want: Option<&Part>) {
    let Some(table) = want.or(now).map(|part| &part.table) else { return };
    let chains = |part: Option<&Part>| part.map(|part| part.chains.clone()).unwrap_or_default();
    let (old, new) = (chains(now), chains(want));
    let stale = old.iter().filter(|chain| !new.iter().any(|other| other.chain == chain.chain));
    let _ = writeln!(text, "*{table}");
    // A chain that is there is emptied by being named, one that is not is made.
    for chain in new.iter().chain(stale.clone()) {
        let _ = writeln!(text, ":{} - [0:0]", chain.chain);
    }
    for jump in now.iter().flat_map(|part| &part.jumps) {
        let _ = writeln!(text, "-D {} {}", jump.from, jump.rule);
    }
    for chain in &new {
        for rule in &chain.rules {
            let _ = writeln!(text, "-A {} {rule}", chain.chain);
        }
    }
    // Before the rules of others, who translate as well: the first that does decides.
    let jumps = want.map(|part| part.jumps.as_slice()).unwrap_or_default();
    for (n, jump) in jumps.iter().enumerate() {
        let before = jumps.iter().take(n).filter(|other| other.from == jump.from).count();
        let _ = writeln!(text, "-I {} {} {}", jump.from, before.saturating_add(1), jump.rule);
    }
    for chain in stale {
        let _ = writeln!(text, "-X {}", chain.chain);
    }
    text.push_str("COMMIT\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{iptables::parts::read, rules::Family};

    fn parts(text: &str) -> Parts {
        read(Family::V4, text)
    }

    #[test]
    fn stale_chains_and_double_jumps_go() {
        let now = parts(
            "*nat\n:WEIR_A - [0:0]\n:WEIR_OLD - [0:0]\n-A OUTPUT -j WEIR_A\n-A OUTPUT -j WEIR_A\n-A OUTPUT -j WEIR_OLD\n\
             -A WEIR_A -p tcp -g WEIR_OLD\nCOMMIT\n*raw\n:WEIR_Z - [0:0]\n-A OUTPUT -j WEIR_Z\nCOMMIT\n",
        );
        let want = parts(
            "*nat\n:WEIR_A - [0:0]\n:WEIR_B - [0:0]\n-A OUTPUT -j WEIR_A\n-A OUTPUT -j WEIR_B\n-A WEIR_A -j DROP\nCOMMIT\n",
        );
        assert_eq!(
            transition(&now, &want),
            "*nat\n:WEIR_A - [0:0]\n:WEIR_B - [0:0]\n:WEIR_OLD - [0:0]\n-D OUTPUT -j WEIR_A\n-D OUTPUT -j WEIR_A\n\
             -D OUTPUT -j WEIR_OLD\n-A WEIR_A -j DROP\n-I OUTPUT 1 -j WEIR_A\n-I OUTPUT 2 -j WEIR_B\n-X WEIR_OLD\nCOMMIT\n\
             *raw\n:WEIR_Z - [0:0]\n-D OUTPUT -j WEIR_Z\n-X WEIR_Z\nCOMMIT\n"
        );
        assert_eq!(transition(&Parts::none(Family::V4), &Parts::none(Family::V4)), "");
    }
}
