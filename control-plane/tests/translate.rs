//! Manifests in, Envoy resources out: what a proxy would be told.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{collections::HashSet, sync::Arc};

use prost::Message as _;
use weir_config::model::Name;
use weir_control::{
    source::Item,
    translate::{Key, Mesh, View, resource},
    world::World,
};
use weir_xds::{
    BAD_BACKEND_CLUSTER, Kind,
    envoy::{
        self,
        cluster::Cluster,
        core::{HeaderValueOption, Metadata, TrafficDirection, address, socket_address::PortSpecifier},
        endpoint::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier},
        hcm::{HttpConnectionManager, http_connection_manager::RouteSpecifier},
        listener::{FilterChain, Listener, filter::ConfigType},
        matcher::{StringMatcher, string_matcher::MatchPattern},
        protobuf::value::Kind as ValueKind,
        route::{
            Route, RouteConfiguration, header_matcher::HeaderMatchSpecifier,
            query_parameter_matcher::QueryParameterMatchSpecifier, route::Action, route_action::ClusterSpecifier,
            route_match::PathSpecifier,
        },
        tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier as TcpSpecifier},
    },
};

const SHOP: &str = include_str!("data/shop.yaml");

struct Fixture {
    world: World,
    mesh: Mesh,
}

impl Fixture {
    fn new(text: &str) -> Self {
        let mesh = Mesh { trust_domain: "cluster.local".parse().unwrap(), cluster_domain: "cluster.local".into() };
        let mut fixture = Self { world: World::default(), mesh };
        fixture.apply(text);
        fixture
    }

    fn apply(&mut self, text: &str) {
        let manifests = weir_config::parse("shop.yaml", text).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let mut touched = HashSet::new();
        for item in manifests.iter().filter_map(|manifest| Item::of(&manifest.object)) {
            self.world.apply(item, &mut touched);
        }
    }

    fn get<T: prost::Message + Default>(&self, kind: Kind, name: &str) -> Option<T> {
        let key = Key::new(kind, Arc::from(name), &Name::new("shop", "catalog-v1-7c9d-a"));
        resource(&self.mesh, &self.world, &key, &View::default()).map(|resource| T::decode(resource.body).unwrap())
    }

    fn listener(&self, address: &str) -> Option<String> {
        let listener: Listener = self.get(Kind::Listener, &format!("weir/outbound/{address}"))?;
        assert_eq!(listener.traffic_direction, i32::from(TrafficDirection::Outbound));
        let inspects = listener.listener_filters.iter().any(|filter| filter.name == envoy::HTTP_INSPECTOR);
        let mut text = chains(&listener.filter_chains);
        if let Some(chain) = &listener.default_filter_chain {
            text.push_str(&format!(" else {}", show_chain(chain)));
        }
        Some(if inspects { format!("inspect: {text}") } else { text })
    }

    fn routes(&self, name: &str) -> Vec<String> {
        let configuration: RouteConfiguration = self.get(Kind::Route, name).unwrap();
        assert_eq!(configuration.name, name);
        assert_eq!(configuration.virtual_hosts.len(), 1);
        assert_eq!(configuration.virtual_hosts[0].domains, ["*"]);
        configuration.virtual_hosts[0].routes.iter().map(show_route).collect()
    }

    fn endpoints(&self, name: &str) -> Option<Vec<String>> {
        let assignment: ClusterLoadAssignment = self.get(Kind::Endpoints, name)?;
        assert_eq!(assignment.cluster_name, name);
        Some(assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints).map(show_endpoint).collect())
    }
}

fn chains(chains: &[FilterChain]) -> String {
    chains.iter().map(show_chain).collect::<Vec<_>>().join(" | ")
}

