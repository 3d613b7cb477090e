//! Policies for traffic as a proxy is told them: Istio's DestinationRule and Weir's TrafficPolicy.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[path = "support/shop.rs"]
#[allow(unreachable_pub)] // shared by files of this folder
mod shop;

use std::sync::Arc;

use prost::Message as _;
use shop::Shop;
use weir_config::model::Name;
use weir_control::{
    translate::{Key, Of, Views, resource},
    world::Subject,
};
use weir_xds::{
    Kind,
    envoy::{
        self,
        buffer::{BufferPerRoute, buffer_per_route},
        cluster::{
            Cluster,
            cluster::{LbConfig, LbPolicy, common_lb_config::LocalityConfigSpecifier},
        },
        common_fault::fault_delay::FaultDelaySecifier,
        core::health_check::HealthChecker,
        endpoint::ClusterLoadAssignment,
        fault::{HttpFault, fault_abort::ErrorType},
        kinds::hash_policy::PolicySpecifier as StreamKey,
        listener::{Listener, filter::ConfigType},
        local_ratelimit::LocalRateLimit,
        protobuf::Duration,
        route::{Route, RouteConfiguration, route::Action, route_action::hash_policy::PolicySpecifier},
        tcp_proxy::TcpProxy,
        upstream_http::{HttpProtocolOptions, http_protocol_options::UpstreamProtocolOptions},
    },
};

const CLUSTER: &str = "outbound|80||web.shop.svc.cluster.local";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 198.19.0.10, ports: [{name: http, port: 80}, {name: http-alt, port: 8080}, {name: tcp, port: 90}, {name: any, port: 91}]}
";

/// These Services, and what a test is about.
fn shop_with(text: &str) -> Shop {
    Shop::new(&[SERVICE, text])
}

impl Shop {
    fn get<T: prost::Message + Default>(&self, kind: Kind, name: &str, caller: &Name) -> T {
        let key = Key::new(kind, Arc::from(name), caller);
        let view = Views::of(&self.world, kind, &Of::parse(&self.mesh, &key).unwrap()).by(caller);
        T::decode(resource(&self.mesh, &self.world, &key, &view).unwrap().body).unwrap()
    }

    fn cluster_for(&self, name: &str, namespace: &str) -> Cluster {
        self.get(Kind::Cluster, name, &Name::new(namespace, "client"))
    }

    fn cluster(&self) -> Cluster {
        self.cluster_for(CLUSTER, "shop")
    }

    fn routes(&self) -> Vec<Route> {
        let name = "web.shop.svc.cluster.local:80";
        let configuration: RouteConfiguration = self.get(Kind::Route, name, &Name::new("shop", "client"));
        configuration.virtual_hosts[0].routes.clone()
    }

    fn config<T: prost::Message + Default>(&self, route: usize, filter: &str) -> Option<T> {
        let config = self.routes()[route].typed_per_filter_config.get(filter)?.clone();
        Some(T::decode(config.value.as_slice()).unwrap())
    }
}

fn rule_in(namespace: &str, host: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {{name: web, namespace: {namespace}}}\nspec:\n  host: \
         {host}\n  trafficPolicy:\n    {policy}\n"
    )
}

fn rule(policy: &str) -> String {
    rule_in("shop", "web", policy)
}

fn policy(target: &str, rest: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n  \
         {rest}\n"
    )
}

