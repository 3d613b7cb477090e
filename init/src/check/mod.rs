//! The check of the redirect: by real connections, because rules that are there are no rules that work.

mod proxy;
mod root;

use std::{fmt, io, net::IpAddr};

use crate::rules::Protocol;

pub use proxy::check_as_proxy;
pub use root::{Line, Outcome, check_in_current_netns};

/// What the proxy's inbound listener says to a check, before it closes.
pub const INBOUND_BANNER: &str = "weir redirect inbound\n";
/// What the proxy's outbound listener says to a check, before it closes.
pub const OUTBOUND_BANNER: &str = "weir redirect outbound\n";

/// Which part of the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into the pod.
    Inbound,
    /// Out of the pod.
    Outbound,
    /// Queries to the pod's name servers.
    Dns(Protocol),
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound => f.write_str("inbound"),
            Self::Outbound => f.write_str("outbound"),
            Self::Dns(protocol) => write!(f, "DNS by {protocol}"),
        }
    }
}

/// Which connection of a check did not go where it should. The message says family, direction, cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The connection went to a port that no one listens on: it was not redirected.
    #[error(
        "{} {direction}: not redirected (a connection to {address} was refused): the rules are missing in this pod's \
         network namespace; see that weir-cni is in the node's CNI configuration and ran for this pod, then restart the \
         pod; `weir-init show` prints what is in force",
        family(*address)
    )]
    NotRedirected {
        /// Which rules.
        direction: Direction,
        /// Where the connection was meant to go.
        address: IpAddr,
    },
    /// The connection was accepted, but not by the listener that should have got it.
    #[error(
        "{} {direction}: a connection to {address} was answered by something else than the proxy's {direction} \
         listener: another program's rules are in the way, or another program listens on the proxy's port; \
         `nft list ruleset` in the pod's network namespace shows all rules",
        family(*address)
    )]
    WrongAnswer {
        /// Which rules.
        direction: Direction,
        /// Where the connection was meant to go.
        address: IpAddr,
    },
    /// A query was not seen on the proxy's port.
    #[error(
        "{} DNS by udp: a query to {server} did not come to the proxy's port 15053 and back: the rules are missing or others are in the \
         way; restart the pod; `weir-init show` prints what is in force",
        family(*server)
    )]
    QueryEscaped {
        /// Whom the query was meant for.
        server: IpAddr,
    },
    /// No answer in time.
    #[error(
        "{} {direction}: no answer from {address} in time ({source}): the listener does not accept yet, or packets are \
         dropped on the way (a firewall in the pod's network namespace?)",
        family(*address)
    )]
    NoAnswer {
        /// Which rules.
        direction: Direction,
        /// Where the connection was meant to go.
        address: IpAddr,
        /// The last attempt's error.
        source: io::Error,
    },
    /// Duplicate address detection has not ended.
    #[error("IPv6: {0} is still being tested for duplicates on its link: wait, or look for a slow or broken link")]
    Tentative(IpAddr),
    /// Duplicate address detection found another owner.
    #[error(
        "IPv6: {0} is in use by another host on the link (duplicate address): repair the address assignment of the CNI's IPAM"
    )]
    Duplicate(IpAddr),
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