fn show_chain(chain: &FilterChain) -> String {
    let matching = chain.filter_chain_match.clone().unwrap_or_default();
    let mut text = String::new();
    if let Some(port) = matching.destination_port {
        text.push_str(&format!("{} ", port.value));
    }
    if !matching.application_protocols.is_empty() {
        text.push_str(&format!("{} ", matching.application_protocols.join("+")));
    }
    let Some(ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else { panic!("no filter") };
    match config.type_url.as_str() {
        envoy::HCM_TYPE_URL => match HttpConnectionManager::decode(config.value.as_slice()).unwrap().route_specifier {
            Some(RouteSpecifier::Rds(rds)) => text.push_str(&format!("http({})", rds.route_config_name)),
            Some(RouteSpecifier::RouteConfig(routes)) => {
                let routes: Vec<String> = routes.virtual_hosts[0].routes.iter().map(show_route).collect();
                text.push_str(&format!("http[{}]", routes.join("; ")));
            }
            other => panic!("{other:?}"),
        },
        _ => match TcpProxy::decode(config.value.as_slice()).unwrap().cluster_specifier {
            Some(TcpSpecifier::Cluster(cluster)) => text.push_str(&format!("tcp({cluster})")),
            other => panic!("{other:?}"),
        },
    }
    if let Some(host) = service_host(chain.metadata.as_ref()) {
        text.push_str(&format!(" of {host}"));
    }
    text
}

fn field(metadata: Option<&Metadata>, namespace: &str, field: &str) -> Option<String> {
    match metadata?.filter_metadata.get(namespace)?.fields.get(field)?.kind.clone()? {
        ValueKind::StringValue(text) => Some(text),
        other => panic!("{other:?}"),
    }
}

fn service_host(metadata: Option<&Metadata>) -> Option<String> {
    let ValueKind::ListValue(list) = metadata?.filter_metadata.get("istio")?.fields.get("services")?.kind.clone()?
    else {
        panic!("no list")
    };
    let Some(ValueKind::StructValue(service)) = list.values[0].kind.clone() else { panic!("no struct") };
    let Some(ValueKind::StringValue(host)) = service.fields["host"].kind.clone() else { panic!("no host") };
    Some(host)
}

fn show_endpoint(endpoint: &LbEndpoint) -> String {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("no endpoint") };
    let Some(address::Address::SocketAddress(socket)) = host.address.clone().unwrap().address else {
        panic!("no socket")
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("no port") };
    let metadata = endpoint.metadata.as_ref();
    let get = |namespace, name| field(metadata, namespace, name).unwrap_or_else(|| "-".into());
    format!(
        "{} {port} tls={} {} {} pod={} app={} version={}",
        socket.address,
        get("envoy.transport_socket_match", "tlsMode"),
        get("istio", "workload"),
        get("weir", "identity"),
        get("weir", "pod"),
        get("weir", "app"),
        get("weir", "version"),
    )
}

fn show_string(matcher: &StringMatcher) -> String {
    match matcher.match_pattern.clone().unwrap() {
        MatchPattern::Exact(text) => format!("={text}"),
        MatchPattern::SafeRegex(regex) => format!("~{}", regex.regex),
        other => panic!("{other:?}"),
    }
}

fn show_headers(add: &[HeaderValueOption], remove: &[String]) -> String {
    let mut list: Vec<String> = Vec::new();
    for option in add {
        let header = option.header.clone().unwrap();
        let sign = match option.append_action {
            0 => "+",
            2 => "=",
            other => panic!("{other}"),
        };
        list.push(format!("{}{sign}{}", header.key, header.value));
    }
    list.extend(remove.iter().map(|name| format!("-{name}")));
    list.join(",")
}

