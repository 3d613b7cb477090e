//! The rules as text: the language of the `nft` program, so that a person can compare, and feed it back.

use std::fmt;

use crate::rules::{Action, Base, Family, Hook, Kind, Match, Priority, Protocol, Rule, RuleSet, Side, TABLE, Table};

impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables().iter().try_for_each(|table| write!(f, "{table}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {TABLE} {{", self.family)?;
        for (n, chain) in self.chains.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(base) = chain.base {
                writeln!(f, "\t\t{base}")?;
            }
            for rule in &chain.rules {
                RuleText { rule, family: self.family, indent: "\t\t" }.fmt(f)?;
                writeln!(f)?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        };
        let priority = match self.priority {
            Priority::Raw => "-300",
            Priority::Mangle => "-150",
            Priority::Dstnat => "-100",
        };
        write!(f, "type {kind} hook {hook} priority {priority}; policy accept;")
    }
}

/// A rule prints differently in each family (`ip daddr`, `ip6 daddr`), so it prints with the family at hand.
pub(crate) struct RuleText<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) family: Family,
    pub(crate) indent: &'static str,
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.indent)?;
        for one in &self.rule.matches {
            match one {
                Match::User(uid) => write!(f, "meta skuid {uid} ")?,
                Match::OutLoopback => write!(f, "oif \"lo\" ")?,
                Match::InInterface(name) => write!(f, "iifname \"{name}\" ")?,
                Match::OutInterface(name) => write!(f, "oifname \"{name}\" ")?,
                Match::Protocol(protocol) => write!(f, "meta l4proto {protocol} ")?,
                Match::Port(protocol, side, port) => write!(f, "{protocol} {}port {port} ", side.letter())?,
                Match::Address(side, net) => write!(f, "{} {}addr {} ", self.family, side.letter(), NetText(*net))?,
                Match::NotAddress(side, net) => {
                    write!(f, "{} {}addr != {} ", self.family, side.letter(), NetText(*net))?;
                }
                Match::Invalid => write!(f, "ct state invalid ")?,
            }
        }
        match &self.rule.action {
            Action::Return => f.write_str("return")?,
            Action::Redirect(port) => write!(f, "redirect to :{port}")?,
            Action::Drop => f.write_str("drop")?,
            Action::Goto(chain) => write!(f, "goto {chain}")?,
            Action::Zone(zone) => write!(f, "ct zone set {zone}")?,
        }
        if !self.rule.comment.is_empty() {
            write!(f, " comment \"{}\"", self.rule.comment)?;
        }
        Ok(())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Side {
    fn letter(self) -> char {
        match self {
            Self::Source => 's',
            Self::Destination => 'd',
        }
    }
}

/// A network; a single address without its prefix length.
struct NetText(ipnet::IpNet);

impl fmt::Display for NetText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0)
        }
    }
}
