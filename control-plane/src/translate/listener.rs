//! Listeners: what stands behind an address, and what a pod's own ports speak.

use std::net::SocketAddr;

use prost::Message;
use weir_config::model::{Backend, Name, Protocol, RouteSet, streams_in_precedence};
use weir_xds::{
    BAD_BACKEND_CLUSTER,
    envoy::{
        self,
        core::TrafficDirection,
        hcm::{HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter},
        kinds::HashPolicy,
        listener::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter},
        protobuf::{Any, UInt32Value},
        tcp_proxy::{
            TcpProxy,
            tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
        },
        tls_inspector::TlsInspector,
    },
};

use super::{
    Mesh, Of, View,
    access::Guard,
    cluster::ads,
    encode::{Metadata, append, services, with_metadata},
    endpoints::{describe, socket},
    key::{address_cluster, service_cluster},
    route,
};
use crate::world::World;

/// `Listener.filter_chains`
const CHAINS: u32 = 3;
/// `Listener.metadata`
const METADATA: u32 = 6;
/// `Listener.default_filter_chain`
const DEFAULT_CHAIN: u32 = 25;
/// `FilterChain.metadata`
const CHAIN_METADATA: u32 = 5;
/// Cluster of the pod's ports that nobody has declared.
const UNDECLARED: &str = "InboundPassthroughCluster";
/// What Envoy calls TLS.
const TLS: &str = "tls";
/// What detection calls HTTP/1.
const HTTP: [&str; 2] = ["http/1.0", "http/1.1"];

pub(super) fn listener(mesh: &Mesh, world: &World, name: &str, of: &Of, view: &View) -> Option<Vec<u8>> {
    match of {
        Of::Address(address) => outbound(mesh, world, name, *address, view),
        Of::Inbound(pod) => inbound(mesh, world, name, pod),
        Of::Service(..) | Of::Workload(_) => None,
    }
}

fn outbound(mesh: &Mesh, world: &World, name: &str, address: SocketAddr, view: &View) -> Option<Vec<u8>> {
    let mut key = Vec::new();
    let (protocol, routes, cluster) = if let Some(service) = world.service_at(address.ip()) {
        let port = service.port(address.port())?;
        let host = mesh.host(service);
        let sets = world.routes_of(service, port, view.namespace.as_deref());
        if sets.iter().any(|set| !set.rules.level().is_of_requests()) {
            return Some(streams(mesh, world, outbound_base(name, address, false), sets, view));
        }
        key = route::hash::of_streams(world, [(&service.name, port.number)], view);
        (world.service_protocol(service, port), format!("{host}:{}", port.number), service_cluster(port.number, &host))
    } else {
        // A pod address goes straight to that pod, on listed ports and on others.
        let pod = world.workload_at(address.ip())?;
        (world.pod_protocol(pod, address.port()).0, address.to_string(), address_cluster(address))
    };
    let http =
        || hcm(&routes, RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: routes.clone() }));
    let tcp = || tcp_proxy(&cluster, ClusterSpecifier::Cluster(cluster.clone()), key);
    let mut bytes = outbound_base(name, address, protocol == Protocol::Undeclared).encode_to_vec();
    match protocol {
        Protocol::Http => append(&mut bytes, CHAINS, &chain(None, http(), None)),
        Protocol::Opaque => append(&mut bytes, CHAINS, &chain(None, tcp(), None)),
        Protocol::Undeclared => {
            append(&mut bytes, CHAINS, &chain(Some(matching(None, true)), http(), None));
            append(&mut bytes, DEFAULT_CHAIN, &chain(None, tcp(), None));
        }
    }
    Some(bytes)
}

fn outbound_base(name: &str, address: SocketAddr, inspects: bool) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(socket(address.ip(), address.port())),
        traffic_direction: TrafficDirection::Outbound.into(),
        listener_filters: if inspects { vec![inspector()] } else { Vec::new() },
        ..Default::default()
    }
}

/// A port that has rules for streams: they are passed on whatever they speak, by the name of the server that TLS asks for, or all of
/// them. Of several rules for the same the older one counts. What no rule is for is refused. A chain is named by its rule, its filter by
/// the rule's object.
fn streams(mesh: &Mesh, world: &World, mut base: Listener, sets: Vec<&RouteSet>, view: &View) -> Vec<u8> {
    let mut chains = Vec::new();
    let mut every = None;
    for stream in streams_in_precedence(sets) {
        let to = || {
            let backends = &stream.rule.backends;
            let specifier = split(&route::shares(mesh, world, stream.set, backends));
            let key = route::hash::of_streams(world, route::targets(backends), view);
            tcp_proxy(&stream.set.origin.to_string(), specifier, key)
        };
        let named = |matching: Option<FilterChainMatch>, filter: Filter| {
            let name = format!("{}/{}", stream.set.origin, stream.rule.name.as_deref().unwrap_or("0"));
            let filters = vec![filter];
            FilterChain { name, filter_chain_match: matching, filters, ..Default::default() }.encode_to_vec()
        };
        let names: Vec<String> = stream.own().map(str::to_owned).collect();
        if names.is_empty() {
            continue;
        }
        if stream.rule.server_names.is_empty() {
            every = Some(named(None, to()));
        } else {
            let matching =
                FilterChainMatch { server_names: names, transport_protocol: TLS.to_owned(), ..Default::default() };
            chains.push(named(Some(matching), to()));
        }
    }
    if !chains.is_empty() {
        base.listener_filters.push(tls_inspector());
    }
    let mut bytes = base.encode_to_vec();
    for chain in chains.into_iter().chain(every) {
        append(&mut bytes, CHAINS, &chain);
    }
    bytes
}