fn show_route(route: &Route) -> String {
    let matching = route.r#match.clone().unwrap();
    let mut text = format!("{}:", route.name);
    match matching.path_specifier.unwrap() {
        PathSpecifier::Prefix(path) => text.push_str(&format!(" prefix {path}")),
        PathSpecifier::Path(path) => text.push_str(&format!(" exact {path}")),
        PathSpecifier::PathSeparatedPrefix(path) => text.push_str(&format!(" segments {path}")),
        PathSpecifier::SafeRegex(regex) => text.push_str(&format!(" regex {}", regex.regex)),
        other => panic!("{other:?}"),
    }
    for header in &matching.headers {
        let Some(HeaderMatchSpecifier::StringMatch(value)) = &header.header_match_specifier else {
            panic!("{header:?}")
        };
        text.push_str(&format!(" [{}{}]", header.name, show_string(value)));
    }
    for query in &matching.query_parameters {
        let Some(QueryParameterMatchSpecifier::StringMatch(value)) = &query.query_parameter_match_specifier else {
            panic!("{query:?}")
        };
        text.push_str(&format!(" ?{}{}", query.name, show_string(value)));
    }
    match route.action.clone().unwrap() {
        Action::DirectResponse(response) => text.push_str(&format!(" -> {}", response.status)),
        Action::Route(action) => match action.cluster_specifier.unwrap() {
            ClusterSpecifier::Cluster(cluster) => text.push_str(&format!(" -> {cluster}")),
            ClusterSpecifier::WeightedClusters(weighted) => {
                for share in weighted.clusters {
                    text.push_str(&format!(" -> {}*{}", share.weight.unwrap_or_default().value, share.name));
                    let request = show_headers(&share.request_headers_to_add, &share.request_headers_to_remove);
                    let response = show_headers(&share.response_headers_to_add, &share.response_headers_to_remove);
                    if !(request.is_empty() && response.is_empty()) {
                        text.push_str(&format!("{{{request};{response}}}"));
                    }
                }
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    let request = show_headers(&route.request_headers_to_add, &route.request_headers_to_remove);
    let response = show_headers(&route.response_headers_to_add, &route.response_headers_to_remove);
    if !(request.is_empty() && response.is_empty()) {
        text.push_str(&format!(" {{{request};{response}}}"));
    }
    if let Some(object) = field(route.metadata.as_ref(), "weir", "object") {
        assert!(route.name.starts_with(&object));
    }
    text
}

#[test]
fn listeners_of_service_addresses() {
    let shop = Fixture::new(SHOP);
    let host = "catalog.shop.svc.cluster.local";
    assert_eq!(shop.listener("198.19.0.10:80").unwrap(), format!("http({host}:80)"));
    assert_eq!(shop.listener("[fd00::10]:80").unwrap(), format!("http({host}:80)"));
    assert_eq!(
        shop.listener("198.19.0.10:9000").unwrap(),
        format!("inspect: http/1.0+http/1.1 http({host}:9000) else tcp(outbound|9000||{host})")
    );
    assert_eq!(shop.listener("198.19.0.11:6379").unwrap(), "tcp(outbound|6379||redis.shop.svc.cluster.local)");
    assert_eq!(
        shop.listener("198.19.0.12:7000").unwrap(),
        "tcp(outbound|7000||opaque.shop.svc.cluster.local)",
        "a pod of it says that the port is opaque"
    );
    assert_eq!(shop.listener("198.19.0.10:81"), None, "no such port");
    assert_eq!(shop.listener("198.19.0.99:80"), None, "nobody has the address");
}

#[test]
fn listeners_of_pod_addresses() {
    let shop = Fixture::new(SHOP);
    assert_eq!(shop.listener("198.18.0.1:8080").unwrap(), "http(198.18.0.1:8080)", "as its Service says");
    assert_eq!(
        shop.listener("198.18.0.1:1234").unwrap(),
        "inspect: http/1.0+http/1.1 http(198.18.0.1:1234) else tcp(outbound|1234||198.18.0.1)",
        "a port that nobody lists"
    );
    assert_eq!(shop.listener("198.18.0.4:7001").unwrap(), "tcp(outbound|7001||198.18.0.4)", "opaque by annotation");
    assert_eq!(shop.routes("198.18.0.1:8080"), ["default: prefix / -> outbound|8080||198.18.0.1"]);
    let cluster: Cluster = shop.get(Kind::Cluster, "outbound|8080||198.18.0.1").unwrap();
    assert_eq!(cluster.metadata, None);
    assert_eq!(shop.endpoints("outbound|8080||198.18.0.1").unwrap().len(), 1);
    assert_eq!(shop.listener("198.18.0.8:80"), None, "the node's address is not a pod's");
    assert_eq!(shop.listener("198.18.0.9:80"), None, "a pod that has ended has no address");
}

/// The redirect lets these ports pass by the proxy: mutual TLS would meet the application, or the proxy's plaintext metrics.
#[test]
fn ports_that_are_not_redirected_are_called_in_plaintext() {
    let capture = "weir.dev/capture: '{\"version\":1,\"excludeInboundPorts\":[9100]}', weir.dev/opaque-ports: '6379'";
    let shop = Fixture::new(&SHOP.replacen("weir.dev/opaque-ports: '6379'", capture, 1));
    for (port, tls) in [(8080, "istio"), (1234, "istio"), (9100, "-"), (15020, "-"), (15021, "-"), (15090, "-")] {
        let got = shop.endpoints(&format!("outbound|{port}||198.18.0.1")).unwrap();
        assert!(got[0].starts_with(&format!("198.18.0.1 {port} tls={tls} catalog-v1;")), "{got:?}");
    }
}

#[test]
fn endpoints_from_pods_where_nobody_lists_them() {
    let shop = Fixture::new(SHOP);
    let name = "outbound|80||catalog.shop.svc.cluster.local";
    assert_eq!(
        shop.endpoints(name).unwrap(),
        [
            "198.18.0.1 8080 tls=istio catalog-v1;shop;catalog;v1;Kubernetes spiffe://cluster.local/ns/shop/sa/catalog \
             pod=catalog-v1-7c9d-a app=catalog version=v1",
            "198.18.0.2 8081 tls=- catalog-v2-1;shop;catalog;v2;Kubernetes spiffe://cluster.local/ns/shop/sa/default \
             pod=catalog-v2-1 app=catalog version=v2",
        ],
        "named ports by pod, dual-stack pods once, not the unready one"
    );
    let cluster: Cluster = shop.get(Kind::Cluster, name).unwrap();
    assert_eq!(service_host(cluster.metadata.as_ref()).unwrap(), "catalog.shop.svc.cluster.local");
    assert_eq!(cluster.connect_timeout.unwrap().seconds, 1);
    assert_eq!(shop.endpoints("outbound|81||catalog.shop.svc.cluster.local"), None);
    assert_eq!(shop.endpoints("outbound|80||nobody.shop.svc.cluster.local"), None);
    assert_eq!(shop.endpoints("outbound|7000||headless.shop.svc.cluster.local").unwrap().len(), 1);
}

#[test]
fn endpoints_from_slices() {
    let mut shop = Fixture::new(SHOP);
    let slice = |conditions: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: redis-x, namespace: shop, labels: \
             {{kubernetes.io/service-name: redis}}}}\naddressType: IPv4\nports: [{{name: redis, port: 6380}}]\nendpoints:\n- \
             {{addresses: [198.18.0.1], conditions: {conditions}, targetRef: {{kind: Pod, name: catalog-v1-7c9d-a}}}}\n- \
             {{addresses: [198.18.0.77], conditions: {{ready: false, serving: true, terminating: true}}}}\n- {{addresses: \
             [198.18.0.78], conditions: {{ready: false}}}}\n"
        )
    };
    let name = "outbound|6379||redis.shop.svc.cluster.local";
    assert_eq!(shop.endpoints(name).unwrap(), [""; 0], "a Service without pods has no endpoint, but exists");
    shop.apply(&slice("{ready: true}"));
    let got = shop.endpoints(name).unwrap();
    assert_eq!(got.len(), 1);
    assert!(got[0].starts_with("198.18.0.1 6380 tls=istio catalog-v1;shop"), "{got:?}");
    shop.apply(&slice("{ready: false}"));
    assert_eq!(
        shop.endpoints(name).unwrap(),
        ["198.18.0.77 6380 tls=- - - pod=- app=- version=-"],
        "serving while terminating only where none is ready"
    );
}

