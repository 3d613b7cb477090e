//! Our rules in the words of iptables. What it has no words for is an error: a rule that is left out would be a hole.

use ipnet::IpNet;

use super::{
    PREFIX,
    parts::{Jump, Parts},
};
use crate::{
    error::Error,
    rules::{Action, Base, Chain, Family, Hook, Kind, Match, Priority, Rule, Side, Table},
};

/// `XT_EXTENSION_MAXNAMELEN`, of which a chain's name may have all but one.
const MAX_CHAIN: usize = 28;

/// The lines of one family.
pub(crate) fn render(table: &Table) -> Result<Parts, Error> {
    let mut parts = Parts::none(table.family);
    for (name, ..) in TABLES {
        let hanging = table.chains.iter().filter(|chain| chain.base.and_then(place).is_some_and(|at| at.0 == name));
        let mut members: Vec<&Chain> = Vec::new();
        for chain in hanging {
            // What is gone to stands in the same table, before who goes there.
            reachable(table, chain, &mut members);
        }
        for chain in members {
            let own = chain_name(&chain.name);
            if own.len() > MAX_CHAIN {
                return Err(Error::Inexpressible(format!("the chain's name {own}")));
            }
            let lines = parts.part(name).chain(&own);
            lines.rules = chain.rules.iter().map(|one| rule(table.family, one)).collect::<Result<_, _>>()?;
            if let Some((_, from)) = chain.base.and_then(place) {
                parts.part(name).jumps.push(Jump { from: from.to_owned(), rule: format!("-j {own}") });
            }
        }
    }
    match table.chains.iter().find(|chain| chain.base.is_some_and(|base| place(base).is_none())) {
        Some(chain) => Err(Error::Inexpressible(format!("where chain {} hangs", chain.name))),
        None => Ok(parts),
    }
}

/// The tables of iptables and what they are to the kernel, in the order in which packets meet them.
const TABLES: [(&str, Kind, Priority); 3] = [
    ("raw", Kind::Filter, Priority::Raw),
    ("mangle", Kind::Filter, Priority::Mangle),
    ("nat", Kind::Nat, Priority::Dstnat),
];
/// The chains of those tables that lead to ours.
const HOOKS: [(&str, Hook); 2] = [("PREROUTING", Hook::Prerouting), ("OUTPUT", Hook::Output)];

/// Table, and which of its chains leads to ours.
fn place(base: Base) -> Option<(&'static str, &'static str)> {
    let (table, ..) =
        TABLES.into_iter().find(|(_, kind, priority)| (*kind, *priority) == (base.kind, base.priority))?;
    let (from, _) = HOOKS.into_iter().find(|(_, hook)| *hook == base.hook)?;
    Some((table, from))
}

/// The way back of [`place`].
pub(super) fn base(table: &str, from: &str) -> Option<Base> {
    let (_, kind, priority) = TABLES.into_iter().find(|(name, ..)| *name == table)?;
    let (_, hook) = HOOKS.into_iter().find(|(name, _)| *name == from)?;
    Some(Base { kind, hook, priority })
}

fn reachable<'t>(table: &'t Table, chain: &'t Chain, found: &mut Vec<&'t Chain>) {
    if found.iter().any(|other| other.name == chain.name) {
        return;
    }
    for rule in &chain.rules {
        if let Action::Goto(next) = &rule.action
            && let Some(next) = table.chains.iter().find(|other| other.name == *next && other.base.is_none())
        {
            reachable(table, next, found);
        }
    }
    found.push(chain);
}

/// What a chain of ours is called here.
pub(crate) fn chain_name(name: &str) -> String {
    format!("{PREFIX}{}", name.to_ascii_uppercase())
}

/// The way back of [`chain_name`].
pub(super) fn plain_name(chain: &str) -> String {
    chain.strip_prefix(PREFIX).unwrap_or(chain).to_ascii_lowercase()
}

/// Words of a rule, by the place that `iptables-save` gives them.
#[derive(Default)]
struct Words {
    source: Option<String>,
    destination: Option<String>,
    input: Option<String>,
    output: Option<String>,
    protocol: Option<String>,
    user: Option<String>,
    state: Option<String>,
}

/// A rule, as behind `-A CHAIN`, as `iptables-save` would print it.
pub(crate) fn rule(family: Family, rule: &Rule) -> Result<String, Error> {
    let mut words = Words::default();
    for one in &rule.matches {
        let (place, text) = match one {
            Match::User(uid) => (&mut words.user, format!("-m owner --uid-owner {uid}")),
            Match::OutLoopback => (&mut words.output, "-o lo".into()),
            Match::InInterface(name) => (&mut words.input, format!("-i {}", interface(name)?)),
            Match::OutInterface(name) => (&mut words.output, format!("-o {}", interface(name)?)),
            Match::Protocol(protocol) => (&mut words.protocol, format!("-p {protocol}")),
            Match::Port(protocol, side, port) => {
                let side = match side {
                    Side::Source => "sport",
                    Side::Destination => "dport",
                };
                (&mut words.protocol, format!("-p {protocol} -m {protocol} --{side} {port}"))
            }
            Match::Address(side, net) => {
                if net.prefix_len() == 0 && family.has(net.addr()) {
                    continue; // all addresses: iptables has no word for no condition
                }
                let (place, letter) = words.address(*side);
                (place, format!("-{letter} {net}"))
            }
            Match::NotAddress(side, net) if net.prefix_len() > 0 => {
                let (place, letter) = words.address(*side);
                (place, format!("! -{letter} {net}"))
            }
            Match::NotAddress(_, net) => return Err(Error::Inexpressible(format!("no address at all (not {net})"))),
            Match::Invalid => (&mut words.state, "-m conntrack --ctstate INVALID".into()),
        };
        if !fits(family, one) || place.replace(text).is_some() {
            return Err(Error::Inexpressible(format!("these conditions together: {:?}", rule.matches)));
        }
    }
    let Words { source, destination, input, output, protocol, user, state } = words;
    let mut all: Vec<String> =
        [source, destination, input, output, protocol, user, state].into_iter().flatten().collect();
    if !rule.comment.is_empty() {
        all.push(format!("-m comment --comment {}", quoted(&rule.comment)?));
    }
    all.push(action(&rule.action));
    Ok(all.join(" "))
}