fn seconds(duration: Option<&Duration>) -> f64 {
    duration.map_or(-1.0, |duration| duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

#[test]
fn without_policies_nothing_is_said() {
    let cluster = shop_with("").cluster();
    assert_eq!(cluster.lb_policy, i32::from(LbPolicy::LeastRequest));
    assert!(
        cluster.circuit_breakers.is_none() && cluster.outlier_detection.is_none() && cluster.health_checks.is_empty()
    );
    assert!(cluster.lb_config.is_none() && cluster.common_lb_config.is_none());
    assert!(cluster.typed_extension_protocol_options.is_empty());
}

#[test]
fn balancing() {
    let with = |balancer: &str| shop_with(&rule(&format!("loadBalancer: {{{balancer}}}"))).cluster();
    for (text, policy) in [
        ("simple: LEAST_REQUEST", LbPolicy::LeastRequest),
        ("simple: LEAST_CONN", LbPolicy::LeastRequest),
        ("simple: ROUND_ROBIN", LbPolicy::RoundRobin),
        ("simple: RANDOM", LbPolicy::Random),
        ("consistentHash: {useSourceIp: true}", LbPolicy::RingHash),
        ("consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}", LbPolicy::Maglev),
    ] {
        assert_eq!(with(text).lb_policy, i32::from(policy), "{text}");
    }
    let Some(LbConfig::RingHashLbConfig(ring)) =
        with("consistentHash: {httpHeaderName: x, ringHash: {minimumRingSize: 2048}}").lb_config
    else {
        panic!("no ring")
    };
    assert_eq!(ring.minimum_ring_size.unwrap().value, 2048);
    let text = "simple: ROUND_ROBIN, warmup: {duration: 60s, minimumPercent: 20, aggression: 1.5}";
    let Some(LbConfig::RoundRobinLbConfig(config)) = with(text).lb_config else { panic!("no warm-up") };
    let slow = config.slow_start_config.unwrap();
    assert_eq!(seconds(slow.slow_start_window.as_ref()), 60.0);
    assert_eq!((slow.min_weight_percent.unwrap().value, slow.aggression.unwrap().default_value), (20.0, 1.5));
}

#[test]
fn the_key_of_an_endpoint_stands_in_every_route_to_it() {
    let key = |shop: &Shop, route: usize| match shop.routes().remove(route).action {
        Some(Action::Route(action)) => {
            action.hash_policy.into_iter().map(|policy| policy.policy_specifier.unwrap()).collect()
        }
        other => panic!("{other:?}"),
    };
    let mut shop = shop_with(&rule("loadBalancer: {consistentHash: {httpCookie: {name: c, path: /, ttl: 1h}}}"));
    let keys: Vec<PolicySpecifier> = key(&shop, 0);
    let [PolicySpecifier::Cookie(cookie)] = keys.as_slice() else { panic!("{keys:?}") };
    assert_eq!((cookie.name.as_str(), cookie.path.as_str(), seconds(cookie.ttl.as_ref())), ("c", "/", 3600.0));
    shop.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefs: [{kind: Service, group: '', name: web}]\n  rules: [{backendRefs: [{name: web, port: 80}]}]\n",
    );
    assert_eq!(key(&shop, 0).len(), 1);
    let touched = shop.apply(&rule("loadBalancer: {consistentHash: {httpQueryParameterName: q}}"));
    assert!(touched.contains(&Subject::Routes(Name::new("shop", "web"))), "{touched:?}");
    let keys: Vec<PolicySpecifier> = key(&shop, 0);
    assert!(matches!(keys.as_slice(), [PolicySpecifier::QueryParameter(query)] if query.name == "q"), "{keys:?}");
}

/// Streams have the source address for a key or none, and a listener says so to those whom the rule is for.
#[test]
fn the_key_of_streams_is_where_they_come_from() {
    let source = |shop: &Shop, port: u16, namespace: &str| {
        let name = format!("weir/outbound/198.19.0.10:{port}");
        let listener: Listener = shop.get(Kind::Listener, &name, &Name::new(namespace, "client"));
        let last = listener.default_filter_chain.as_ref().unwrap_or(&listener.filter_chains[0]);
        let Some(ConfigType::TypedConfig(config)) = &last.filters[0].config_type else { panic!("no filter") };
        assert_eq!(config.type_url, envoy::TCP_PROXY_TYPE_URL);
        let policy = TcpProxy::decode(config.value.as_slice()).unwrap().hash_policy;
        assert!(policy.iter().all(|one| matches!(one.policy_specifier, Some(StreamKey::SourceIp(_)))));
        policy.len()
    };
    let mut shop = shop_with(&rule("loadBalancer: {consistentHash: {useSourceIp: true}}"));
    assert_eq!([90, 91].map(|port| source(&shop, port, "shop")), [1, 1]);
    let touched = shop.apply(&rule("loadBalancer: {consistentHash: {httpHeaderName: x}}"));
    assert!(touched.contains(&Subject::Address("198.19.0.10".parse().unwrap())), "{touched:?}");
    assert_eq!([90, 91].map(|port| source(&shop, port, "shop")), [0, 0]);
    shop.apply(&rule_in("other", "web.shop.svc.cluster.local", "loadBalancer: {consistentHash: {useSourceIp: true}}"));
    assert_eq!(["shop", "other", "third"].map(|namespace| source(&shop, 90, namespace)), [0, 1, 0]);
}

#[test]
fn limits_of_connections_and_requests() {
    let cluster = shop_with(&rule(
        "connectionPool: {tcp: {maxConnections: 5, connectTimeout: 250ms}, http: {http1MaxPendingRequests: 6, http2MaxRequests: 7, maxRetries: 0, maxRequestsPerConnection: 9, idleTimeout: 1m}}",
    ))
    .cluster();
    assert_eq!(seconds(cluster.connect_timeout.as_ref()), 0.25);
    let limits = &cluster.circuit_breakers.as_ref().unwrap().thresholds[0];
    let value = |limit: &Option<weir_xds::envoy::protobuf::UInt32Value>| limit.as_ref().unwrap().value;
    assert_eq!(
        [
            value(&limits.max_connections),
            value(&limits.max_pending_requests),
            value(&limits.max_requests),
            value(&limits.max_retries)
        ],
        [5, 6, 7, 0]
    );
    let options = &cluster.typed_extension_protocol_options[envoy::HTTP_OPTIONS];
    let options = HttpProtocolOptions::decode(options.value.as_slice()).unwrap();
    assert!(matches!(options.upstream_protocol_options, Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_))));
    let common = options.common_http_protocol_options.unwrap();
    assert_eq!((seconds(common.idle_timeout.as_ref()), common.max_requests_per_connection.unwrap().value), (60.0, 9));
    let only = shop_with(&rule("connectionPool: {tcp: {maxConnections: 5}}")).cluster();
    let limits = &only.circuit_breakers.unwrap().thresholds[0];
    assert_eq!(value(&limits.max_requests), u32::MAX, "Envoy would take 1,024");
}

