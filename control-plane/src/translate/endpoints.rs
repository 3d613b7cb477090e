//! Endpoints: who serves a cluster now, and who has an address.

use std::{collections::BTreeMap, net::IpAddr};

use prost::Message as _;
use weir_config::model::Workload;
use weir_xds::envoy::{
    core::{self, Address, SocketAddress, address, socket_address::PortSpecifier},
    endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
    protobuf::UInt32Value,
};

use super::{
    Mesh, Of, View,
    encode::{Metadata, append, string, with_metadata},
    places::standing,
};
use crate::{
    source::Locality,
    world::{Target, World},
};

/// Id of the cluster (of machines) in telemetry, as Istio calls a single one.
const CLUSTER_ID: &str = "Kubernetes";
/// `LbEndpoint.metadata`
const METADATA: u32 = 3;
/// `ClusterLoadAssignment.endpoints`
const LOCALITIES: u32 = 2;
/// `LocalityLbEndpoints.locality`
const LOCALITY: u32 = 1;
/// `LocalityLbEndpoints.lb_endpoints`
const ENDPOINTS: u32 = 2;

pub(super) fn assignment(mesh: &Mesh, world: &World, name: &str, of: &Of, view: &View) -> Option<Vec<u8>> {
    let mut places = None;
    let targets = match of {
        Of::Service(service, port) => {
            let service = world.service(service)?;
            places = world.upstream_rules(&service.name, *port, view.namespace.as_deref()).places;
            world.targets(service, service.port(*port)?)
        }
        Of::Address(address) => vec![own(world, address.ip(), address.port())?],
        Of::Workload(address) => vec![own(world, *address, 0)?],
        Of::Inbound(_) => return None,
    };
    // Ordered, so that every replica encodes the same bytes.
    let mut localities: BTreeMap<Locality, Vec<u8>> = BTreeMap::new();
    let mut counts: BTreeMap<Locality, usize> = BTreeMap::new();
    for target in &targets {
        let place = target.workload.map(|pod| world.locality(pod)).unwrap_or_default();
        *counts.entry(place.clone()).or_default() += 1;
        append(localities.entry(place).or_default(), ENDPOINTS, &endpoint(mesh, target));
    }
    if localities.is_empty() {
        localities.insert(Locality::default(), Vec::new());
    }
    let standings = standing(places.as_ref(), view.place.as_ref(), &counts);
    let mut bytes = ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() }.encode_to_vec();
    for (place, endpoints) in localities {
        let standing = standings.get(&place).copied().unwrap_or_default();
        let Locality { region, zone } = place;
        let weight = standing.weight.map(|value| UInt32Value { value });
        let rest =
            LocalityLbEndpoints { priority: standing.priority, load_balancing_weight: weight, ..Default::default() };
        let mut locality = rest.encode_to_vec();
        if !(region.is_empty() && zone.is_empty()) {
            append(&mut locality, LOCALITY, &core::Locality { region, zone, ..Default::default() }.encode_to_vec());
        }
        locality.extend(endpoints);
        append(&mut bytes, LOCALITIES, &locality);
    }
    Some(bytes)
}

fn own(world: &World, address: IpAddr, port: u16) -> Option<Target<'_>> {
    let workload = world.workload_at(address)?;
    Some(Target { address, port, workload: Some(workload) })
}

fn endpoint(mesh: &Mesh, target: &Target<'_>) -> Vec<u8> {
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(target.address, target.port)),
            ..Default::default()
        })),
        ..Default::default()
    };
    let metadata = target.workload.map(|pod| describe(mesh, pod, pod.captures(target.port)));
    with_metadata(&endpoint, METADATA, metadata.as_ref())
}

/// Who a pod is, and that its proxy is the one to talk to.
pub(super) fn describe(mesh: &Mesh, pod: &Workload, proxy: bool) -> Metadata {
    let place = [&pod.owner, &*pod.name.namespace, pod.canonical_name(), pod.canonical_revision(), CLUSTER_ID];
    let mut metadata = Metadata::default().with("istio", [("workload", string(place.join(";")))]);
    if proxy {
        metadata = metadata.with("envoy.transport_socket_match", [("tlsMode", string("istio"))]);
    }
    let mut ours =
        vec![("pod", string(&*pod.name.name)), ("app", string(pod.app())), ("version", string(pod.version()))];
    if let Some(identity) = mesh.identity(pod) {
        ours.push(("identity", string(identity.uri())));
    }
    metadata.with("weir", ours)
}

pub(super) fn socket(address: IpAddr, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_string(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}