impl Words {
    fn address(&mut self, side: Side) -> (&mut Option<String>, char) {
        match side {
            Side::Source => (&mut self.source, 's'),
            Side::Destination => (&mut self.destination, 'd'),
        }
    }
}

fn fits(family: Family, one: &Match) -> bool {
    match one {
        Match::Address(_, net) | Match::NotAddress(_, net) => family.has(IpNet::addr(net)),
        _ => true,
    }
}

fn action(action: &Action) -> String {
    match action {
        Action::Return => "-j RETURN".into(),
        Action::Drop => "-j DROP".into(),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Action::Goto(chain) => format!("-g {}", chain_name(chain)),
        Action::Zone(zone) => format!("-j CT --zone {zone}"),
    }
}

/// A name that means the same to the shell-like input, to the program and to the kernel. A `+` at the end would mean all
/// interfaces that begin so.
fn interface(name: &str) -> Result<&str, Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    if name.bytes().all(plain) && !name.starts_with('-') && !name.is_empty() {
        Ok(name)
    } else {
        Err(Error::Inexpressible(format!("the interface name {name:?}")))
    }
}

fn quoted(comment: &str) -> Result<String, Error> {
    if comment.chars().any(|c| c.is_control() || !c.is_ascii()) {
        return Err(Error::Inexpressible(format!("the comment {comment:?}")));
    }
    Ok(format!("\"{}\"", comment.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// A rule for a person, also one that can not be expressed.
pub(crate) fn rule_text(family: Family, one: &Rule) -> String {
    rule(family, one).unwrap_or_else(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Protocol;

    fn with(matches: Vec<Match>) -> Rule {
        Rule { matches, action: Action::Return, comment: "".into() }
    }

    #[test]
    fn conditions_stand_where_iptables_prints_them() {
        let proxy = Rule {
            matches: vec![
                Match::User(1337),
                Match::OutLoopback,
                Match::NotAddress(Side::Destination, "127.0.0.0/8".parse().unwrap()),
                Match::Protocol(Protocol::Tcp),
            ],
            action: Action::Goto("inbound".into()),
            comment: "the proxy's \"own\" \\".into(),
        };
        assert_eq!(
            rule(Family::V4, &proxy).unwrap(),
            "! -d 127.0.0.0/8 -o lo -p tcp -m owner --uid-owner 1337 -m comment --comment \"the proxy's \\\"own\\\" \\\\\" -g WEIR_INBOUND"
        );
        let all = with(vec![Match::Address(Side::Destination, "0.0.0.0/0".parse().unwrap())]);
        assert_eq!(rule(Family::V4, &all).unwrap(), "-j RETURN");
    }

    #[test]
    fn what_iptables_can_not_say_is_refused_and_not_left_out() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        for matches in [
            vec![Match::OutInterface("eth+".into())],
            vec![Match::InInterface("a\"b".into())],
            vec![Match::InInterface("-x".into())],
            vec![Match::OutLoopback, Match::OutInterface("eth0".into())],
            vec![
                Match::Address(Side::Source, net("198.18.0.0/16")),
                Match::NotAddress(Side::Source, net("198.18.1.0/24")),
            ],
            vec![Match::Address(Side::Source, net("fd00::/8"))],
            vec![Match::Address(Side::Source, net("::/0"))],
            vec![Match::NotAddress(Side::Source, net("0.0.0.0/0"))],
            vec![Match::Protocol(Protocol::Tcp), Match::Port(Protocol::Tcp, Side::Destination, 1)],
        ] {
            let said = rule(Family::V4, &with(matches.clone()));
            assert!(matches!(said, Err(Error::Inexpressible(_))), "{matches:?}: {said:?}");
        }
        let hanging = Base { kind: Kind::Nat, hook: Hook::Output, priority: Priority::Raw };
        let chain = Chain { name: "x".into(), base: Some(hanging), rules: Vec::new() };
        assert!(render(&Table { family: Family::V4, chains: vec![chain] }).is_err());
        let output = Base { priority: Priority::Dstnat, ..hanging };
        let chain = |length| Chain { name: "x".repeat(length).into(), base: Some(output), rules: Vec::new() };
        for (length, fits) in [(MAX_CHAIN - PREFIX.len(), true), (MAX_CHAIN - PREFIX.len() + 1, false)] {
            assert_eq!(render(&Table { family: Family::V4, chains: vec![chain(length)] }).is_ok(), fits, "{length}");
        }
    }
}