#[test]
fn outliers() {
    let text = "outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4, interval: 5s, baseEjectionTime: 1m, maxEjectionPercent: 50, minHealthPercent: 30}";
    let cluster = shop_with(&rule(text)).cluster();
    let found = cluster.outlier_detection.unwrap();
    let value = |number: Option<weir_xds::envoy::protobuf::UInt32Value>| number.map(|number| number.value);
    assert_eq!((value(found.consecutive_5xx), value(found.enforcing_consecutive_5xx)), (None, Some(0)));
    assert_eq!(
        (value(found.consecutive_gateway_failure), value(found.enforcing_consecutive_gateway_failure)),
        (Some(3), Some(100))
    );
    assert_eq!(
        (found.split_external_local_origin_errors, value(found.consecutive_local_origin_failure)),
        (true, Some(4))
    );
    assert_eq!((seconds(found.interval.as_ref()), seconds(found.base_ejection_time.as_ref())), (5.0, 60.0));
    assert_eq!(value(found.max_ejection_percent), Some(50));
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 30.0);
}

#[test]
fn a_port_has_its_own_and_another_namespace_its_own() {
    let mut shop = shop_with(&rule(
        "loadBalancer: {simple: RANDOM}\n    portLevelSettings: [{port: {number: 8080}, loadBalancer: {simple: ROUND_ROBIN}}]",
    ));
    let alt = "outbound|8080||web.shop.svc.cluster.local";
    assert_eq!(shop.cluster().lb_policy, i32::from(LbPolicy::Random));
    assert_eq!(shop.cluster_for(alt, "shop").lb_policy, i32::from(LbPolicy::RoundRobin));
    let touched =
        shop.apply(&rule_in("other", "web.shop.svc.cluster.local", "connectionPool: {tcp: {maxConnections: 1}}"));
    assert!(touched.contains(&Subject::Service(Name::new("shop", "web"))));
    let theirs = shop.cluster_for(CLUSTER, "other");
    assert!(theirs.circuit_breakers.is_some());
    assert_eq!(theirs.lb_policy, i32::from(LbPolicy::Random), "what theirs leaves out is as the Service's own says");
    assert!(shop.cluster().circuit_breakers.is_none() && shop.cluster_for(CLUSTER, "third").circuit_breakers.is_none());
}

