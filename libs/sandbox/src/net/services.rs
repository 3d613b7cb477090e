//! Translation of Service addresses to endpoints, like kube-proxy's: one nf_tables table, replaced as a whole in one transaction.

use std::{
    collections::BTreeSet,
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr},
};

use crate::layout::{SERVICE_CIDR, SERVICE_CIDR_V6};

/// Table of our own in the node's namespace.
const TABLE: &str = "weir-services";

/// An address of the Service range that no Service has.
const NOBODYS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 0));

/// One port of a Service that has an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Service address.
    pub address: IpAddr,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// Service port.
    pub port: u16,
    /// Ready endpoints, of the same family.
    pub endpoints: Vec<(IpAddr, u16)>,
}

/// Transport protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Both families' tables as a script for `nft -f -`.
///
/// Each connection goes to a random endpoint. Only a pod that reaches itself through its Service is masqueraded (its own
/// address as source would be dropped on the way back in); every other pod is seen with its own address. A Service without
/// endpoints refuses at once instead of timing out, and so does an address of the Service range that nothing has.
pub fn script(services: &[ServicePort], ipv6: bool) -> String {
    let mut script = table(&V4, services.iter().filter(|service| service.address.is_ipv4()));
    if ipv6 {
        script += &table(&V6, services.iter().filter(|service| service.address.is_ipv6()));
    }
    script
}

/// What a family is called in rules.
struct Family {
    ip: &'static str,
    icmp: &'static str,
    services: &'static str,
}

const V4: Family = Family { ip: "ip", icmp: "icmp", services: SERVICE_CIDR };
const V6: Family = Family { ip: "ip6", icmp: "icmpv6", services: SERVICE_CIDR_V6 };

fn table<'a>(family: &Family, services: impl Iterator<Item = &'a ServicePort>) -> String {
    let Family { ip, icmp, services: range } = family;
    let (mut translate, mut refuse) = (String::new(), String::new());
    let mut own = BTreeSet::new();
    for service in services {
        let ServicePort { address, port, endpoints, .. } = service;
        let matches = format!("{ip} daddr {address} {} dport {port}", service.protocol.as_str());
        // Writing into a String does not fail.
        if endpoints.is_empty() {
            let with =
                if service.protocol == Protocol::Tcp { "tcp reset" } else { &format!("{icmp} port-unreachable") };
            let _ = writeln!(refuse, "    {matches} reject with {with}");
            continue;
        }
        let targets: Vec<String> =
            endpoints.iter().enumerate().map(|(i, (to, port))| format!("{i} : {to} . {port}")).collect();
        let _ = writeln!(
            translate,
            "    {matches} dnat {ip} to numgen random mod {} map {{ {} }}",
            endpoints.len(),
            targets.join(", ")
        );
        own.extend(endpoints.iter().map(|(to, _)| format!("{to} . {to}")));
    }
    let own = if own.is_empty() {
        String::new()
    } else {
        let pairs: Vec<String> = own.into_iter().collect();
        format!("    {ip} saddr . {ip} daddr {{ {} }} masquerade\n", pairs.join(", "))
    };
    format!(
        "add table {ip} {TABLE}\ndelete table {ip} {TABLE}\ntable {ip} {TABLE} {{\n\
         \x20 chain translate {{\n{translate}  }}\n\
         \x20 chain refuse {{\n{refuse}  }}\n\
         \x20 chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    jump translate\n  }}\n\
         \x20 chain output {{\n    type nat hook output priority -100; policy accept;\n    jump translate\n  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{own}  }}\n\
         \x20 chain forward {{\n    type filter hook forward priority filter; policy accept;\n    jump refuse\n    {ip} daddr {range} meta l4proto tcp reject with tcp reset\n    {ip} daddr {range} reject\n  }}\n\
         \x20 chain local {{\n    type filter hook output priority filter; policy accept;\n    jump refuse\n    {ip} daddr {range} meta l4proto tcp reject with tcp reset\n    {ip} daddr {range} reject\n  }}\n\
         }}\n"
    )
}

/// Puts the script into force in the namespace of the calling thread.
///
/// # Errors
/// What `nft` said.
pub fn apply(script: &str) -> io::Result<()> {
    super::run("nft", &["-f", "-"], Some(script)).map(|_| ())
}

/// Tries out whether this kernel takes such rules: makes some in the namespace of the calling thread.
///
/// # Errors
/// The first line of what `nft` said.
pub fn try_out(ipv6: bool) -> io::Result<()> {
    let endpoint = |last| (IpAddr::from([198, 18, 0, last]), 1);
    let service = |port, endpoints| ServicePort { address: NOBODYS, protocol: Protocol::Tcp, port, endpoints };
    let script = script(&[service(1, vec![endpoint(1), endpoint(2)]), service(2, Vec::new())], ipv6);
    apply(&script).map_err(|error| {
        let said = error.to_string();
        io::Error::new(error.kind(), said.lines().next().unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(address: &str, endpoints: &[(&str, u16)]) -> ServicePort {
        ServicePort {
            address: address.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            endpoints: endpoints.iter().map(|(to, port)| (to.parse().unwrap(), *port)).collect(),
        }
    }

    #[test]
    fn every_endpoint_gets_an_equal_share() {
        let two = [("198.18.0.2", 8080), ("198.18.0.3", 8081)];
        let script = script(&[service("198.19.0.1", &two)], false);
        assert!(script.contains(
            "ip daddr 198.19.0.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 198.18.0.2 . 8080, 1 : 198.18.0.3 . 8081 }"
        ));
        assert!(script.contains("{ 198.18.0.2 . 198.18.0.2, 198.18.0.3 . 198.18.0.3 } masquerade"));
        assert!(!script.contains("dport 80 reject") && !script.contains("ip6"));
    }

    #[test]
    fn each_family_has_its_own_table() {
        let services =
            [service("198.19.0.1", &[("198.18.0.2", 80)]), service("fd00:198:19::1", &[("fd00:198:18::2", 80)])];
        let script = script(&services, true);
        let (v4, v6) = script.split_once("add table ip6").unwrap();
        assert!(v4.contains("ip daddr 198.19.0.1 tcp dport 80 dnat ip to") && !v4.contains("fd00"));
        assert!(v6.contains("ip6 daddr fd00:198:19::1 tcp dport 80 dnat ip6 to") && !v6.contains("198.19."));
        assert!(v6.contains("ip6 saddr . ip6 daddr { fd00:198:18::2 . fd00:198:18::2 } masquerade"));
        assert!(v6.contains("ip6 daddr fd00:198:19::/112 reject"));
    }

    #[test]
    fn a_service_without_endpoints_refuses() {
        let script = script(&[service("198.19.0.1", &[])], false);
        assert!(script.contains("ip daddr 198.19.0.1 tcp dport 80 reject with tcp reset"));
        assert!(!script.contains("masquerade"));
    }
}
