//! What arrives from the control plane becomes tables: only whole ones, one by one, and the old one until then.

#![allow(clippy::unwrap_used)] // a step that fails is a failed test

use std::{net::SocketAddr, sync::Arc};

use weir_proxy::{
    config::{Answer, Protocol, Store, Tables},
    http::{Limits, h1::RequestDecoder},
    route::Action,
};
use weir_xds::{
    Handler, Kind, Resource, Subscriptions,
    envoy::{
        HCM, HCM_TYPE_URL, TCP_PROXY, TCP_PROXY_TYPE_URL, cluster, core,
        endpoint::{self, lb_endpoint::HostIdentifier},
        hcm::{HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier},
        listener::{Filter, FilterChain, FilterChainMatch, Listener, filter::ConfigType},
        protobuf::{Any, Struct, UInt32Value, Value, value},
        route::{
            Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route, route_action,
            route_match, weighted_cluster::ClusterWeight,
        },
        tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier},
    },
    names,
    prost::Message,
};

const SERVICE: &str = "198.19.0.1:80";

fn resource(name: &str, message: &impl Message) -> Resource {
    Resource { name: name.to_owned(), version: String::new(), body: message.encode_to_vec().into() }
}

fn filter(name: &str, type_url: &str, message: &impl Message) -> Filter {
    let any = Any { type_url: type_url.to_owned(), value: message.encode_to_vec() };
    Filter { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(any)) }
}

fn http(routes: &str) -> FilterChain {
    let rds = Rds { route_config_name: routes.to_owned(), ..Rds::default() };
    let hcm = HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(rds)), ..Default::default() };
    FilterChain { filters: vec![filter(HCM, HCM_TYPE_URL, &hcm)], ..FilterChain::default() }
}

fn tcp(cluster: &str) -> FilterChain {
    let proxy =
        TcpProxy { cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())), ..Default::default() };
    FilterChain { filters: vec![filter(TCP_PROXY, TCP_PROXY_TYPE_URL, &proxy)], ..FilterChain::default() }
}

fn outbound(chains: Vec<FilterChain>) -> Resource {
    let name = names::outbound(SERVICE.parse().unwrap());
    resource(&name, &Listener { traffic_direction: 2, filter_chains: chains, ..Listener::default() })
}

fn routes(name: &str, clusters: &[(&str, u32)]) -> Resource {
    let clusters = clusters
        .iter()
        .map(|(name, weight)| ClusterWeight {
            name: (*name).to_owned(),
            weight: Some(UInt32Value { value: *weight }),
            ..ClusterWeight::default()
        })
        .collect();
    let weighted = WeightedCluster { clusters, ..WeightedCluster::default() };
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::WeightedClusters(weighted)),
        ..RouteAction::default()
    };
    let all = RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())), ..Default::default() };
    let one = Route {
        name: "default".into(),
        r#match: Some(all),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    };
    let host = VirtualHost { domains: vec!["*".into()], routes: vec![one], ..VirtualHost::default() };
    resource(name, &RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() })
}

fn endpoints(name: &str, address: &str, identity: Option<&str>) -> Resource {
    let address: SocketAddr = address.parse().unwrap();
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let one = |key: &str, value: &str| Struct { fields: [(key.to_owned(), text(value))].into() };
    let mut meta = core::Metadata::default();
    meta.filter_metadata.insert("istio".into(), one("workload", "catalog;shop;catalog;v1;"));
    if let Some(identity) = identity {
        meta.filter_metadata.insert("envoy.transport_socket_match".into(), one("tlsMode", "istio"));
        meta.filter_metadata.insert("weir".into(), one("identity", identity));
    }
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let host = HostIdentifier::Endpoint(endpoint::Endpoint { address: Some(address), ..Default::default() });
    let lb = endpoint::LbEndpoint { metadata: Some(meta), host_identifier: Some(host), ..Default::default() };
    let locality = endpoint::LocalityLbEndpoints { lb_endpoints: vec![lb], ..Default::default() };
    resource(
        name,
        &endpoint::ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..Default::default() },
    )
}