#[test]
fn places_by_the_callers_own() {
    let pod = |name: &str, node: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\nspec: {{nodeName: {node}, containers: [{{name: a, image: a}}]}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
        )
    };
    let node = |name: &str, region: &str, zone: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let service = SERVICE.replace("clusterIP:", "selector: {app: web}, clusterIP:");
    let world = [
        service,
        node("n1", "eu", "a"),
        node("n2", "eu", "b"),
        node("n3", "us", "a"),
        pod("p1", "n1", "198.18.0.1"),
        pod("p2", "n2", "198.18.0.2"),
        pod("p3", "n3", "198.18.0.3"),
    ]
    .join("\n---\n");
    let mut shop = shop_with(&world);
    let seen = |shop: &Shop, caller: &str| -> Vec<(String, u32, Option<u32>)> {
        let endpoints: ClusterLoadAssignment = shop.get(Kind::Endpoints, CLUSTER, &Name::new("shop", caller));
        endpoints
            .endpoints
            .iter()
            .map(|place| {
                let locality = place.locality.clone().unwrap();
                (
                    format!("{}/{}", locality.region, locality.zone),
                    place.priority,
                    place.load_balancing_weight.map(|weight| weight.value),
                )
            })
            .collect()
    };
    let priorities =
        |shop: &Shop, caller: &str| seen(shop, caller).into_iter().map(|(_, priority, _)| priority).collect::<Vec<_>>();
    assert_eq!(priorities(&shop, "p1"), [0, 0, 0], "without a policy all are alike");
    shop.apply(&rule("loadBalancer: {localityLbSetting: {}}"));
    assert_eq!(priorities(&shop, "p1"), [0, 1, 2]);
    assert_eq!(priorities(&shop, "p3"), [1, 1, 0]);
    assert_eq!(priorities(&shop, "nobody"), [0, 0, 0]);
    shop.apply(&rule("loadBalancer: {localityLbSetting: {distribute: [{from: eu/*, to: {'eu/a': 70, 'us/*': 30}}]}}"));
    let weights: Vec<Option<u32>> = seen(&shop, "p1").into_iter().map(|(_, _, weight)| weight).collect();
    assert_eq!(weights, [Some(70_000), None, Some(30_000)]);
    let config = shop.cluster().common_lb_config.unwrap().locality_config_specifier;
    assert!(matches!(config, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))), "{config:?}");
    shop.apply(&rule("loadBalancer: {localityLbSetting: {enabled: false}}"));
    assert_eq!(priorities(&shop, "p1"), [0, 0, 0]);
}

#[test]
fn endpoints_are_asked_and_retries_are_bounded() {
    let text = policy(
        "{kind: Service, name: web}",
        "healthChecks:
  - {type: HTTP, interval: 5s, timeout: 500ms, http: {path: /healthz, statuses: [200, 204]}}
  - {type: GRPC, unhealthyThreshold: 2, grpc: {service: a.B}}
  - {type: TCP}
  retryBudget: {percent: 12.5, minConcurrency: 1}",
    );
    let cluster = shop_with(&text).cluster();
    let [http, grpc, tcp] = cluster.health_checks.as_slice() else { panic!("{:?}", cluster.health_checks) };
    assert_eq!((seconds(http.interval.as_ref()), seconds(http.timeout.as_ref())), (5.0, 0.5));
    assert_eq!((seconds(tcp.interval.as_ref()), seconds(tcp.timeout.as_ref())), (10.0, 1.0));
    let Some(HealthChecker::HttpHealthCheck(check)) = &http.health_checker else { panic!("{http:?}") };
    let statuses: Vec<(i64, i64)> = check.expected_statuses.iter().map(|range| (range.start, range.end)).collect();
    assert_eq!((check.path.as_str(), statuses.as_slice()), ("/healthz", &[(200, 201), (204, 205)][..]));
    assert!(matches!(&grpc.health_checker, Some(HealthChecker::GrpcHealthCheck(check)) if check.service_name == "a.B"));
    assert_eq!(grpc.unhealthy_threshold.unwrap().value, 2);
    assert!(matches!(tcp.health_checker, Some(HealthChecker::TcpHealthCheck(_))));
    let budget = cluster.circuit_breakers.unwrap().thresholds[0].retry_budget.unwrap();
    assert_eq!((budget.budget_percent.unwrap().value, budget.min_retry_concurrency.unwrap().value), (12.5, 1));
}

