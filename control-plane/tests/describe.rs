//! What is said of Services, routes and pods: which rules act, in which order, from which object, and what does not and why.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[path = "support/shop.rs"]
#[allow(dead_code, unreachable_pub)] // shared by files of this folder
mod shop;

use shop::Shop;
use weir_config::{
    describe::{Callers, Rule, Service, Setting, WithoutEffect},
    model::{Name, Origin},
};
use weir_control::{
    describe::{self, Refused},
    translate::Mesh,
    world::World,
};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 198.19.0.10, selector: {app: catalog}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 9000}, {name: tcp, port: 6379}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {clusterIP: 198.19.0.11, selector: {app: catalog}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 198.19.0.13, ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weir.dev/inject: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: catalog}}
spec:
  serviceAccountName: web
  initContainers: [{name: weir-proxy, image: p, restartPolicy: Always}]
  containers: [{name: app, image: a, ports: [{containerPort: 8080}]}]
status: {phase: Running, podIP: 198.18.0.1, podIPs: [{ip: 198.18.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: other}
spec: {containers: [{name: app, image: a}]}
";

fn world(more: &[String]) -> World {
    let texts: Vec<&str> = std::iter::once(SERVICES).chain(more.iter().map(String::as_str)).collect();
    Shop::new(&texts).world
}

/// A route for the Service `catalog`, made on this day.
fn route(kind: &str, name: &str, namespace: &str, day: u32, port: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \
         '2026-01-{day:02}T00:00:00Z'}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: catalog, namespace: shop{port}}}]\n{rest}\n"
    )
}

fn service(world: &World, refused: &[Refused]) -> Service {
    describe::service(world, &Name::new("shop", "catalog"), refused).unwrap()
}

/// What callers of a namespace, or all others, get on a port.
fn callers(service: &Service, port: u16, namespace: Option<&str>) -> Callers {
    let port = service.ports.iter().find(|known| known.number == port).unwrap();
    port.callers.iter().find(|callers| callers.namespace.as_deref() == namespace).unwrap().clone()
}

/// `PLACE OBJECT/RULE MATCHES`, with `<PLACE` of what shadows it.
fn shown(rules: &[Rule]) -> Vec<String> {
    let show = |rule: &Rule| {
        let shadow = rule.shadowed_by.as_ref().map(|shadow| format!(" <{}", shadow.place)).unwrap_or_default();
        format!("{} {}/{} {}{shadow}", rule.place, rule.object, rule.rule, rule.matches)
    };
    rules.iter().map(show).collect()
}

fn idle(objects: &[WithoutEffect]) -> Vec<String> {
    objects.iter().map(|idle| format!("{}: {}", idle.object, idle.reason)).collect()
}

fn set(settings: &[Setting]) -> Vec<String> {
    settings.iter().map(|setting| format!("{} {} by {}", setting.field, setting.value, setting.object)).collect()
}

#[test]
fn rules_of_several_objects_are_in_one_order_and_what_no_request_reaches_is_named() {
    let world = world(&[
        route(
            "HTTPRoute",
            "old",
            "shop",
            1,
            "",
            "  rules:
  - name: front
    matches: [{path: {value: /api}}, {headers: [{name: X-Canary, value: 'yes'}]}]
    timeouts: {request: 5s}
    backendRefs: [{name: v1, port: 80, weight: 9}, {name: gone, port: 80}, {name: far, namespace: other, port: 80, weight: 0}]
  - filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, scheme: https}}]",
        ),
        route(
            "HTTPRoute",
            "young",
            "shop",
            2,
            ", port: 80",
            "  rules:
  - matches: [{path: {value: /api}, method: POST}, {path: {value: /api}}, {path: {type: Exact, value: /api/x}, queryParams: [{name: q, value: '1'}]}]
    backendRefs: [{name: v1, port: 80}]",
        ),
    ]);
    let described = service(&world, &[]);
    let all = callers(&described, 80, None);
    assert_eq!(
        shown(&all.rules),
        [
            "1 HTTPRoute/shop/young/0 exact /api/x, query q = 1",
            "2 HTTPRoute/shop/young/0 prefix /api, POST",
            "3 HTTPRoute/shop/old/0 prefix /api",
            "4 HTTPRoute/shop/young/0 prefix /api <3",
            "5 HTTPRoute/shop/old/0 header x-canary = yes",
            "6 HTTPRoute/shop/old/1 any",
        ]
    );
    assert_eq!((all.rules[2].name.as_deref(), &*all.rules[2].does), (Some("front"), &["timeout 5s".to_owned()][..]));
    let backends: Vec<String> = all.rules[2]
        .backends
        .iter()
        .map(|to| format!("{} {} {}", to.weight, to.service, to.trouble.as_deref().unwrap_or("fine")))
        .collect();
    assert_eq!(
        backends,
        [
            "9 shop/v1:80 fine",
            "1 shop/gone:80 there is no Service shop/gone with TCP port 80: its share is answered with 500",
            "0 other/far:80 no ReferenceGrant of its namespace allows Service other/far: its share is answered with 500",
        ]
    );
    assert_eq!(all.rules[2].backends[0].endpoints, 1);
    assert_eq!(all.rules[5].does, ["redirect 301"]);
    // The port that is not declared follows only what is for all ports.
    assert_eq!(callers(&described, 9000, None).rules.len(), 3);
    // One that is passed on as it is has none.
    let opaque = callers(&described, 6379, None);
    assert_eq!(opaque.rules.len(), 0);
    assert_eq!(
        idle(&opaque.without_effect),
        ["HTTPRoute/shop/old: the port does not speak HTTP by its name or appProtocol"]
    );
}

