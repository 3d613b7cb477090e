//! What is ours in one family, as lines: chains whose names begin with our prefix, and the jumps to them.

use std::fmt;

use super::PREFIX;
use crate::rules::Family;

/// Everything of ours in one family, or what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) family: Family,
    pub(crate) tables: Vec<Part>,
}

/// What is ours in one table (`nat`, `mangle`, `raw`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) table: String,
    pub(crate) chains: Vec<Lines>,
    pub(crate) jumps: Vec<Jump>,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) chain: String,
    /// As behind `-A CHAIN`.
    pub(crate) rules: Vec<String>,
}

/// A rule of a chain that is not ours, which leads to one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) from: String,
    /// As behind `-A FROM`.
    pub(crate) rule: String,
}

impl Parts {
    pub(crate) fn none(family: Family) -> Self {
        Self { family, tables: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Number of rules, without the jumps from chains of others.
    pub(crate) fn rules(&self) -> usize {
        self.tables.iter().flat_map(|part| &part.chains).map(|chain| chain.rules.len()).sum()
    }

    /// The table's part; made where there is none.
    pub(super) fn part(&mut self, table: &str) -> &mut Part {
        let at = self.tables.iter().position(|part| part.table == table).unwrap_or_else(|| {
            self.tables.push(Part { table: table.to_owned(), chains: Vec::new(), jumps: Vec::new() });
            self.tables.len().saturating_sub(1)
        });
        &mut self.tables[at]
    }
}

impl Part {
    pub(super) fn chain(&mut self, name: &str) -> &mut Lines {
        let at = self.chains.iter().position(|chain| chain.chain == name).unwrap_or_else(|| {
            self.chains.push(Lines { chain: name.to_owned(), rules: Vec::new() });
            self.chains.len().saturating_sub(1)
        });
        &mut self.chains[at]
    }
}

/// Our part of what `iptables-save` printed. Lines of others are passed over, whatever they hold.
pub(super) fn read(family: Family, saved: &str) -> Parts {
    let mut parts = Parts::none(family);
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
        } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            if chain.starts_with(PREFIX) {
                parts.part(table).chain(chain);
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            if chain.starts_with(PREFIX) {
                parts.part(table).chain(chain).rules.push(rule.to_owned());
            } else if leads_to_us(rule) {
                parts.part(table).jumps.push(Jump { from: chain.to_owned(), rule: rule.to_owned() });
            }
        }
    }
    parts
}

/// Has what `iptables-save` printed a rule that is not ours?
pub(super) fn has_others(saved: &str) -> bool {
    saved
        .lines()
        .filter_map(|line| line.strip_prefix("-A ")?.split_once(' '))
        .any(|(chain, rule)| !chain.starts_with(PREFIX) && !leads_to_us(rule))
}

/// The target is the last that a rule to a chain says.
fn leads_to_us(rule: &str) -> bool {
    let mut last = rule.rsplit(' ');
    let (target, option) = (last.next().unwrap_or_default(), last.next().unwrap_or_default());
    target.starts_with(PREFIX) && matches!(option, "-j" | "-g")
}

impl fmt::Display for Parts {
    /// As `iptables-save` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.tables {
            writeln!(f, "*{}", part.table)?;
            for chain in &part.chains {
                writeln!(f, ":{} - [0:0]", chain.chain)?;
            }
            for jump in &part.jumps {
                writeln!(f, "-A {} {}", jump.from, jump.rule)?;
            }
            for chain in &part.chains {
                for rule in &chain.rules {
                    writeln!(f, "-A {} {rule}", chain.chain)?;
                }
            }
            writeln!(f, "COMMIT")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "# Generated\n*nat\n:OUTPUT ACCEPT [3:180]\n:KUBE - [0:0]\n:WEIR_OUTPUT - [0:0]\n:WEIR_EMPTY - [0:0]\n\
        -A OUTPUT -j WEIR_OUTPUT\n-A OUTPUT -m comment --comment \"not to -j WEIR_X\" -j KUBE\n\
        -A WEIR_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n\
        *filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n";

    #[test]
    fn only_what_is_ours_is_read() {
        let parts = read(Family::V4, SAVED);
        assert_eq!(parts.tables.len(), 1, "{parts:?}");
        assert_eq!(parts.tables[0].jumps, [Jump { from: "OUTPUT".into(), rule: "-j WEIR_OUTPUT".into() }]);
        assert_eq!(
            parts.to_string(),
            "*nat\n:WEIR_OUTPUT - [0:0]\n:WEIR_EMPTY - [0:0]\n-A OUTPUT -j WEIR_OUTPUT\n\
             -A WEIR_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
        );
        assert_eq!(read(Family::V4, &parts.to_string()), parts);
        assert_eq!(parts.rules(), 1);
    }

    #[test]
    fn rules_of_others_are_told_from_ours() {
        assert!(has_others(SAVED));
        assert!(!has_others(&read(Family::V4, SAVED).to_string()));
        assert!(!has_others("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"));
    }
}