#[test]
fn faults_rates_and_sizes_by_service_route_and_rule() {
    let text = policy(
        "{kind: Service, name: web}",
        "fault: {delay: {fixedDelay: 2s, percent: 0.1}, abort: {httpStatus: 503, percent: 25}}
  rateLimit: {requests: 10, interval: 1m, burst: 20}
  limits: {requestBodyBytes: 1048576}",
    );
    let mut shop = shop_with(&text);
    let fault: HttpFault = shop.config(0, envoy::FAULT).unwrap();
    let (delay, abort) = (fault.delay.unwrap(), fault.abort.unwrap());
    assert_eq!((delay.percentage.unwrap().numerator, abort.percentage.unwrap().numerator), (1000, 250_000));
    let Some(FaultDelaySecifier::FixedDelay(time)) = delay.fault_delay_secifier else { panic!("no time") };
    assert_eq!((seconds(Some(&time)), abort.error_type), (2.0, Some(ErrorType::HttpStatus(503))));
    let limit: LocalRateLimit = shop.config(0, envoy::LOCAL_RATE_LIMIT).unwrap();
    let bucket = limit.token_bucket.unwrap();
    assert_eq!(
        (bucket.max_tokens, bucket.tokens_per_fill.unwrap().value, seconds(bucket.fill_interval.as_ref())),
        (20, 10, 60.0)
    );
    assert!(limit.filter_enabled.is_some() && limit.filter_enforced.is_some(), "unset is never for Envoy");
    let buffer: BufferPerRoute = shop.config(0, envoy::BUFFER).unwrap();
    assert!(
        matches!(buffer.r#override, Some(buffer_per_route::Override::Buffer(buffer)) if buffer.max_request_bytes.unwrap().value == 1_048_576)
    );
    let route = |name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: web}}]\n  rules:\n  - {{name: one, matches: [{{path: {{value: /a}}}}], backendRefs: [{{name: web, port: 80}}]}}\n  - backendRefs: [{{name: web, port: 80}}]\n"
        )
    };
    shop.apply(&route("r"));
    let touched = shop.apply(
        &policy(
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: one}",
            "fault: {abort: {grpcStatus: 14}}",
        )
        .replace("name: p,", "name: q,"),
    );
    assert!(touched.contains(&Subject::Routes(Name::new("shop", "web"))), "{touched:?}");
    let abort = |route: usize| shop.config::<HttpFault>(route, envoy::FAULT).unwrap().abort.unwrap().error_type;
    assert_eq!(abort(0), Some(ErrorType::GrpcStatus(14)), "the rule's own goes before the Service's");
    assert_eq!(abort(1), Some(ErrorType::HttpStatus(503)));
    assert!(shop.config::<HttpFault>(0, envoy::FAULT).unwrap().delay.is_some(), "what it leaves out stays");
}