#[test]
fn who_has_an_address() {
    let shop = Fixture::new(SHOP);
    let got = shop.endpoints("weir/workload/198.18.0.1").unwrap();
    assert!(got[0].starts_with("198.18.0.1 0 tls=istio catalog-v1;shop;catalog;v1"), "{got:?}");
    assert!(shop.endpoints("weir/workload/fd00::1").is_some());
    assert!(shop.endpoints("weir/workload/198.18.0.99").is_none());
}

#[test]
fn a_pods_own_ports() {
    let shop = Fixture::new(SHOP);
    let listener: Listener = shop.get(Kind::Listener, "weir/inbound").unwrap();
    assert_eq!(listener.traffic_direction, i32::from(TrafficDirection::Inbound));
    assert_eq!(field(listener.metadata.as_ref(), "weir", "mtls").unwrap(), "PERMISSIVE");
    assert_eq!(
        chains(&listener.filter_chains).split(" | ").collect::<Vec<_>>(),
        [
            "6379 tcp(inbound|6379||)",
            "8080 http[default: prefix / -> inbound|8080||] of catalog.shop.svc.cluster.local",
            "9000 http/1.0+http/1.1 http[default: prefix / -> inbound|9000||] of catalog.shop.svc.cluster.local",
            "9000 tcp(inbound|9000||) of catalog.shop.svc.cluster.local",
            "9999 http/1.0+http/1.1 http[default: prefix / -> inbound|9999||]",
            "9999 tcp(inbound|9999||)",
        ]
    );
}

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop, creationTimestamp: '2026-01-02T00:00:00Z'}
spec:
  parentRefs: [{kind: Service, group: '', name: catalog, port: 80}]
  rules:
";

#[test]
fn without_rules_everything_goes_to_the_service() {
    let shop = Fixture::new(SHOP);
    let host = "catalog.shop.svc.cluster.local";
    assert_eq!(shop.routes(&format!("{host}:80")), [format!("default: prefix / -> outbound|80||{host}")]);
}

