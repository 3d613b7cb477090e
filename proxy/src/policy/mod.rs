//! Who may connect to the pod: plaintext or not, and which callers.
//!
//! Rules are immutable and shared; a connection is judged once, when all is known of it that rules can ask, and again when the
//! rules change ([`Admissions`]). Judging reads and compares, and allocates nothing unless it refuses.

mod admission;
mod rule;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weir_mesh::Identity;

pub use admission::{Admission, Admissions, until_refused};
pub use rule::{Condition, Rule, Text};

/// What rules can ask of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The caller's proved identity; none in plaintext.
    pub principal: Option<&'a Identity>,
    /// The caller's address.
    pub from: IpAddr,
    /// The called address and port of the pod.
    pub to: SocketAddr,
}

/// Rules of AuthorizationPolicies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Any of these refuses.
    pub deny: Vec<Rule>,
    /// Where there are such policies, one of their rules must match.
    pub allow: Option<Vec<Rule>>,
}

/// What a port asks of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Plaintext is refused, because this object says so.
    pub strict: Option<Arc<str>>,
    /// Who may.
    pub rules: Arc<Rules>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// It is in plaintext.
    Plaintext {
        /// The object that says so.
        by: Arc<str>,
    },
    /// A rule of a DENY policy matches.
    ByRule {
        /// `NAMESPACE/NAME`
        policy: Arc<str>,
        /// Its index, or `refused` where the policy is not accepted.
        rule: Arc<str>,
    },
    /// No rule of any ALLOW policy matches.
    ByNone {
        /// `NAMESPACE/NAME` of these, with commas between them.
        policies: Arc<str>,
    },
}

/// Names of policies that are listed where none of them allows; behind them stands how many more there are.
const MAX_NAMED: usize = 8;

impl Access {
    /// Whether a connection may be.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, facts: &Facts<'_>) -> Result<(), Denied> {
        if let (Some(by), None) = (&self.strict, facts.principal) {
            return Err(Denied::Plaintext { by: by.clone() });
        }
        if let Some(rule) = self.rules.deny.iter().find(|rule| rule.matches(facts)) {
            return Err(Denied::ByRule { policy: rule.policy.clone(), rule: rule.index.clone() });
        }
        match &self.rules.allow {
            Some(allow) if !allow.iter().any(|rule| rule.matches(facts)) => {
                Err(Denied::ByNone { policies: names(allow) })
            }
            _ => Ok(()),
        }
    }
}

fn names(rules: &[Rule]) -> Arc<str> {
    let mut names: Vec<&str> = rules.iter().map(|rule| &*rule.policy).collect();
    names.sort_unstable();
    names.dedup();
    let more = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    let mut text = names.join(",");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text.into()
}

impl Denied {
    /// The word in metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Plaintext { .. } => "plaintext_refused",
            Self::ByRule { .. } => "denied_by_rule",
            Self::ByNone { .. } => "allowed_by_no_rule",
        }
    }

    /// The object that refuses: `KIND NAMESPACE/NAME`, of several ALLOW policies all.
    pub fn object(&self) -> String {
        match self {
            Self::Plaintext { by } => by.to_string(),
            Self::ByRule { policy: names, .. } | Self::ByNone { policies: names } => {
                format!("AuthorizationPolicy {names}")
            }
        }
    }

    /// Index of the rule; `refused` for a policy that is not accepted, empty where no single rule refuses.
    pub fn rule(&self) -> &str {
        match self {
            Self::ByRule { rule, .. } => rule,
            Self::Plaintext { .. } | Self::ByNone { .. } => "",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plaintext { by } => write!(f, "{by} asks for mutual TLS: callers need a proxy of the mesh"),
            Self::ByRule { policy, rule } if &**rule == rule::REFUSED => write!(
                f,
                "AuthorizationPolicy {policy} is not accepted by the control plane, whose log says why: until it is mended nobody may call"
            ),
            Self::ByRule { policy, rule } => write!(f, "AuthorizationPolicy {policy} denies it by rule {rule}"),
            Self::ByNone { policies } => write!(f, "no rule of AuthorizationPolicy {policies} allows it"),
        }
    }
}

#[cfg(test)]
mod tests;