fn known(name: &str) -> [(Kind, Resource); 2] {
    [
        (Kind::Cluster, resource(name, &cluster::Cluster { name: name.into(), ..Default::default() })),
        (Kind::Endpoints, endpoints(name, "198.18.0.5:8080", Some("spiffe://d/ns/shop/sa/catalog"))),
    ]
}

struct Plane {
    store: Arc<Store>,
    tables: Tables,
}

impl Plane {
    fn new() -> Self {
        let store = Arc::new(Store::default());
        let tables = Tables::new(store.clone());
        tables.attach(Subscriptions::default());
        Self { store, tables }
    }

    fn send(&mut self, kind: Kind, resource: Resource) -> usize {
        self.tables.apply(kind, vec![resource], Vec::new()).len()
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        assert!(self.tables.apply(kind, Vec::new(), vec![name.to_owned()]).is_empty());
    }

    fn answer(&self) -> Answer {
        self.store.outbound(SERVICE.parse().unwrap()).unwrap().answer().as_ref().clone()
    }

    /// Cluster that a request goes to now.
    fn target(&self) -> String {
        let Answer::Known(known) = self.answer() else { panic!("not known: {:?}", self.answer()) };
        let mut request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..].into();
        let head = RequestDecoder::new().decode(&mut request, &Limits::default()).unwrap().unwrap();
        let table = known.routes.as_ref().unwrap().table().unwrap();
        match table.find(&head).unwrap().action() {
            Action::Forward(split) => split.pick().name().to_owned(),
            Action::Respond(status) => status.to_string(),
            Action::Redirect(redirect) => redirect.status.to_string(),
        }
    }
}

#[test]
fn a_destination_is_known_once_all_that_it_refers_to_is_there() {
    let mut plane = Plane::new();
    assert!(matches!(plane.answer(), Answer::Waiting));
    assert_eq!(plane.send(Kind::Listener, outbound(vec![http("r")])), 0);
    assert!(matches!(plane.answer(), Answer::Waiting));
    plane.send(Kind::Route, routes("r", &[("v1", 1)]));
    assert!(matches!(plane.answer(), Answer::Waiting));
    for (kind, part) in known("v1") {
        assert!(matches!(plane.answer(), Answer::Waiting));
        plane.send(kind, part);
    }
    assert_eq!(plane.target(), "v1");
}

#[test]
fn a_change_waits_for_its_new_cluster_and_the_old_rules_stay_until_then() {
    let mut plane = Plane::new();
    plane.answer();
    plane.send(Kind::Listener, outbound(vec![http("r")]));
    plane.send(Kind::Route, routes("r", &[("v1", 1)]));
    for (kind, part) in known("v1") {
        plane.send(kind, part);
    }
    plane.send(Kind::Route, routes("r", &[("v2", 1)]));
    assert_eq!(plane.target(), "v1");
    for (kind, part) in known("v2") {
        assert_eq!(plane.target(), "v1");
        plane.send(kind, part);
    }
    assert_eq!(plane.target(), "v2");
    plane.send(Kind::Route, routes("r", &[("v2", 0)]));
    assert_eq!(plane.target(), "500");
}

#[test]
fn what_does_not_exist_is_said_and_can_come_later() {
    let mut plane = Plane::new();
    plane.answer();
    plane.remove(Kind::Listener, &names::outbound(SERVICE.parse().unwrap()));
    assert!(matches!(plane.answer(), Answer::Unknown));
    plane.send(Kind::Listener, outbound(vec![tcp("c")]));
    plane.remove(Kind::Cluster, "c");
    plane.remove(Kind::Endpoints, "c");
    let Answer::Known(known) = plane.answer() else { panic!("{:?}", plane.answer()) };
    assert_eq!(known.protocol, Protocol::Opaque);
    let cluster = known.streams.as_ref().unwrap().pick(None).unwrap().target.cluster().clone();
    assert!(cluster.unwrap().endpoints().as_ref().unwrap().endpoints.is_empty());
}

