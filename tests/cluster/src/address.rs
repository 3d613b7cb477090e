//! Which addresses a cluster uses: 198.18.0.0/15 (RFC 2544) and fd00::/8, only ever inside its own namespaces. So every cluster of a
//! machine can use the same ones.

/// The API server, in IPv4.
pub const API: &str = "198.18.0.1";
/// The API server's Service, as pods call it.
pub const API_SERVICE: &str = "198.19.0.1";
/// Cluster DNS.
pub const DNS: &str = "198.19.0.10";
/// Service addresses.
pub const SERVICES_V4: &str = "198.19.0.0/16";
/// Service addresses in IPv6.
pub const SERVICES_V6: &str = "fd00:0:0:19::/112";
/// All pods.
pub const PODS_V4: &str = "198.18.128.0/17";
/// All pods in IPv6.
pub const PODS_V6: &str = "fd00:0:0:100::/56";

/// One place on the nodes' network; 0 is the control plane, nodes count from 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host(pub(crate) u8);

impl Host {
    pub(crate) fn v4(self) -> String {
        if self.0 == 0 { API.to_owned() } else { format!("198.18.0.{}", 10 + u16::from(self.0)) }
    }

    pub(crate) fn v6(self) -> String {
        if self.0 == 0 { "fd00:0:0:18::1".to_owned() } else { format!("fd00:0:0:18::{}", 10 + u16::from(self.0)) }
    }

    pub(crate) fn pods_v4(self) -> String {
        format!("198.18.{}.0/24", 128 + u16::from(self.0))
    }

    pub(crate) fn pods_v6(self) -> String {
        format!("fd00:0:0:1{:02x}::/64", self.0)
    }
}
