//! Rules for requests and streams as a proxy is told them: all that a rule can do, whom it is for, and what goes before what.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[path = "support/shop.rs"]
#[allow(unreachable_pub)] // shared by files of this folder
mod shop;

use std::{collections::HashSet, sync::Arc};

use prost::Message as _;
use shop::Shop;
use weir_config::model::Name;
use weir_control::{
    translate::{Key, Of, Views, resource},
    world::Subject,
};
use weir_xds::{
    BAD_BACKEND_CLUSTER, Kind,
    envoy::{
        self,
        cookie_session::CookieBasedSessionState,
        cors::CorsPolicy,
        listener::{FilterChain, Listener, filter::ConfigType},
        matcher::string_matcher::MatchPattern,
        protobuf::Duration,
        route::{
            RedirectAction, Route, RouteAction, RouteConfiguration, redirect_action::PathRewriteSpecifier,
            redirect_action::SchemeRewriteSpecifier, route::Action, route_action::ClusterSpecifier,
            route_action::HostRewriteSpecifier, route_match::PathSpecifier,
        },
        stateful_session::{StatefulSessionPerRoute, stateful_session_per_route::Override},
        tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier as TcpSpecifier},
    },
};

const HOST: &str = "catalog.shop.svc.cluster.local";
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 198.19.0.10, ports: [{name: http, port: 80}, {name: http-alt, port: 8080}, {name: any, port: 9000}, {name: tcp, port: 6379}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {clusterIP: 198.19.0.11, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 198.19.0.12, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 198.19.0.13, ports: [{port: 80}]}
";

fn cluster(name: &str) -> String {
    format!("outbound|80||{name}.shop.svc.cluster.local")
}

/// A route of a kind, in a namespace, with what follows `spec:`.
fn route(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \
         '2026-01-01T00:00:00Z'}}\nspec:\n{spec}\n"
    )
}

fn parent(port: &str) -> String {
    format!("  parentRefs: [{{kind: Service, group: '', name: catalog, namespace: shop{port}}}]\n")
}

/// An HTTPRoute of the Service's own namespace, for port 80, with this rule.
fn rule(rule: &str) -> String {
    route("HTTPRoute", "rules", "shop", &format!("{}  rules:\n  - {rule}", parent(", port: 80")))
}

/// These Services, and what a test is about.
fn shop_with(text: &str) -> Shop {
    Shop::new(&[SERVICES, text])
}

impl Shop {
    fn get<T: prost::Message + Default>(&self, kind: Kind, name: &str, caller: &str) -> Option<T> {
        let pod = Name::new(caller, "client");
        let key = Key::new(kind, Arc::from(name), &pod);
        let view = Views::of(&self.world, kind, &Of::parse(&self.mesh, &key)?).by(&pod);
        resource(&self.mesh, &self.world, &key, &view).map(|resource| T::decode(resource.body).unwrap())
    }

    fn routes_for(&self, port: u16, caller: &str) -> Vec<Route> {
        let configuration: RouteConfiguration = self.get(Kind::Route, &format!("{HOST}:{port}"), caller).unwrap();
        configuration.virtual_hosts[0].routes.clone()
    }

    fn routes(&self) -> Vec<Route> {
        self.routes_for(80, "shop")
    }

    fn names(&self, port: u16, caller: &str) -> Vec<String> {
        self.routes_for(port, caller).into_iter().map(|route| route.name).collect()
    }

    fn forward(&self) -> RouteAction {
        match self.routes().remove(0).action {
            Some(Action::Route(action)) => action,
            other => panic!("{other:?}"),
        }
    }

    fn redirect(&self) -> RedirectAction {
        match self.routes().remove(0).action {
            Some(Action::Redirect(action)) => action,
            other => panic!("{other:?}"),
        }
    }