#[test]
fn http_and_opaque_chains_together_mean_detection() {
    let mut plane = Plane::new();
    plane.answer();
    plane.send(Kind::Listener, outbound(vec![http("r"), tcp("c")]));
    plane.send(Kind::Route, routes("r", &[("c", 1)]));
    for (kind, part) in known("c") {
        plane.send(kind, part);
    }
    let Answer::Known(known) = plane.answer() else { panic!("{:?}", plane.answer()) };
    assert_eq!(known.protocol, Protocol::Detect);
}

#[test]
fn what_is_not_understood_is_refused_and_what_was_in_force_stays() {
    let mut plane = Plane::new();
    plane.answer();
    plane.send(Kind::Listener, outbound(vec![http("r")]));
    plane.send(Kind::Route, routes("r", &[("v1", 1)]));
    for (kind, part) in known("v1") {
        plane.send(kind, part);
    }
    let garbage = |name: &str| Resource { name: name.into(), version: String::new(), body: vec![0xff; 9].into() };
    assert_eq!(plane.send(Kind::Route, garbage("r")), 1);
    assert_eq!(plane.send(Kind::Listener, outbound(Vec::new())), 1);
    assert_eq!(plane.send(Kind::Cluster, garbage("v1")), 1);
    assert_eq!(plane.send(Kind::Endpoints, endpoints("v1", "198.18.0.5:80", Some("no identity"))), 1);
    assert_eq!(plane.target(), "v1");
}

#[test]
fn inbound_ports_and_peers_by_address() {
    let mut plane = Plane::new();
    assert!(plane.store.inbound().is_none());
    let on = |port: u32, chain: FilterChain| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(UInt32Value { value: port }),
            ..FilterChainMatch::default()
        }),
        ..chain
    };
    let inline = HttpConnectionManager::default();
    let http = FilterChain { filters: vec![filter(HCM, HCM_TYPE_URL, &inline)], ..FilterChain::default() };
    let chains = vec![on(80, http.clone()), on(81, tcp("x")), on(82, http), on(82, tcp("x"))];
    let listener = Listener { traffic_direction: 1, filter_chains: chains, ..Listener::default() };
    assert_eq!(plane.send(Kind::Listener, resource(names::INBOUND, &listener)), 0);
    let inbound = plane.store.inbound().unwrap();
    let of = |port: u16| inbound.ports.get(&port).map(|port| port.protocol);
    assert_eq!(
        (of(80), of(81), of(82), of(83)),
        (Some(Protocol::Http), Some(Protocol::Opaque), Some(Protocol::Detect), None)
    );

    let address = "198.18.0.9".parse().unwrap();
    let peer = plane.store.peer(address).unwrap();
    assert!(peer.workload().is_none());
    let identity = "spiffe://d/ns/shop/sa/client";
    plane.send(Kind::Endpoints, endpoints(&names::workload(address), "198.18.0.9:0", Some(identity)));
    let workload = peer.workload().unwrap();
    assert_eq!(workload.identity.as_ref().unwrap().uri(), identity);
    assert_eq!(workload.peer.fields().workload, "catalog");
}

#[test]
fn a_dump_tells_what_is_in_force() {
    let mut plane = Plane::new();
    plane.answer();
    plane.send(Kind::Listener, outbound(vec![http("r")]));
    plane.send(Kind::Route, routes("r", &[("v1", 1)]));
    for (kind, part) in known("v1") {
        plane.send(kind, part);
    }
    let dump = plane.tables.dump();
    assert_eq!(dump["destinations"][0]["state"], "known");
    assert_eq!(dump["routes"][0]["rules"][0]["name"], "default");
    assert_eq!(dump["clusters"][0]["endpoints"][0]["identity"], "spiffe://d/ns/shop/sa/catalog");
}

/// No more are kept than the bound, and those in use are not thrown away.
#[test]
fn the_number_of_destinations_is_bounded() {
    let plane = Plane::new();
    let address = |n: u32| SocketAddr::from(([198, 18, (n >> 8) as u8, n as u8], (n >> 16) as u16 + 1));
    let held: Vec<_> = (0..8192).map(|n| plane.store.outbound(address(n)).unwrap()).collect();
    assert!(plane.store.outbound(address(9000)).is_none(), "all are in use, one more was taken");
    drop(held);
    for n in 9000..9100 {
        assert!(plane.store.outbound(address(n)).is_some());
    }
    assert!(plane.tables.dump()["destinations"].as_array().unwrap().len() <= 8192);
}

