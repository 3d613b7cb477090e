//! Who may call a workload, and whether in plaintext.
//!
//! Rules that could not be accepted are here as well, closed: [`PeerAuthentication::refused`] and
//! [`AuthorizationPolicy::refused`] say why.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;

use super::Name;
use crate::path::FieldPath;

/// Kind of [`PeerAuthentication`] in names for people.
pub const PEER_AUTHENTICATION_KIND: &str = "PeerAuthentication";
/// Kind of [`AuthorizationPolicy`] in names for people.
pub const AUTHORIZATION_POLICY_KIND: &str = "AuthorizationPolicy";

/// A problem of one field.
pub type FieldError = (FieldPath, String);

/// Which workloads of a rule's namespace (or of all, for rules of the root namespace) it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All.
    All,
    /// Those with all of these labels.
    Labels(BTreeMap<String, String>),
    /// Not known: the selection can not be read. Counts as all.
    Unknown,
}

impl Selection {
    /// True where a workload with these labels is meant, or may be.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All | Self::Unknown => true,
            Self::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
        }
    }
}

/// Does a port accept plaintext?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl MtlsMode {
    /// `PERMISSIVE` or `STRICT`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

/// Which ports of workloads accept plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub name: Name,
    /// When it was made (RFC 3339, so that texts compare as times); empty where that is not known.
    pub created: String,
    /// The workloads.
    pub selection: Selection,
    /// Mode of all ports; `None` leaves it as the next wider rule says.
    pub mode: Option<MtlsMode>,
    /// Mode of single ports; `None` is the workload's.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
    /// Why it is not accepted; then it is strict.
    pub refused: Vec<FieldError>,
}

/// What follows where a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessAction {
    /// The connection may be, and others only where another such policy says so.
    Allow,
    /// The connection may not be, whatever else is allowed.
    Deny,
    /// Nothing: the policy is of a kind that never decides. Only policies that are refused have it.
    Nothing,
}

/// Who may call workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub name: Name,
    /// The workloads.
    pub selection: Selection,
    /// What follows where one of the rules matches.
    pub action: AccessAction,
    /// Any of them; none matches nothing.
    pub rules: Vec<AccessRule>,
    /// Why it is not accepted; then it has no rules: it allows nobody, or denies everybody.
    pub refused: Vec<FieldError>,
}

/// All of its parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessRule {
    /// Any of these; none stands for every caller.
    pub sources: Vec<Vec<Term>>,
    /// Any of these; none stands for every port.
    pub operations: Vec<Vec<Term>>,
    /// All of these.
    pub conditions: Vec<Term>,
}

/// One of `any` (where there are some) holds, and none of `none` does. All are of the same kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Term {
    /// One of these.
    pub any: Vec<Test>,
    /// None of these.
    pub none: Vec<Test>,
}

/// A question about a connection. A caller in plaintext has no principal, namespace or account: these tests fail for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// The caller's identity without `spiffe://`.
    Principal(TextMatch),
    /// The namespace in the caller's identity.
    Namespace(TextMatch),
    /// Namespace and service account in the caller's identity, whatever its trust domain.
    ServiceAccount(Name),
    /// The caller's address.
    SourceIp(IpNet),
    /// The called address of the workload.
    DestinationIp(IpNet),
    /// The called port of the workload.
    Port(u16),
}

impl Test {
    /// True for a question about the caller, false for one about what is called.
    pub fn is_of_caller(&self) -> bool {
        !matches!(self, Self::DestinationIp(_) | Self::Port(_))
    }
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// The whole text (`a`).
    Exact(String),
    /// Its beginning (`a*`).
    Prefix(String),
    /// Its end (`*a`).
    Suffix(String),
    /// Whatever is not empty (`*`).
    Present,
}

impl TextMatch {
    /// Reads `a`, `a*`, `*a` or `*`. A star elsewhere stands for itself.
    pub fn read(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Present,
            (Some(rest), _) => Self::Suffix(rest.to_owned()),
            (None, Some(rest)) => Self::Prefix(rest.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        }
    }

    /// True where a text is meant.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(whole) => text == whole,
            Self::Prefix(start) => text.starts_with(start),
            Self::Suffix(end) => text.ends_with(end),
            Self::Present => !text.is_empty(),
        }
    }
}

impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
        }
    }
}