#[test]
fn kinds_that_go_before_and_callers_with_rules_of_their_own() {
    let http = "  rules: [{backendRefs: [{name: v1, namespace: shop, port: 80}]}]";
    let world = world(&[
        route("HTTPRoute", "http", "shop", 1, "", http),
        route(
            "GRPCRoute",
            "calls",
            "shop",
            2,
            ", port: 80",
            "  rules: [{matches: [{method: {service: a.B, method: C}}, {method: {service: a.B}}], backendRefs: [{name: v1, port: 80}]}]",
        ),
        route("TCPRoute", "tcp", "shop", 3, ", port: 80", http),
        route("HTTPRoute", "own", "web", 4, ", port: 80", http),
        route("HTTPRoute", "lost", "shop", 5, ", port: 81", http),
    ]);
    let described = service(&world, &[]);
    let all = callers(&described, 80, None);
    assert_eq!(
        shown(&all.rules),
        ["1 GRPCRoute/shop/calls/0 calls of a.B/C", "2 GRPCRoute/shop/calls/0 calls of a.B/*"]
    );
    assert_eq!(
        idle(&all.without_effect),
        [
            "TCPRoute/shop/tcp: the port speaks HTTP by its name or appProtocol: use an HTTPRoute or a GRPCRoute",
            "HTTPRoute/shop/http: GRPCRoute/shop/calls goes before: of several kinds on one port the first counts",
        ]
    );
    let web = callers(&described, 80, Some("web"));
    assert_eq!(shown(&web.rules), ["1 HTTPRoute/web/own/0 any"]);
    let replaced = "callers of namespace web follow HTTPRoute/web/own, which takes its place for them";
    assert!(idle(&web.without_effect).contains(&format!("GRPCRoute/shop/calls: {replaced}")), "{web:?}");
    assert_eq!(
        idle(&described.without_effect),
        ["HTTPRoute/shop/lost: Service shop/catalog has no TCP port that it names"]
    );

    let of = |kind: &'static str, namespace: &str, name: &str| {
        describe::route(&world, &Origin { kind, name: Name::new(namespace, name) }, &[]).unwrap()
    };
    let own = of("HTTPRoute", "web", "own");
    assert_eq!((own.parents[0].callers.as_deref(), own.parents[0].accepted.holds), (Some("web"), true));
    assert_eq!(shown(&own.parents[0].ports[0].rules), ["1 HTTPRoute/web/own/0 any"]);
    let http = of("HTTPRoute", "shop", "http");
    assert!(http.parents[0].accepted.holds, "it acts on port 9000");
    let why: Vec<(u16, bool)> =
        http.parents[0].ports.iter().map(|port| (port.number, port.without_effect.is_some())).collect();
    assert_eq!(why, [(80, true), (9000, false), (6379, true)]);
    let lost = of("HTTPRoute", "shop", "lost");
    assert_eq!((lost.parents[0].accepted.reason.as_str(), lost.parents[0].ports.len()), ("NoMatchingParent", 0));
}

#[test]
fn streams_go_by_the_names_of_servers_and_the_older_object_has_them() {
    let tls = |name: &str, day, hostnames: &str| {
        route(
            "TLSRoute",
            name,
            "shop",
            day,
            ", port: 9000",
            &format!("  hostnames: [{hostnames}]\n  rules: [{{backendRefs: [{{name: v1, port: 80}}]}}]"),
        )
    };
    let world = world(&[
        tls("old", 1, "a.example, '*.b.example'"),
        tls("half", 2, "a.example, c.example"),
        tls("none", 3, "c.example"),
    ]);
    let described = service(&world, &[]);
    let all = callers(&described, 9000, None);
    assert_eq!(
        shown(&all.rules),
        [
            "1 TLSRoute/shop/old/0 server name a.example or server name *.b.example",
            "2 TLSRoute/shop/half/0 server name c.example",
            "3 TLSRoute/shop/none/0 server name c.example <2",
        ]
    );
    assert_eq!(all.rules[1].does, ["not server name a.example, which TLSRoute/shop/old has"]);
}