#[test]
fn matches_filters_weights_and_their_order() {
    let mut shop = Fixture::new(SHOP);
    shop.apply(&format!(
        "{ROUTE}
  - backendRefs: [{{name: v1, port: 80, weight: 90}}, {{name: v2, port: 80, weight: 10}}]
  - matches:
    - headers: [{{name: X-Canary, value: 'yes'}}]
    - path: {{type: RegularExpression, value: '/v[0-9]+'}}
      method: POST
    - path: {{value: /api/}}
      queryParams: [{{name: Q, value: '1'}}, {{name: r, type: RegularExpression, value: 'a|b'}}]
    - path: {{type: Exact, value: /health}}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: X-Set, value: a}}], add: [{{name: x-add, value: b}}], remove: [X-Gone]}}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{add: [{{name: x-served-by, value: weir}}]}}
    backendRefs:
    - name: v2
      port: 80
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {{set: [{{name: x-backend, value: v2}}]}}
"
    ));
    let (v1, v2) = ("outbound|80||v1.shop.svc.cluster.local", "outbound|80||v2.shop.svc.cluster.local");
    let to_v2 = format!("-> 1*{v2}{{x-backend=v2;}} {{x-set=a,x-add+b,-x-gone;x-served-by+weir}}");
    assert_eq!(
        shop.routes("catalog.shop.svc.cluster.local:80"),
        [
            format!("HTTPRoute/shop/catalog/1/3: exact /health {to_v2}"),
            format!("HTTPRoute/shop/catalog/1/1: regex /v[0-9]+ [:method=POST] {to_v2}"),
            format!("HTTPRoute/shop/catalog/1/2: segments /api ?Q=1 ?r~a|b {to_v2}"),
            format!("HTTPRoute/shop/catalog/1/0: prefix / [x-canary=yes] {to_v2}"),
            format!("HTTPRoute/shop/catalog/0/0: prefix / -> 90*{v1} -> 10*{v2}"),
        ]
    );
    let host = "catalog.shop.svc.cluster.local";
    assert_eq!(
        shop.routes(&format!("{host}:9000")),
        [format!("default: prefix / -> outbound|9000||{host}")],
        "the rules are for port 80 only"
    );
}

#[test]
fn the_older_object_wins_ties() {
    let mut shop = Fixture::new(SHOP);
    shop.apply(&format!("{ROUTE}  - backendRefs: [{{name: v1, port: 80}}]\n"));
    shop.apply(
        &format!("{ROUTE}  - backendRefs: [{{name: v2, port: 80}}]\n")
            .replace("name: catalog, namespace", "name: zzz, namespace")
            .replace("01-02", "01-01"),
    );
    let names: Vec<String> = shop.routes("catalog.shop.svc.cluster.local:80");
    assert!(names[0].starts_with("HTTPRoute/shop/zzz/0/0"), "{names:?}");
    assert!(names[1].starts_with("HTTPRoute/shop/catalog/0/0"), "{names:?}");
}

#[test]
fn a_bad_backend_answers_500_for_its_share() {
    let mut shop = Fixture::new(SHOP);
    let name = "catalog.shop.svc.cluster.local:80";
    let rule = |backends: &str| format!("{ROUTE}  - backendRefs: {backends}\n");
    for backends in [
        "[]",
        "[{name: nope, port: 80}]",
        "[{name: v1, port: 81}]",
        "[{name: v1, port: 80, weight: 0}]",
        "[{name: far, port: 80}]",
    ] {
        shop.apply(&rule(backends));
        assert_eq!(shop.routes(name), ["HTTPRoute/shop/catalog/0/0: prefix / -> 500"], "{backends}");
    }
    shop.apply(&rule("[{name: v1, port: 80, weight: 3}, {name: nope, port: 80}]"));
    let want = format!(
        "HTTPRoute/shop/catalog/0/0: prefix / -> 3*outbound|80||v1.shop.svc.cluster.local -> 1*{BAD_BACKEND_CLUSTER}"
    );
    assert_eq!(shop.routes(name), [want]);
}

#[test]
fn versions_are_of_the_content_alone() {
    let key = |kind, name: &str| Key::new(kind, Arc::from(name), &Name::new("shop", "catalog-v1-7c9d-a"));
    let keys = [
        key(Kind::Listener, "weir/inbound"),
        key(Kind::Endpoints, "outbound|80||catalog.shop.svc.cluster.local"),
        key(Kind::Cluster, "outbound|80||catalog.shop.svc.cluster.local"),
        key(Kind::Route, "catalog.shop.svc.cluster.local:80"),
    ];
    let documents: Vec<&str> = SHOP.split("\n---\n").collect();
    let reversed: Vec<&str> = documents.iter().rev().copied().collect();
    let (a, b) = (Fixture::new(SHOP), Fixture::new(&reversed.join("\n---\n")));
    for _ in 0..20 {
        for key in &keys {
            let of = |fixture: &Fixture| resource(&fixture.mesh, &fixture.world, key, &View::default());
            assert_eq!(of(&a), of(&b), "{key:?}");
        }
    }
}