    /// Chains of a listener: `SERVER_NAMES -> SHARE*CLUSTER`.
    fn streams(&self, port: u16, caller: &str) -> Vec<String> {
        let name = format!("weir/outbound/198.19.0.10:{port}");
        let listener: Listener = self.get(Kind::Listener, &name, caller).unwrap();
        let inspects = |name| listener.listener_filters.iter().any(|filter| filter.name == name);
        let named = listener
            .filter_chains
            .iter()
            .any(|chain| chain.filter_chain_match.as_ref().is_some_and(|matching| !matching.server_names.is_empty()));
        assert_eq!(inspects(envoy::TLS_INSPECTOR), named);
        assert!(!inspects(envoy::HTTP_INSPECTOR) && listener.default_filter_chain.is_none());
        listener.filter_chains.iter().map(show_chain).collect()
    }
}

fn show_chain(chain: &FilterChain) -> String {
    let names = chain.filter_chain_match.as_ref().map(|matching| matching.server_names.join("+")).unwrap_or_default();
    let Some(ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else { panic!("no filter") };
    assert_eq!(config.type_url, envoy::TCP_PROXY_TYPE_URL);
    let to = match TcpProxy::decode(config.value.as_slice()).unwrap().cluster_specifier {
        Some(TcpSpecifier::Cluster(cluster)) => cluster,
        Some(TcpSpecifier::WeightedClusters(all)) => {
            all.clusters.iter().map(|share| format!("{}*{}", share.weight, share.name)).collect::<Vec<_>>().join("+")
        }
        None => panic!("nowhere"),
    };
    format!("{names} -> {to}")
}

fn seconds(duration: Option<&Duration>) -> Option<f64> {
    duration.map(|duration| duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

#[test]
fn a_time_out_is_what_was_said_or_none_at_all() {
    assert_eq!(seconds(shop_with("").forward().timeout.as_ref()), Some(0.0), "unset is 15 seconds for Envoy");
    let backends = "backendRefs: [{name: v1, port: 80}]";
    let action =
        shop_with(&rule(&format!("{backends}\n    timeouts: {{request: 10s, backendRequest: 2500ms}}"))).forward();
    assert_eq!(seconds(action.timeout.as_ref()), Some(10.0));
    let policy = action.retry_policy.unwrap();
    assert_eq!((seconds(policy.per_try_timeout.as_ref()), policy.num_retries.unwrap().value), (Some(2.5), 0));
    assert_eq!(policy.retry_on, "");
}

#[test]
fn retries_in_envoys_words() {
    let text = "retry: {codes: [500, 503], attempts: 4, backoff: 100ms}\n    backendRefs: [{name: v1, port: 80}]";
    let policy = shop_with(&rule(text)).forward().retry_policy.unwrap();
    assert_eq!(policy.retry_on, "connect-failure,refused-stream,reset,retriable-status-codes");
    assert_eq!((policy.retriable_status_codes, policy.num_retries.unwrap().value), (vec![500, 503], 4));
    let pause = policy.retry_back_off.unwrap();
    assert_eq!((seconds(pause.base_interval.as_ref()), seconds(pause.max_interval.as_ref())), (Some(0.1), Some(1.0)));
    let policy = shop_with(&rule("retry: {}\n    backendRefs: [{name: v1, port: 80}]")).forward().retry_policy.unwrap();
    assert_eq!(
        (policy.retry_on.as_str(), policy.num_retries.unwrap().value),
        ("connect-failure,refused-stream,reset", 2)
    );
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let rewrite = |prefix: &str, change: &str| {
        let text = format!(
            "matches: [{{path: {{value: {prefix}}}}}]\n    filters: [{{type: URLRewrite, urlRewrite: {{hostname: in.example, path: \
             {change}}}}}]\n    backendRefs: [{{name: v1, port: 80}}]"
        );
        let action = shop_with(&rule(&text)).forward();
        assert_eq!(action.host_rewrite_specifier, Some(HostRewriteSpecifier::HostRewriteLiteral("in.example".into())));
        match action.regex_rewrite {
            Some(rewrite) => format!("{} -> {}", rewrite.pattern.unwrap().regex, rewrite.substitution),
            None => action.prefix_rewrite,
        }
    };
    let prefix = |to: &str| format!("{{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}");
    assert_eq!(rewrite("/a", &prefix("/b")), "/b");
    assert_eq!(rewrite("/a/", &prefix("/b/")), "/b", "slashes at the end say nothing");
    assert_eq!(rewrite("/a.b", &prefix("/")), "^/a\\.b/* -> /", "taken off, without a second slash");
    assert_eq!(rewrite("/a", &prefix("''")), "^/a/* -> /");
    assert_eq!(rewrite("/", &prefix("/b")), "^/ -> /b/");
    assert_eq!(rewrite("/", &prefix("/")), "^/ -> /");
    assert_eq!(rewrite("/a", "{type: ReplaceFullPath, replaceFullPath: /c}"), "^/.*$ -> /c");
    assert_eq!(
        rewrite("/a", "{type: ReplaceFullPath, replaceFullPath: '/c\\1'}"),
        "^/.*$ -> /c\\\\1",
        "a text, no reference"
    );
}

#[test]
fn redirects_name_a_port_where_it_is_not_known() {
    let redirect = |port: u16, redirect: &str| {
        let rules = format!("  rules:\n  - filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]");
        let shop = shop_with(&route("HTTPRoute", "rules", "shop", &format!("{}{rules}", parent(""))));
        let Some(Action::Redirect(action)) = shop.routes_for(port, "shop").remove(0).action else {
            panic!("no redirect")
        };
        action
    };
    for (called, text, port) in [
        (80, "{}", 0),
        (80, "{hostname: a.example}", 0),
        (8080, "{hostname: a.example}", 8080),
        (8080, "{}", 8080),
        (80, "{port: 83}", 83),
        (8080, "{port: 80, hostname: a.example}", 0),
        (8080, "{scheme: https, hostname: a.example}", 0),
        (8080, "{scheme: https}", 443),
        (80, "{scheme: https, port: 8443}", 8443),
    ] {
        assert_eq!(redirect(called, text).port_redirect, port, "{called} {text}");
    }
    let action = redirect(
        80,
        "{scheme: https, hostname: a.example, statusCode: 307, path: {type: ReplaceFullPath, replaceFullPath: /x}}",
    );
    assert_eq!(action.scheme_rewrite_specifier, Some(SchemeRewriteSpecifier::SchemeRedirect("https".into())));
    assert_eq!(action.path_rewrite_specifier, Some(PathRewriteSpecifier::PathRedirect("/x".into())));
    assert_eq!((action.host_redirect.as_str(), action.response_code), ("a.example", 3));
    let codes = [(301, 0), (302, 1), (303, 2), (307, 3), (308, 4)];
    assert!(
        codes.iter().all(|(code, number)| redirect(80, &format!("{{statusCode: {code}}}")).response_code == *number)
    );
    let text = "matches: [{path: {value: /a}}]\n    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]";
    let prefix = shop_with(&rule(text)).redirect().path_rewrite_specifier;
    assert_eq!(prefix, Some(PathRewriteSpecifier::PrefixRewrite("/b".into())));
}

#[test]
fn copies_go_where_they_can() {
    let text = "filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 20}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 0}}
    backendRefs: [{name: v1, port: 80}]";
    let mirrors = shop_with(&rule(text)).forward().request_mirror_policies;
    assert_eq!(mirrors.len(), 1, "{mirrors:?}");
    let share = mirrors[0].runtime_fraction.clone().unwrap().default_value.unwrap();
    assert_eq!((mirrors[0].cluster.as_str(), share.numerator, share.denominator), (cluster("v2").as_str(), 200_000, 2));
}

#[test]
fn pages_and_sessions() {
    let text = "matches: [{path: {value: /cart}}]
    filters: [{type: CORS, cors: {allowOrigins: ['https://*.A.example', 'http://b:80'], allowMethods: [GET, PUT], allowHeaders: [x-a]}}]
    sessionPersistence: {cookieConfig: {lifetimeType: Permanent}, absoluteTimeout: 1h}
    backendRefs: [{name: v1, port: 80}]";
    let route = shop_with(&rule(text)).routes().remove(0);
    let config = |name: &str| route.typed_per_filter_config[name].clone();
    let cors = config(envoy::CORS);
    assert_eq!(cors.type_url, envoy::type_url::<CorsPolicy>());
    let cors = CorsPolicy::decode(cors.value.as_slice()).unwrap();
    let origins: Vec<MatchPattern> =
        cors.allow_origin_string_match.iter().map(|origin| origin.match_pattern.clone().unwrap()).collect();
    let MatchPattern::SafeRegex(regex) = &origins[0] else { panic!("{origins:?}") };
    assert_eq!(regex.regex, "https://.*\\.a\\.example");
    assert_eq!(origins[1], MatchPattern::Exact("http://b:80".into()));
    assert_eq!(
        (cors.allow_methods.as_str(), cors.allow_headers.as_str(), cors.max_age.as_str()),
        ("GET, PUT", "x-a", "5")
    );
    let session = config(envoy::STATEFUL_SESSION);
    assert_eq!(session.type_url, envoy::type_url::<StatefulSessionPerRoute>());
    let Some(Override::StatefulSession(session)) =
        StatefulSessionPerRoute::decode(session.value.as_slice()).unwrap().r#override
    else {
        panic!("no session")
    };
    let state = session.session_state.unwrap().typed_config.unwrap();
    assert_eq!(state.type_url, envoy::type_url::<CookieBasedSessionState>());
    let cookie = CookieBasedSessionState::decode(state.value.as_slice()).unwrap().cookie.unwrap();
    assert_eq!((cookie.path.as_str(), seconds(cookie.ttl.as_ref())), ("/cart", Some(3600.0)));
    assert!(cookie.name.starts_with("weir-session-"), "{cookie:?}");
}

/// A session stays where it began, also when that has no weight any more; without sessions nobody has to hear of it.
#[test]
fn backends_without_a_weight_are_told_for_sessions_alone() {
    let backends = "backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80, weight: 1}, {name: nobody, port: 80, weight: 0}]";
    let told = |text: &str| match shop_with(&rule(text)).forward().cluster_specifier.unwrap() {
        ClusterSpecifier::Cluster(cluster) => vec![(cluster, 1)],
        ClusterSpecifier::WeightedClusters(weighted) => {
            weighted.clusters.into_iter().map(|share| (share.name, share.weight.unwrap().value)).collect()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(told(backends), [(cluster("v2"), 1)]);
    assert_eq!(told(&format!("sessionPersistence: {{}}\n    {backends}")), [(cluster("v2"), 1), (cluster("v1"), 0)]);
}

#[test]
fn calls_of_grpc_by_service_and_method() {
    let spec = format!(
        "{}  rules:
  - matches:
    - headers: [{{name: a, value: b}}]
    - method: {{method: M}}
    - method: {{service: a.S}}
    - method: {{service: a.S, method: M}}
    - method: {{type: RegularExpression, service: 'a\\.[ST]+|b', method: M}}
    backendRefs: [{{name: v1, port: 80}}]
  - backendRefs: [{{name: nobody, port: 80}}]",
        parent(", port: 80")
    );
    let shop = shop_with(&route("GRPCRoute", "calls", "shop", &spec));
    let paths: Vec<String> = shop
        .routes()
        .into_iter()
        .map(|route| match route.r#match.unwrap().path_specifier.unwrap() {
            PathSpecifier::Path(path) => path,
            PathSpecifier::PathSeparatedPrefix(path) => format!("{path}/"),
            PathSpecifier::SafeRegex(regex) => regex.regex,
            other => format!("{other:?}"),
        })
        .collect();
    let every = "Prefix(\"/\")";
    assert_eq!(paths, ["/(?:a\\.[ST]+|b)/(?:M)", "/a.S/M", "/a.S/", "/[^/]+/(?:M)", every, every]);
    assert!(shop.names(80, "shop").iter().all(|name| name.starts_with("GRPCRoute/shop/calls/")));
    let Some(Action::DirectResponse(answer)) = shop.routes().pop().unwrap().action else { panic!("no answer") };
    assert_eq!(answer.status, 503, "gRPC's clients read it as UNAVAILABLE");
}

#[test]
fn the_more_special_kind_counts_for_each_port() {
    let http = route(
        "HTTPRoute",
        "web",
        "shop",
        &format!("{}  rules: [{{backendRefs: [{{name: v1, port: 80}}]}}]", parent("")),
    );
    let grpc = route(
        "GRPCRoute",
        "calls",
        "shop",
        &format!("{}  rules: [{{backendRefs: [{{name: v2, port: 80}}]}}]", parent(", port: 80")),
    );
    let tcp = route(
        "TCPRoute",
        "bytes",
        "shop",
        &format!("{}  rules: [{{backendRefs: [{{name: v2, port: 80}}]}}]", parent("")),
    );
    let shop = shop_with(&[http, grpc, tcp].join("---\n"));
    assert_eq!(shop.names(80, "shop"), ["GRPCRoute/shop/calls/0/0"]);
    assert_eq!(shop.names(8080, "shop"), ["HTTPRoute/shop/web/0/0"]);
    assert_eq!(shop.names(9000, "shop"), ["HTTPRoute/shop/web/0/0"], "what is not declared may speak HTTP");
    assert_eq!(shop.streams(6379, "shop"), [format!(" -> {}", cluster("v2"))], "of a port that speaks something else");
}

#[test]
fn rules_of_another_namespace_are_for_its_own_callers_alone() {
    let consumer = |backend: &str| {
        let rules = format!("{}  rules: [{{backendRefs: [{backend}]}}]", parent(", port: 80"));
        route("HTTPRoute", "mine", "other", &rules)
    };
    let mut shop = shop_with(&rule("backendRefs: [{name: v1, port: 80}]"));
    let touched = shop.apply(&consumer("{name: v2, namespace: shop, port: 80}"));
    assert!(touched.contains(&Subject::Routes(Name::new("shop", "catalog"))));
    assert_eq!(shop.names(80, "other"), ["HTTPRoute/other/mine/0/0"]);
    assert_eq!(shop.names(80, "third"), ["HTTPRoute/shop/rules/0/0"]);
    assert_eq!(shop.names(80, "shop"), ["HTTPRoute/shop/rules/0/0"]);
    assert_eq!(shop.names(8080, "other"), ["default"], "not of this port");
    let action = shop.routes_for(80, "other").remove(0).action;
    assert!(matches!(action, Some(Action::Route(_))), "the parent's namespace needs no grant: {action:?}");
    // Whoever has no rules of its own shares one resource with all the others.
    let key = Key::new(Kind::Route, format!("{HOST}:80").into(), &Name::new("third", "x"));
    let views = Views::of(&shop.world, Kind::Route, &Of::parse(&shop.mesh, &key).unwrap());
    assert_eq!(views.by(&Name::new("third", "x")), views.by(&Name::new("shop", "y")));
    assert_ne!(views.by(&Name::new("other", "x")), views.by(&Name::new("shop", "y")));
    let tcp =
        format!("{}  rules: [{{backendRefs: [{{name: v2, namespace: shop, port: 80}}]}}]", parent(", port: 6379"));
    shop.apply(&route("TCPRoute", "bytes", "other", &tcp));
    assert_eq!(shop.streams(6379, "other"), [format!(" -> {}", cluster("v2"))]);
    assert_eq!(shop.streams(6379, "shop"), [format!(" -> outbound|6379||{HOST}")]);
}

#[test]
fn a_third_namespace_has_to_grant_what_is_sent_to_it() {
    let mut shop = shop_with(&rule("backendRefs: [{name: far, namespace: other, port: 80}]"));
    let status = |shop: &Shop| match shop.routes().remove(0).action {
        Some(Action::DirectResponse(answer)) => answer.status,
        _ => 0,
    };
    assert_eq!(status(&shop), 500);
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  to: [{group: '', kind: Service, name: far}]\n";
    let touched = shop.apply(grant);
    assert!(touched.contains(&Subject::Routes(Name::new("shop", "catalog"))), "{touched:?}");
    assert_eq!(status(&shop), 0);
    shop.apply(&grant.replace("name: far", "name: another"));
    assert_eq!(status(&shop), 500);
}

#[test]
fn streams_by_share_and_by_the_servers_name() {
    let tcp = format!(
        "{}  rules: [{{backendRefs: [{{name: v1, port: 80, weight: 9}}, {{name: v2, port: 80}}, {{name: nobody, port: 80, weight: 2}}, {{name: v2, port: 80, weight: 0}}]}}]",
        parent(", port: 6379")
    );
    let shop = shop_with(&route("TCPRoute", "bytes", "shop", &tcp));
    assert_eq!(
        shop.streams(6379, "shop"),
        [format!(" -> 9*{}+1*{}+2*{BAD_BACKEND_CLUSTER}", cluster("v1"), cluster("v2"))]
    );
    let tls = |name: &str, created: &str, hosts: &str, backend: &str| {
        let spec = format!(
            "{}  hostnames: [{hosts}]\n  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]",
            parent(", port: 9000")
        );
        route("TLSRoute", name, "shop", &spec).replace("2026-01-01", created)
    };
    let shop = shop_with(
        &[
            tls("new", "2026-01-02", "a.example, b.example", "v2"),
            tls("old", "2026-01-01", "a.example, '*.example'", "v1"),
        ]
        .join("---\n"),
    );
    assert_eq!(
        shop.streams(9000, "shop"),
        [format!("a.example+*.example -> {}", cluster("v1")), format!("b.example -> {}", cluster("v2"))],
        "of two for one name the older one counts"
    );
    let shop = shop_with(&tls("bad", "2026-01-01", "a.example", "nobody"));
    assert_eq!(shop.streams(9000, "shop"), [format!("a.example -> {BAD_BACKEND_CLUSTER}")]);
}

/// Rules send to one another in a circle, and to themselves: a backend is an endpoint, never another's rules.
#[test]
fn a_circle_of_rules_ends_at_the_first_backend() {
    let to = |from: &str, to: &str| {
        route(
            "HTTPRoute",
            from,
            "shop",
            &format!(
                "  parentRefs: [{{kind: Service, group: '', name: {from}}}]\n  rules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]"
            ),
        )
    };
    let shop = shop_with(&[to("catalog", "v1"), to("v1", "catalog"), to("v2", "v2")].join("---\n"));
    assert_eq!(shop.names(80, "shop"), ["HTTPRoute/shop/catalog/0/0"]);
    let own: RouteConfiguration = shop.get(Kind::Route, "v2.shop.svc.cluster.local:80", "shop").unwrap();
    let Some(Action::Route(action)) = own.virtual_hosts[0].routes[0].action.clone() else { panic!("{own:?}") };
    assert_eq!(format!("{:?}", action.cluster_specifier.unwrap()), format!("Cluster({:?})", cluster("v2")));
}

/// As many objects as a Service of 5,000 rules has; a change of one is a matter of milliseconds.
#[test]
fn five_thousand_rules_on_one_service() {
    let object = |i: usize| {
        let matches = |j: usize| {
            format!(
                "  - matches: [{{path: {{type: Exact, value: /{i}/{j}}}}}]\n    backendRefs: [{{name: v1, port: 80}}]\n"
            )
        };
        let rules: String = (0..16).map(matches).collect();
        route("HTTPRoute", &format!("r{i}"), "shop", &format!("{}  rules:\n{rules}", parent(", port: 80")))
    };
    let mut shop = shop_with("");
    for i in 0..313 {
        shop.apply(&object(i));
    }
    let names = shop.names(80, "shop");
    assert_eq!(names.len(), 5008);
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
}