#[test]
fn policies_are_told_field_by_field() {
    let destination = |name: &str, namespace: &str, day: u32, policy: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \
             '2026-01-{day:02}T00:00:00Z'}}\nspec: {{host: catalog.shop.svc, trafficPolicy: {{{policy}}}}}\n"
        )
    };
    let traffic = |name: &str, target: &str, rest: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n{rest}\n"
        )
    };
    let of_route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r";
    let world = world(&[
        destination(
            "old",
            "shop",
            1,
            "connectionPool: {http: {http2MaxRequests: 7}}, portLevelSettings: [{port: {number: 9000}, loadBalancer: {simple: RANDOM}}]",
        ),
        destination("young", "shop", 2, "connectionPool: {http: {http2MaxRequests: 9, maxRetries: 3}}"),
        destination("own", "web", 3, "connectionPool: {http: {maxRetries: 1}}"),
        traffic(
            "budget",
            "{group: '', kind: Service, name: catalog}",
            "  retryBudget: {percent: 10, minConcurrency: 2}\n  rateLimit: {requests: 5, burst: 6}",
        ),
        traffic(
            "slow",
            &format!("{of_route}, sectionName: front}}"),
            "  fault: {delay: {fixedDelay: 2s, percent: 50}}",
        ),
        traffic("nothing", &format!("{of_route}, sectionName: back}}"), "  limits: {requestBodyBytes: 7}"),
        route(
            "HTTPRoute",
            "r",
            "shop",
            1,
            ", port: 80",
            "  rules: [{name: front, backendRefs: [{name: v1, port: 80}]}]",
        ),
    ]);
    let described = service(&world, &[]);
    let all = callers(&described, 80, None);
    let (retries, requests) = ("connectionPool.http.maxRetries", "connectionPool.http.http2MaxRequests");
    assert_eq!(
        set(&all.settings),
        [
            format!("{requests} 7 by DestinationRule/shop/old"),
            format!("{retries} 3 by DestinationRule/shop/young"),
            "retryBudget 10 %, 2 at once by TrafficPolicy/shop/budget".to_owned(),
        ]
    );
    let web = set(&callers(&described, 80, Some("web")).settings);
    assert_eq!((&*web[0], web.len()), (&*format!("{retries} 1 by DestinationRule/web/own"), 3));
    assert!(
        set(&callers(&described, 9000, None).settings)
            .contains(&"loadBalancer RANDOM by DestinationRule/shop/old".to_owned())
    );
    assert_eq!(
        set(&all.rules[0].settings),
        [
            "fault.delay 2s for 50 % by TrafficPolicy/shop/slow",
            "rateLimit 5 in 1s, burst 6 by TrafficPolicy/shop/budget"
        ]
    );
    assert_eq!(
        set(&callers(&described, 9000, None).request_settings),
        ["rateLimit 5 in 1s, burst 6 by TrafficPolicy/shop/budget"]
    );
    assert_eq!(
        idle(&described.without_effect),
        ["TrafficPolicy/shop/nothing: there is no rule back of HTTPRoute/shop/r: the policy has no effect on it"]
    );
}

#[test]
fn refused_objects_are_told_with_their_reason() {
    let refused = |namespace: &str| Refused {
        kind: "HTTPRoute".into(),
        namespace: namespace.into(),
        name: "bad".into(),
        reason: "spec.hostnames: no".into(),
    };
    let world = world(&[]);
    let described = service(&world, &[refused("shop"), refused("other")]);
    assert_eq!(idle(&described.without_effect), ["HTTPRoute/shop/bad: refused: spec.hostnames: no"]);
    let bad = Origin { kind: "HTTPRoute", name: Name::new("shop", "bad") };
    let route = describe::route(&world, &bad, &[refused("shop")]).unwrap();
    assert_eq!((route.refused.len(), route.parents.len()), (1, 0));
    assert_eq!(describe::route(&world, &bad, &[refused("other")]), None);
    assert_eq!(describe::service(&world, &Name::new("shop", "none"), &[]), None);
}

#[test]
fn a_pod_with_its_services_and_who_may_call_it() {
    let mesh = Mesh { trust_domain: "cluster.local".parse().unwrap(), cluster_domain: "cluster.local".into() };
    let world = world(&["
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT}, portLevelMtls: {9999: {mode: PERMISSIVE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: shop}
spec: {rules: [{from: [{source: {namespaces: [web]}}]}]}
"
    .to_owned()]);
    let pod = describe::pod(&mesh, &world, &Name::new("shop", "web")).unwrap();
    assert!(pod.in_mesh && pod.ready && pod.namespace_injected);
    assert_eq!(pod.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    assert_eq!(pod.services, ["shop/catalog", "shop/v1"]);
    let port = pod.ports.iter().find(|port| port.number == 8080).unwrap();
    assert_eq!(
        (port.plaintext.mode.as_str(), port.plaintext.object.as_deref()),
        ("STRICT", Some("PeerAuthentication/shop/web"))
    );
    assert_eq!((port.service.as_deref(), port.captured), (Some("shop/catalog"), true));
    assert_eq!(pod.others.mode, "STRICT");
    assert_eq!(
        (pod.access[0].object.as_str(), pod.access[0].action.as_str(), pod.access[0].rules),
        ("AuthorizationPolicy/shop/friends", "ALLOW", 1)
    );
    let plain = describe::pod(&mesh, &world, &Name::new("other", "plain")).unwrap();
    assert!(!plain.in_mesh && !plain.namespace_injected && plain.identity.is_none());
    assert_eq!(describe::pod(&mesh, &world, &Name::new("shop", "none")), None);
}
