//! What a resource's name is about, and which changes of the world concern it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weir_config::model::Name;
use weir_xds::{
    Kind,
    names::{Asked, parse_workload},
};

use super::Mesh;
use crate::world::Subject;

/// A resource that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: Arc<str>,
    /// The asking pod, for the one name that is different for each of them.
    pub pod: Option<Name>,
}

/// What a name is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// A port of a service, by host.
    Service(Name, u16),
    /// A port of an address.
    Address(SocketAddr),
    /// The pod behind an address.
    Workload(IpAddr),
    /// The asking pod's own ports.
    Inbound(Name),
}

impl Key {
    /// A name as this pod asks for it.
    pub fn new(kind: Kind, name: Arc<str>, pod: &Name) -> Self {
        let own = kind == Kind::Listener && *name == *weir_xds::names::INBOUND;
        Self { kind, name, pod: own.then(|| pod.clone()) }
    }
}

impl Of {
    /// Reads a key; `None` where no object could ever have that name.
    pub fn parse(mesh: &Mesh, key: &Key) -> Option<Self> {
        let name = key.name.as_ref();
        match key.kind {
            Kind::Listener => match Asked::parse(name)? {
                Asked::Outbound(address) => Some(Self::Address(address)),
                Asked::Inbound => key.pod.clone().map(Self::Inbound),
                Asked::Host { .. } => None, // entries without an address come with egress
            },
            Kind::Route => match name.parse() {
                Ok(address) => Some(Self::Address(address)),
                Err(_) => {
                    let (host, port) = name.rsplit_once(':')?;
                    Self::service(mesh, host, port)
                }
            },
            Kind::Cluster => Self::cluster(mesh, name),
            Kind::Endpoints => match parse_workload(name) {
                Some(address) => Some(Self::Workload(address)),
                None => Self::cluster(mesh, name),
            },
        }
    }

    /// `outbound|PORT||HOST`
    fn cluster(mesh: &Mesh, name: &str) -> Option<Self> {
        let (port, host) = name.strip_prefix("outbound|")?.split_once("||")?;
        match host.parse::<IpAddr>() {
            Ok(address) => Some(Self::Address(SocketAddr::new(address, number(port)?))),
            Err(_) => Self::service(mesh, host, port),
        }
    }

    fn service(mesh: &Mesh, host: &str, port: &str) -> Option<Self> {
        let rest = host.strip_suffix(&mesh.cluster_domain)?.strip_suffix(".svc.")?;
        let (name, namespace) = rest.split_once('.')?;
        Some(Self::Service(Name::new(namespace, name), number(port)?))
    }

    /// The subject whose changes concern a key of this kind.
    pub fn subject(&self, kind: Kind) -> Subject {
        match self {
            Self::Service(name, _) => match kind {
                Kind::Route => Subject::Routes(name.clone()),
                Kind::Endpoints => Subject::Endpoints(name.clone()),
                Kind::Cluster | Kind::Listener => Subject::Service(name.clone()),
            },
            Self::Address(address) => Subject::Address(address.ip()),
            Self::Workload(address) => Subject::Address(*address),
            Self::Inbound(pod) => Subject::Pod(pod.clone()),
        }
    }
}

fn number(port: &str) -> Option<u16> {
    // "+80" and "080" are other names, not other spellings.
    port.parse().ok().filter(|&number: &u16| number > 0 && number.to_string() == port)
}

/// Name of a service's cluster and of its endpoints.
pub(super) fn service_cluster(port: u16, host: &str) -> String {
    format!("outbound|{port}||{host}")
}

/// Name of a pod address' cluster and of its endpoint.
pub(super) fn address_cluster(address: SocketAddr) -> String {
    format!("outbound|{}||{}", address.port(), address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, name: &str) -> Option<Of> {
        let mesh = Mesh { trust_domain: "cluster.local".parse().unwrap(), cluster_domain: "cluster.local".into() };
        Of::parse(&mesh, &Key::new(kind, name.into(), &Name::new("shop", "me")))
    }

    #[test]
    fn names_of_all_forms() {
        let service = Some(Of::Service(Name::new("shop", "catalog"), 80));
        assert_eq!(parse(Kind::Cluster, "outbound|80||catalog.shop.svc.cluster.local"), service);
        assert_eq!(parse(Kind::Endpoints, "outbound|80||catalog.shop.svc.cluster.local"), service);
        assert_eq!(parse(Kind::Route, "catalog.shop.svc.cluster.local:80"), service);
        let v6 = Some(Of::Address("[fd00::5]:80".parse().unwrap()));
        assert_eq!(parse(Kind::Cluster, "outbound|80||fd00::5"), v6);
        assert_eq!(parse(Kind::Route, "[fd00::5]:80"), v6);
        assert_eq!(parse(Kind::Listener, "weir/outbound/[fd00::5]:80"), v6);
        assert_eq!(parse(Kind::Endpoints, "weir/workload/fd00::5"), Some(Of::Workload("fd00::5".parse().unwrap())));
        assert_eq!(parse(Kind::Listener, "weir/inbound"), Some(Of::Inbound(Name::new("shop", "me"))));
    }

    #[test]
    fn names_of_nothing() {
        for name in [
            "",
            "outbound|80||",
            "outbound|0||a.b.svc.cluster.local",
            "outbound|080||a.b.svc.cluster.local",
            "outbound|80||a.svc.cluster.local",
            "outbound|80||a.b.svc.other",
            "inbound|80||",
            "*",
            "weir/inbound",
        ] {
            assert_eq!(parse(Kind::Cluster, name), None, "{name}");
        }
        assert_eq!(parse(Kind::Listener, "weir/host/443/a.example"), None);
        assert_eq!(parse(Kind::Route, "a.b.svc.cluster.local"), None);
    }
}
