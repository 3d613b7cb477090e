//! Services: addresses that stay, endpoints from ready pods, and the two forms others need (EndpointSlice, translation rules).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::{
    api::core::v1::{Service, ServicePort as Port},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    families::Family,
    selector::{Labels, selects},
};
use crate::{
    net::services::{Protocol, ServicePort},
    pod::{Pod, PodStatus, state::Phase},
};

/// First and last number of the addresses that are given out, within the Service ranges.
const FIRST: u16 = 0x0100;
const LAST: u16 = 0xfffe;
/// The Service ranges' networks.
const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
const NETWORK_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x198, 0x19, 0, 0, 0, 0, 0);

/// Addresses of Services: once given, kept for the life of the sandbox, over edits and removal. A Service has the same number in
/// both families.
#[derive(Debug, Default)]
pub struct Addresses {
    given: BTreeMap<(String, String), u16>,
    named: BTreeMap<(String, String, Family), IpAddr>,
    next: u16,
}

impl Addresses {
    /// The address of a Service in a family.
    pub fn of(&mut self, namespace: &str, name: &str, family: Family) -> IpAddr {
        if let Some(address) = self.named.get(&(namespace.to_owned(), name.to_owned(), family)) {
            return *address;
        }
        let number = *self.given.entry((namespace.to_owned(), name.to_owned())).or_insert_with(|| {
            // More than 65,000 Services share addresses from the start again; nobody runs that on one machine.
            let number = FIRST + self.next % (LAST - FIRST);
            self.next = self.next.wrapping_add(1);
            number
        });
        match family {
            Family::V4 => Ipv4Addr::from(u32::from(NETWORK) | u32::from(number)).into(),
            Family::V6 => Ipv6Addr::from(u128::from(NETWORK_V6) | u128::from(number)).into(),
        }
    }

    /// Takes an address that the manifest names.
    pub fn keep(&mut self, namespace: &str, name: &str, address: IpAddr) {
        self.named.insert((namespace.to_owned(), name.to_owned(), Family::of(address)), address);
    }
}

/// One pod behind a Service.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Pod name.
    pub pod: String,
    /// Pod uid.
    pub uid: String,
    /// Ready and not on its way down.
    pub ready: bool,
    /// Would serve, ready or on its way down.
    pub serving: bool,
    /// On its way down.
    pub terminating: bool,
    /// Container ports by name.
    pub ports: BTreeMap<String, u16>,
}

impl Backend {
    /// Its address in a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// What the endpoints of a Service need to know of a pod.
pub struct Candidate {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: Labels,
    /// The rest.
    pub backend: Backend,
}

impl Candidate {
    /// A pod that has an address and is not over.
    pub fn of(pod: &Pod, status: &PodStatus) -> Option<Self> {
        let over = matches!(status.phase, Phase::Succeeded | Phase::Failed | Phase::Gone);
        let addresses = status.addresses();
        if over || addresses.is_empty() {
            return None;
        }
        let object = pod.object();
        let mut ports = BTreeMap::new();
        for list in ["/spec/initContainers", "/spec/containers"] {
            for container in object.pointer(list).and_then(Value::as_array).into_iter().flatten() {
                for port in container.get("ports").and_then(Value::as_array).into_iter().flatten() {
                    let number = port.get("containerPort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
                    if let (Some(name), Some(number)) = (port.get("name").and_then(Value::as_str), number) {
                        ports.insert(name.to_owned(), number);
                    }
                }
            }
        }
        Some(Self {
            namespace: pod.namespace.clone(),
            labels: pod.labels(),
            backend: Backend {
                addresses,
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                ready: status.ready && !status.terminating,
                serving: status.ready,
                terminating: status.terminating,
                ports,
            },
        })
    }
}

/// The pods that a Service selects, by address.
pub fn backends(namespace: &str, service: &Service, candidates: &[Candidate]) -> Vec<Backend> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let mut backends: Vec<Backend> = candidates
        .iter()
        .filter(|candidate| candidate.namespace == namespace && selects(selector, &candidate.labels))
        .map(|candidate| candidate.backend.clone())
        .collect();
    backends.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    backends
}

fn target(port: &Port, backend: &Backend) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => backend.ports.get(name).copied(),
    }
}

fn ports(service: &Service) -> impl Iterator<Item = &Port> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

fn protocol(port: &Port) -> Option<Protocol> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// Translation rules of a Service. Where nobody is ready, pods that still serve on their way down are used, as kube-proxy does.
pub fn rules(service: &Service, address: IpAddr, backends: &[Backend]) -> Vec<ServicePort> {
    let any_ready = backends.iter().any(|backend| backend.ready);
    let usable = |backend: &&Backend| if any_ready { backend.ready } else { backend.serving && backend.terminating };
    ports(service)
        .filter_map(|port| {
            Some(ServicePort {
                address,
                protocol: protocol(port)?,
                port: u16::try_from(port.port).ok()?,
                endpoints: backends
                    .iter()
                    .filter(usable)
                    .filter_map(|backend| Some((backend.address(Family::of(address))?, target(port, backend)?)))
                    .collect(),
            })
        })
        .collect()
}

