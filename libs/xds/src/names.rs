//! Names of the resources that a proxy asks for, fixed between proxy and control plane.
//!
//! | name | type | what |
//! | --- | --- | --- |
//! | `weir/outbound/ADDRESS:PORT` | Listener | what stands behind a Service's or a pod's address |
//! | `weir/host/PORT/HOST` | Listener | an entry without an address, by host or SNI |
//! | `weir/inbound` | Listener | the asking pod's own ports |
//! | `weir/workload/ADDRESS` | ClusterLoadAssignment | one endpoint: who has this pod address |
//!
//! Routes, clusters and endpoints are named by the resources that refer to them.

use std::net::{IpAddr, SocketAddr};

/// The asking pod's own ports.
pub const INBOUND: &str = "weir/inbound";
const OUTBOUND: &str = "weir/outbound/";
const HOST: &str = "weir/host/";
const WORKLOAD: &str = "weir/workload/";

/// Listener of a Service's or pod's address.
pub fn outbound(address: SocketAddr) -> String {
    format!("{OUTBOUND}{address}")
}

/// Listener of an entry without an address. The host is folded to lower case.
pub fn host(port: u16, host: &str) -> String {
    format!("{HOST}{port}/{}", host.to_ascii_lowercase())
}

/// Endpoint of the pod with this address.
pub fn workload(address: IpAddr) -> String {
    format!("{WORKLOAD}{address}")
}

/// What a Listener's name asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A Service's or pod's address.
    Outbound(SocketAddr),
    /// An entry without an address.
    Host {
        /// Destination port.
        port: u16,
        /// Host or SNI, lower case.
        host: String,
    },
    /// The asking pod's own ports.
    Inbound,
}

impl Asked {
    /// Reads a Listener's name; `None` where it is not of our forms.
    pub fn parse(name: &str) -> Option<Self> {
        if name == INBOUND {
            return Some(Self::Inbound);
        }
        if let Some(address) = name.strip_prefix(OUTBOUND) {
            return address.parse().ok().map(Self::Outbound);
        }
        let (port, host) = name.strip_prefix(HOST)?.split_once('/')?;
        Some(Self::Host { port: port.parse().ok()?, host: host.to_owned() })
    }
}

/// Reads a workload's name; `None` where it is not of our form.
pub fn parse_workload(name: &str) -> Option<IpAddr> {
    name.strip_prefix(WORKLOAD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for address in ["198.18.0.1:80", "[fd00::1]:80"] {
            let address = address.parse().unwrap();
            assert_eq!(Asked::parse(&outbound(address)), Some(Asked::Outbound(address)));
        }
        assert_eq!(Asked::parse(&host(443, "A.Example")), Some(Asked::Host { port: 443, host: "a.example".into() }));
        assert_eq!(Asked::parse(INBOUND), Some(Asked::Inbound));
        assert_eq!(parse_workload(&workload("fd00::1".parse().unwrap())), Some("fd00::1".parse().unwrap()));
        for bad in ["", "weir/outbound/x", "weir/host/80", "weir/host/x/y", "other"] {
            assert_eq!(Asked::parse(bad), None, "{bad}");
        }
    }
}
