//! A service: the addresses that clients call, and what its ports speak.

use std::{collections::BTreeMap, net::IpAddr};

use super::Name;

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// How clients reach it.
    pub addressing: Addressing,
    /// TCP ports, in the order they were written.
    pub ports: Vec<ServicePort>,
    /// Labels of its workloads; empty where endpoints are listed by hand.
    pub selector: BTreeMap<String, String>,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
}

impl Service {
    /// Host name, such as `catalog.shop.svc.cluster.local`.
    pub fn host(&self, cluster_domain: &str) -> String {
        format!("{}.{}.svc.{cluster_domain}", self.name.name, self.name.namespace)
    }

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// True where the labels have all that the selector asks for. A service without selector selects nothing.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The addresses of its own.
    pub fn addresses(&self) -> &[IpAddr] {
        match &self.addressing {
            Addressing::Cluster(addresses) => addresses,
            Addressing::Headless | Addressing::External(_) => &[],
        }
    }
}

/// How clients reach a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// By addresses of its own, at most one of each family.
    Cluster(Vec<IpAddr>),
    /// By the addresses of its workloads.
    Headless,
    /// By another host name.
    External(String),
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Number that clients call.
    pub number: u16,
    /// Name; empty where there is none.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// The version of HTTP that its workloads are to be called in, whatever the client speaks; none where nothing was said.
    pub version: Option<HttpVersion>,
    /// Where workloads listen.
    pub target: TargetPort,
}

/// What a port was said to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2 (gRPC): the client's first bytes say which.
    Http,
    /// Something that is passed on without looking into it.
    Opaque,
    /// Nothing was said: found out from the first bytes.
    Undeclared,
}

/// A version of HTTP, in plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 with prior knowledge
    Http2,
}

/// Where workloads listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// At this port.
    Number(u16),
    /// At the port that each workload gives this name.
    Name(String),
}