/// EndpointSlices of a Service in a family: one for each set of target port numbers, as the controller makes them.
pub fn slices(namespace: &str, name: &str, service: &Service, backends: &[Backend], family: Family) -> Vec<Value> {
    let mut groups: BTreeMap<Vec<Option<u16>>, Vec<&Backend>> = BTreeMap::new();
    for backend in backends {
        let numbers = ports(service).map(|port| target(port, backend)).collect();
        groups.entry(numbers).or_default().push(backend);
    }
    if groups.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    groups
        .into_iter()
        .enumerate()
        .map(|(i, (numbers, backends))| {
            let ports: Vec<Value> = ports(service)
                .zip(numbers)
                .filter_map(|(port, number)| {
                    let mut slice_port = json!({
                        "name": port.name.clone().unwrap_or_default(),
                        "port": number?,
                        "protocol": port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    });
                    if let (Some(app), Some(slice_port)) = (&port.app_protocol, slice_port.as_object_mut()) {
                        slice_port.insert("appProtocol".into(), json!(app));
                    }
                    Some(slice_port)
                })
                .collect();
            let endpoints: Vec<Value> =
                backends.iter().filter_map(|backend| endpoint(namespace, backend, family)).collect();
            slice(namespace, name, family, i, &endpoints, &ports)
        })
        .collect()
}

fn endpoint(namespace: &str, backend: &Backend, family: Family) -> Option<Value> {
    Some(json!({
        "addresses": [backend.address(family)?],
        "conditions": {
            "ready": backend.ready,
            "serving": backend.serving,
            "terminating": backend.terminating,
        },
        "nodeName": "weir-sandbox",
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": backend.pod, "uid": backend.uid},
    }))
}

/// An EndpointSlice with its usual labels.
fn slice(namespace: &str, service: &str, family: Family, number: usize, endpoints: &[Value], ports: &[Value]) -> Value {
    // No Service has a dot in its name: the names of two families can not meet.
    let name = match family {
        Family::V4 => format!("{service}-{number}"),
        Family::V6 => format!("{service}.ipv6-{number}"),
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": family.as_str(),
        "endpoints": endpoints,
        "ports": ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DNS_ADDRESS_V6;

    fn service() -> Service {
        serde_json::from_value(json!({"spec": {
            "selector": {"app": "a"},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }}))
        .unwrap()
    }

    fn candidate(last: u8, ready: bool, terminating: bool, web: u16) -> Candidate {
        Candidate {
            namespace: "n".into(),
            labels: Labels::from([("app".to_owned(), "a".to_owned())]),
            backend: Backend {
                addresses: vec![IpAddr::from([198, 18, 0, last]), format!("fd00:198:18::{last}").parse().unwrap()],
                pod: format!("p{last}"),
                uid: "u".into(),
                ready: ready && !terminating,
                serving: ready,
                terminating,
                ports: BTreeMap::from([("web".to_owned(), web)]),
            },
        }
    }

    #[test]
    fn addresses_stay_and_differ() {
        let mut addresses = Addresses::default();
        let first = addresses.of("n", "a", Family::V4);
        assert_ne!(first, addresses.of("n", "b", Family::V4));
        assert_eq!(first, addresses.of("n", "a", Family::V4));
        assert_eq!(first.to_string(), "198.19.1.0");
        assert_eq!(addresses.of("n", "a", Family::V6).to_string(), "fd00:198:19::100");
        addresses.keep("n", "a", DNS_ADDRESS_V6.into());
        assert_eq!(addresses.of("n", "a", Family::V6), DNS_ADDRESS_V6);
        assert_eq!(addresses.of("n", "a", Family::V4), first);
    }

    #[test]
    fn only_ready_pods_get_traffic_unless_none_is_left() {
        let all = [candidate(2, true, false, 8080), candidate(3, false, false, 8080), candidate(4, true, true, 8080)];
        let rules = |candidates: &[Candidate]| {
            let service = service();
            let backends = backends("n", &service, candidates);
            rules(&service, IpAddr::from([198, 19, 0, 1]), &backends).remove(0).endpoints
        };
        assert_eq!(rules(&all), [(IpAddr::from([198, 18, 0, 2]), 8080)]);
        assert_eq!(rules(all.get(1..).unwrap()), [(IpAddr::from([198, 18, 0, 4]), 8080)]);
        assert_eq!(rules(all.get(1..2).unwrap()), []);
    }

    #[test]
    fn pods_with_other_port_numbers_get_a_slice_of_their_own() {
        let service = service();
        let all = [candidate(2, true, false, 8080), candidate(3, true, false, 9090)];
        let backends = backends("n", &service, &all);
        let v6 = &slices("n", "s", &service, &backends, Family::V6)[0];
        assert_eq!(
            (&v6["addressType"], &v6["endpoints"][0]["addresses"][0]),
            (&json!("IPv6"), &json!("fd00:198:18::2"))
        );
        let slices = slices("n", "s", &service, &backends, Family::V4);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[1]["ports"][0]["port"], 9090);
        assert_eq!(slices[0]["endpoints"][0]["conditions"]["ready"], true);
    }
}