#[test]
fn what_is_wrong_is_refused_by_field() {
    let wrong = |text: &str| -> Vec<String> {
        let Err(problems) = weir_config::parse("r.yaml", text) else { panic!("accepted: {text}") };
        problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
    };
    let service = "{kind: Service, name: web}";
    let tp = |rest: &str| policy(service, rest);
    let at = "spec.trafficPolicy";
    for (text, want) in [
        (
            rule("loadBalancer: {simple: PASSTHROUGH}"),
            format!("{at}.loadBalancer.simple: PASSTHROUGH is not supported"),
        ),
        (rule("loadBalancer: {simple: BEST}"), format!("{at}.loadBalancer.simple: unknown variant `BEST`")),
        (rule("loadBalancer: {consistentHash: {}}"), format!("{at}.loadBalancer.consistentHash: needs exactly one of")),
        (
            rule("loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: a}}"),
            format!("{at}.loadBalancer.consistentHash: needs exactly one of"),
        ),
        (
            rule("loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 10}}}"),
            format!("{at}.loadBalancer.consistentHash.maglev.tableSize: is no prime"),
        ),
        (
            rule("loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 99999999999}}"),
            format!("{at}.loadBalancer.consistentHash.minimumRingSize: 99999999999 is not a size"),
        ),
        (rule("loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}"), format!("{at}.loadBalancer: has a warm-up")),
        (rule("loadBalancer: {warmup: {}}"), format!("{at}.loadBalancer.warmup.duration: is missing")),
        (
            rule("loadBalancer: {localityLbSetting: {distribute: [{from: '*', to: {a: 99}}]}}"),
            format!("{at}.loadBalancer.localityLbSetting.distribute[0].to: does not make up 100"),
        ),
        (
            rule("loadBalancer: {localityLbSetting: {distribute: [{from: 'a/*/b', to: {a: 100}}]}}"),
            format!("{at}.loadBalancer.localityLbSetting.distribute[0].from: \"a/*/b\" is no place"),
        ),
        (
            rule("loadBalancer: {localityLbSetting: {failoverPriority: [a]}}"),
            format!("{at}.loadBalancer.localityLbSetting.failoverPriority: is not supported"),
        ),
        (
            rule("connectionPool: {tcp: {maxConnections: 0}}"),
            format!("{at}.connectionPool.tcp.maxConnections: 0 is not"),
        ),
        (
            rule("connectionPool: {tcp: {maxConnections: 4294967296}}"),
            format!("{at}.connectionPool.tcp.maxConnections: 4294967296 is not"),
        ),
        (
            rule("connectionPool: {tcp: {connectTimeout: 0s}}"),
            format!("{at}.connectionPool.tcp.connectTimeout: \"0s\""),
        ),
        (
            rule("connectionPool: {tcp: {tcpKeepalive: {}}}"),
            format!("{at}.connectionPool.tcp.tcpKeepalive: is not supported"),
        ),
        (
            rule("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}"),
            format!("{at}.connectionPool.http.h2UpgradePolicy: is not"),
        ),
        (
            rule("outlierDetection: {consecutiveLocalOriginFailures: 3}"),
            format!("{at}.outlierDetection.consecutiveLocalOriginFailures: counts only with"),
        ),
        (rule("outlierDetection: {maxEjectionPercent: 101}"), format!("{at}.outlierDetection.maxEjectionPercent: 101")),
        (rule("tls: {mode: DISABLE}"), format!("{at}.tls: is not supported")),
        (rule("loadBalancer: {simpel: RANDOM}"), format!("{at}.loadBalancer.simpel: is not a field")),
        (
            rule("portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]"),
            format!("{at}.portLevelSettings[1].port.number: comes twice"),
        ),
        (rule_in("shop", "'*.example'", "{}"), "spec.host: \"*.example\" is no Service".into()),
        (rule_in("shop", "a.example.com", "{}"), "spec.host: \"a.example.com\" is no Service".into()),
        (
            rule("{}").replace("trafficPolicy:", "subsets: [{name: a}]\n  trafficPolicy:"),
            "spec.subsets: is not supported".into(),
        ),
        (tp("healthChecks: []"), "spec: says nothing".into()),
        (tp("healthChecks: [{type: TCP, http: {}}]"), "spec.healthChecks[0].http: does not belong".into()),
        (
            tp("healthChecks: [{type: HTTP, http: {path: a}}]"),
            "spec.healthChecks[0].http.path: \"a\" is no path".into(),
        ),
        (tp("healthChecks: [{type: TCP, interval: 1ms}]"), "spec.healthChecks[0].interval: is not from".into()),
        (tp("fault: {}"), "spec.fault: is empty".into()),
        (tp("fault: {abort: {}}"), "spec.fault.abort: needs exactly one".into()),
        (tp("fault: {abort: {httpStatus: 99}}"), "spec.fault.abort.httpStatus: 99 is not".into()),
        (tp("fault: {delay: {fixedDelay: 1s, percent: 101}}"), "spec.fault.delay.percent: 101 is not a share".into()),
        (tp("rateLimit: {requests: 0}"), "spec.rateLimit.requests: 0 is not".into()),
        (tp("rateLimit: {requests: 5, burst: 1}"), "spec.rateLimit.burst: is less".into()),
        (tp("limits: {requestBodyBytes: 4294967296}"), "spec.limits.requestBodyBytes: 4294967296".into()),
        (policy("", "rateLimit: {requests: 1}"), "spec.targetRefs: is empty".into()),
        (policy("{kind: Pod, name: a}", "rateLimit: {requests: 1}"), "spec.targetRefs[0].kind: \"Pod\"".into()),
        (
            policy(&format!("{service}, {service}"), "rateLimit: {requests: 1}"),
            "spec.targetRefs[1]: is the same".into(),
        ),
        (
            policy("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}", "healthChecks: [{type: TCP}]"),
            "spec.targetRefs[0].kind: is a route".into(),
        ),
    ] {
        let errors = wrong(&text);
        assert!(errors.iter().any(|error| error.starts_with(&want)), "{text}\n{errors:#?}\nwant {want}");
    }
}

#[test]
fn a_policy_for_what_is_not_there_is_told() {
    let shop = shop_with(&policy(
        "{kind: Service, name: nobody}, {group: gateway.networking.k8s.io, kind: GRPCRoute, name: r}",
        "rateLimit: {requests: 1}",
    ));
    let lines: Vec<String> = shop.world.policies_of_nothing().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with("there is no GRPCRoute/shop/r") && lines[1].starts_with("there is no Service shop/nobody"),
        "{lines:?}"
    );
}