/// A cluster, a route and endpoints with one part changed that this proxy does not know: refused, and the part is named.
#[test]
fn parts_that_are_not_understood_are_named() {
    let mut plane = Plane::new();
    plane.answer();
    plane.send(Kind::Listener, outbound(vec![http("r")]));
    plane.send(Kind::Route, routes("r", &[("v1", 1)]));
    for (kind, part) in known("v1") {
        plane.send(kind, part);
    }
    let refused = |plane: &mut Plane, kind, resource| {
        plane.tables.apply(kind, vec![resource], Vec::new()).pop().map(|refused| refused.reason).unwrap_or_default()
    };
    type Change = fn(&mut cluster::Cluster);
    let changes: [(Change, &str); 6] = [
        (|cluster| cluster.lb_policy = 6, "lb_policy"),
        (|cluster| cluster.lb_subset_config = Some(Default::default()), "lb_subset_config"),
        (
            |cluster| {
                let maglev = cluster::cluster::MaglevLbConfig {
                    table_size: Some(weir_xds::envoy::protobuf::UInt64Value { value: 65_536 }),
                };
                cluster.lb_config = Some(cluster::cluster::LbConfig::MaglevLbConfig(maglev));
            },
            "table_size",
        ),
        (
            |cluster| {
                cluster.outlier_detection = Some(cluster::OutlierDetection {
                    enforcing_consecutive_5xx: Some(UInt32Value { value: 50 }),
                    ..Default::default()
                });
            },
            "enforcing_consecutive_5xx",
        ),
        (|cluster| cluster.health_checks = vec![Default::default()], "health check"),
        (
            |cluster| {
                let breakers =
                    cluster::CircuitBreakers { per_host_thresholds: vec![Default::default()], ..Default::default() };
                cluster.circuit_breakers = Some(breakers);
            },
            "per_host_thresholds",
        ),
    ];
    for (change, name) in changes {
        let mut message = cluster::Cluster { name: "v1".into(), ..Default::default() };
        change(&mut message);
        let reason = refused(&mut plane, Kind::Cluster, resource("v1", &message));
        assert!(reason.contains(name), "{name}: {reason:?}");
    }
    type Edit = fn(&mut RouteAction);
    let edits: [(Edit, &str); 5] = [
        (|action| action.internal_redirect_policy = Some(Default::default()), "internal_redirect_policy"),
        (|action| action.max_stream_duration = Some(Default::default()), "max_stream_duration"),
        (|action| action.hash_policy = vec![Default::default()], "hash policy"),
        (
            |action| {
                action.retry_policy =
                    Some(weir_xds::envoy::route::RetryPolicy { retry_on: "5xx,never".into(), ..Default::default() });
            },
            "never",
        ),
        (|action| action.timeout = Some(weir_xds::envoy::protobuf::Duration { seconds: -1, nanos: 0 }), "timeout"),
    ];
    for (edit, name) in edits {
        let mut message = RouteConfiguration::decode(&*routes("r", &[("v1", 1)]).body).unwrap();
        match &mut message.virtual_hosts[0].routes[0].action {
            Some(route::Action::Route(action)) => edit(action),
            other => panic!("{other:?}"),
        }
        let reason = refused(&mut plane, Kind::Route, resource("r", &message));
        assert!(reason.contains(name) && reason.contains("route default"), "{name}: {reason:?}");
    }
    let mut message = RouteConfiguration::decode(&*routes("r", &[("v1", 1)]).body).unwrap();
    message.virtual_hosts[0].routes[0].typed_per_filter_config.insert("envoy.filters.http.lua".into(), Any::default());
    assert!(refused(&mut plane, Kind::Route, resource("r", &message)).contains("envoy.filters.http.lua"));
    assert_eq!(plane.target(), "v1");
}
