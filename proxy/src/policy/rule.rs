//! One rule, and how its conditions are compared.

use std::sync::Arc;

use ipnet::IpNet;

use super::Facts;

/// Stands for the index of a rule where the whole policy is not accepted, and closed.
pub(super) const REFUSED: &str = "refused";

/// A rule of a policy.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// `NAMESPACE/NAME` of its policy.
    pub policy: Arc<str>,
    /// Which rule of it.
    pub index: Arc<str>,
    /// When it matches.
    pub when: Condition,
}

impl Rule {
    /// True where the rule is for a connection.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.when.holds(facts)
    }
}

/// A condition. Those about the caller's identity do not hold for a caller without one.
#[derive(Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Always,
    /// All of them.
    All(Box<[Condition]>),
    /// One of them.
    One(Box<[Condition]>),
    /// Not this one.
    Not(Box<Condition>),
    /// The caller's identity, with `spiffe://`.
    Principal(Text),
    /// The namespace in it.
    Namespace(Text),
    /// The caller's address.
    From(IpNet),
    /// The called address.
    To(IpNet),
    /// The called port.
    Port(u16),
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::All(all) => all.iter().all(|one| one.holds(facts)),
            Self::One(any) => any.iter().any(|one| one.holds(facts)),
            Self::Not(one) => !one.holds(facts),
            Self::Principal(text) => facts.principal.is_some_and(|principal| text.matches(principal.uri())),
            Self::Namespace(text) => facts.principal.is_some_and(|principal| text.matches(principal.namespace())),
            Self::From(net) => net.contains(&facts.from.to_canonical()),
            Self::To(net) => net.contains(&facts.to.ip().to_canonical()),
            Self::Port(port) => facts.to.port() == *port,
        }
    }
}

/// How a text is compared: as bytes, case and all.
#[derive(Debug, PartialEq, Eq)]
pub enum Text {
    /// Any text.
    Any,
    /// The whole.
    Exact(Box<str>),
    /// Its beginning.
    Prefix(Box<str>),
    /// Its end.
    Suffix(Box<str>),
}

impl Text {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(whole) => text == &**whole,
            Self::Prefix(start) => text.starts_with(&**start),
            Self::Suffix(end) => text.ends_with(&**end),
        }
    }
}