fn split(shares: &[(&Backend, String)]) -> ClusterSpecifier {
    match shares {
        [] => ClusterSpecifier::Cluster(BAD_BACKEND_CLUSTER.to_owned()),
        [(_, cluster)] => ClusterSpecifier::Cluster(cluster.clone()),
        shares => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: shares
                .iter()
                .map(|(backend, cluster)| ClusterWeight {
                    name: cluster.clone(),
                    weight: backend.weight,
                    ..Default::default()
                })
                .collect(),
        }),
    }
}

fn inbound(mesh: &Mesh, world: &World, name: &str, pod: &Name) -> Option<Vec<u8>> {
    let pod = world.workload(pod)?;
    let base = Listener {
        name: name.to_owned(),
        traffic_direction: TrafficDirection::Inbound.into(),
        listener_filters: vec![inspector()],
        ..Default::default()
    };
    let mut bytes = base.encode_to_vec();
    let guard = Guard::of(mesh, world, pod);
    let mut ports = world.pod_ports(pod);
    ports.extend(guard.ports());
    for port in ports {
        let (protocol, service) = world.pod_protocol(pod, port);
        let cluster = format!("inbound|{port}||");
        let metadata = service.map(|service| {
            Metadata::default().with("istio", [("services", services([(mesh.host(service), &service.name)]))])
        });
        let metadata = guard.port_metadata(port, metadata);
        let mut add = |http_only: bool, filter: Filter| {
            let matching = matching(Some(port), http_only);
            append(&mut bytes, CHAINS, &guarded(&guard, Some(matching), filter, metadata.as_ref()));
        };
        let http = || hcm(&cluster, RouteSpecifier::RouteConfig(route::inbound(&cluster)));
        match protocol {
            Protocol::Http => add(false, http()),
            Protocol::Opaque => add(false, tcp(&cluster)),
            Protocol::Undeclared => {
                add(true, http());
                add(false, tcp(&cluster));
            }
        }
    }
    if !guard.filters.is_empty() {
        append(&mut bytes, DEFAULT_CHAIN, &guarded(&guard, None, tcp(UNDECLARED), None));
    }
    // Who the pod is comes with it and not by its address: a kubelet publishes that only when the proxy, which waits for this, is ready.
    append(&mut bytes, METADATA, &guard.metadata(describe(mesh, pod, pod.meshed)).encode_to_vec());
    Some(bytes)
}

/// A chain behind a guard's filters.
fn guarded(guard: &Guard, matching: Option<FilterChainMatch>, filter: Filter, metadata: Option<&Metadata>) -> Vec<u8> {
    let filters = guard.filters.iter().cloned().chain([filter]).collect();
    let chain = FilterChain { filter_chain_match: matching, filters, ..Default::default() };
    with_metadata(&chain, CHAIN_METADATA, metadata)
}

fn chain(matching: Option<FilterChainMatch>, filter: Filter, metadata: Option<&Metadata>) -> Vec<u8> {
    let chain = FilterChain { filter_chain_match: matching, filters: vec![filter], ..Default::default() };
    with_metadata(&chain, CHAIN_METADATA, metadata)
}

fn matching(port: Option<u16>, http: bool) -> FilterChainMatch {
    FilterChainMatch {
        destination_port: port.map(|port| UInt32Value { value: port.into() }),
        application_protocols: if http { HTTP.map(String::from).to_vec() } else { Vec::new() },
        ..Default::default()
    }
}

fn any(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn inspector() -> ListenerFilter {
    let config = any(envoy::HTTP_INSPECTOR_TYPE_URL, &envoy::http_inspector::HttpInspector::default());
    ListenerFilter {
        name: envoy::HTTP_INSPECTOR.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn tls_inspector() -> ListenerFilter {
    let config = any(&envoy::type_url::<TlsInspector>(), &TlsInspector::default());
    ListenerFilter {
        name: envoy::TLS_INSPECTOR.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn hcm(stat_prefix: &str, routes: RouteSpecifier) -> Filter {
    let router = HttpFilter {
        name: envoy::ROUTER.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(Any {
            type_url: envoy::ROUTER_TYPE_URL.to_owned(),
            value: Vec::new(), // all defaults
        })),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![router],
        route_specifier: Some(routes),
        ..Default::default()
    };
    Filter {
        name: envoy::HCM.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(envoy::HCM_TYPE_URL, &manager))),
    }
}

fn tcp(cluster: &str) -> Filter {
    tcp_proxy(cluster, ClusterSpecifier::Cluster(cluster.to_owned()), Vec::new())
}

fn tcp_proxy(stat_prefix: &str, specifier: ClusterSpecifier, hash_policy: Vec<HashPolicy>) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        hash_policy,
        ..Default::default()
    };
    Filter {
        name: envoy::TCP_PROXY.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(envoy::TCP_PROXY_TYPE_URL, &proxy))),
    }
}
