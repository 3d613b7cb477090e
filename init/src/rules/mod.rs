//! The redirect as data: chains and rules of both families. What a pod's capture settings mean in them is `from_settings`.
//!
//! Nothing here talks to the kernel. `nft::encode` turns the data into netlink messages, `nft::decode` reads it back, `text` prints
//! it as the `nft` program would take it; `iptables::render` and `iptables::parse` do the same with iptables' words.

mod from_settings;

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;
use weir_mesh::CaptureSettings;

/// Name of our table, in both families.
pub const TABLE: &str = "weir";
/// Conntrack zone of the proxy's own DNS queries. Everything else is in the default zone 0.
pub const PROXY_DNS_ZONE: u16 = 1;

/// Where a chain hangs, before which of the kernel's own steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: Kind,
    /// Where packets meet it.
    pub hook: Hook,
    /// When, among the chains of the hook.
    pub priority: Priority,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection.
    Nat,
}

/// Netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What arrives on any interface, `lo` too.
    Prerouting,
    /// What the pod's processes send.
    Output,
}

/// The kernel's order within a hook (`enum nf_ip_hook_priorities`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Before connection tracking.
    Raw,
    /// After connection tracking, before translation.
    Mangle,
    /// Where destinations are translated.
    Dstnat,
}

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `ip`
    V4,
    /// `ip6`
    V6,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Sender.
    Source,
    /// Receiver.
    Destination,
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// User that owns the sending socket, as numbered in the namespace's user namespace.
    User(u32),
    /// Leaves over `lo`, which means: to an address of the pod itself.
    OutLoopback,
    /// Came in by this interface.
    InInterface(String),
    /// Leaves by this interface.
    OutInterface(String),
    /// Transport protocol, any port.
    Protocol(Protocol),
    /// Transport protocol and one of its ports.
    Port(Protocol, Side, u16),
    /// Address within the network.
    Address(Side, IpNet),
    /// Address outside the network.
    NotAddress(Side, IpNet),
    /// Conntrack knows no connection that the packet could belong to.
    Invalid,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ends the chain: the packet passes as it is.
    Return,
    /// Sends the connection to this port of the pod itself.
    Redirect(u16),
    /// Drops the packet.
    Drop,
    /// Goes on in another chain and does not come back.
    Goto(Cow<'static, str>),
    /// Tracks the packet's connection in this zone.
    Zone(u16),
}

/// A rule: all conditions, one action, and the reason in words, which the kernel keeps as the rule's comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
    /// Why the rule is there; at most [`MAX_COMMENT`] bytes.
    pub comment: Cow<'static, str>,
}

/// Longest comment of a rule, in bytes (`nft` prints no longer ones).
pub const MAX_COMMENT: usize = 127;

/// A chain and its rules, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name within the table.
    pub name: Cow<'static, str>,
    /// `None`: reached only by [`Action::Goto`].
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Our table of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Address family.
    pub family: Family,
    /// Chains; one that is gone to stands before those that go there.
    pub chains: Vec<Chain>,
}

/// All rules of a pod, for both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    tables: Vec<Table>,
}

impl RuleSet {
    /// The rules that the settings mean.
    pub fn new(settings: &CaptureSettings) -> Self {
        Self { tables: [Family::V4, Family::V6].map(|family| from_settings::table(settings, family)).into() }
    }

    /// One table for each family.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Number of rules in both families.
    pub fn len(&self) -> usize {
        self.tables.iter().map(Table::len).sum()
    }

    /// True where there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn from_tables(tables: Vec<Table>) -> Self {
        Self { tables }
    }

    /// The rules of one family; none where the kernel does not have it.
    pub(crate) fn table(&self, family: Family) -> Option<&Table> {
        self.tables.iter().find(|table| table.family == family)
    }
}

impl Table {
    /// Number of rules.
    pub fn len(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// True where there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Family {
    /// Is the address of this family?
    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}
