//! Rules for traffic from the objects that a user writes to what reaches a backend: the control plane, two proxies and the
//! application, all real.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use weir_tests::{App, Pod, PodSpec, World, at, http::Response, is_root, until};

/// Services `all`, `one` and `two` in front of pods `one` and `two`; `all` has both.
struct Mesh {
    client: Pod,
    servers: [Pod; 2],
    apps: Vec<App>,
    /// HTTP on port 80 of Service `all`.
    http: SocketAddr,
    /// Streams on its port 70.
    stream: SocketAddr,
    /// What is not declared on its port 71.
    any: SocketAddr,
    world: World,
}

impl Mesh {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let servers = ["one", "two"].map(|name| {
            let spec = PodSpec::new(name).label("tier", "back").port("http", 8080).port("tcp", 7000).port("", 7001);
            world.pod_unready(spec.workers(workers))
        });
        let mut apps = Vec::new();
        for server in &servers {
            apps.push(App::echo(&server.netns, 8080, &server.name));
            for port in [7000, 7001] {
                let name = server.name.clone();
                apps.push(App::raw(&server.netns, port, move |mut stream: TcpStream| {
                    // Whatever was said first; then who is here. A request of HTTP is never answered.
                    let mut first = [0];
                    if stream.read_exact(&mut first).is_ok() {
                        while first == *b"G" && stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {}
                        let _ = stream.write_all(name.as_bytes());
                    }
                }));
            }
        }
        let ports = [("http", 80, 8080), ("tcp", 70, 7000), ("any", 71, 7001)];
        let all = world.service("all", 10, &json!({"tier": "back"}), &ports);
        for (last, name) in [(11, "one"), (12, "two")] {
            world.service(name, last, &json!({"app": name}), &ports);
        }
        let client = world.pod(PodSpec::new("client").workers(workers));
        servers.iter().for_each(Pod::wait_ready);
        Self { client, servers, apps, http: at(all, 80), stream: at(all, 70), any: at(all, 71), world }
    }

    /// A route of this kind on Service `all`.
    fn route(&self, kind: &str, name: &str, port: u16, spec: Value) {
        let mut object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "all", "port": port}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        self.world.write(&format!("{kind}-{name}"), &object.to_string());
    }

    /// An HTTPRoute with one rule, once it is in force.
    fn rule(&self, rule: Value) {
        self.route("HTTPRoute", "rules", 80, json!({"rules": [rule]}));
        self.in_force("HTTPRoute/shop/rules/0/0");
    }

    fn in_force(&self, text: &str) {
        until("the proxy has the rules", || {
            let _ = self.client.try_connect(self.http).and_then(|mut connection| connection.try_get("/warm"));
            self.client.admin("/config_dump").contains(text).then_some(())
        });
    }

    fn get(&self, path: &str) -> Response {
        self.client.connect(self.http).get(path)
    }

    /// Who answers these bytes; nobody, where the stream is refused.
    fn who(&self, to: SocketAddr, first: &[u8]) -> Option<String> {
        let mut connection = self.client.try_connect(to).ok()?;
        connection.send(first).ok()?;
        let answer = connection.exactly(3).ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The same of so many streams.
    fn count(&self, to: SocketAddr, streams: usize) -> BTreeMap<Option<String>, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..streams {
            *counts.entry(self.who(to, b"x")).or_default() += 1;
        }
        counts
    }
}

/// A ClientHello for this server.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection =
        ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

fn backends(shares: &[(&str, u32)], port: u16) -> Value {
    let shares: Vec<Value> =
        shares.iter().map(|(name, weight)| json!({"name": name, "port": port, "weight": weight})).collect();
    json!(shares)
}

#[test]
fn streams_are_split_by_weight_and_a_bad_share_is_refused() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let mesh = Mesh::new("split", workers);
        mesh.route(
            "TCPRoute",
            "bytes",
            70,
            json!({"rules": [{"backendRefs": backends(&[("one", 3), ("two", 1)], 70)}]}),
        );
        until("the split is in force", || {
            mesh.who(mesh.stream, b"x");
            mesh.client.admin("/config_dump").contains("outbound|70||one.shop.svc.cluster.local").then_some(())
        });
        let counts = mesh.count(mesh.stream, 40);
        assert_eq!(counts, [(Some("one".to_owned()), 30), (Some("two".to_owned()), 10)].into(), "{workers} workers");
        // One of two goes nowhere: refused at once, not sent elsewhere.
        mesh.route(
            "TCPRoute",
            "bytes",
            70,
            json!({"rules": [{"backendRefs": backends(&[("two", 1), ("nobody", 1)], 70)}]}),
        );
        until("the bad share is in force", || mesh.who(mesh.stream, b"x").is_none().then_some(()));
        let counts = mesh.count(mesh.stream, 20);
        assert_eq!(counts, [(None, 10), (Some("two".to_owned()), 10)].into());
        assert!(mesh.client.metric("weir_connections_refused_total", &[("reason", "bad_backend")]) > 9.9);
        mesh.world.remove("TCPRoute-bytes");
        until("the Service answers by itself again", || {
            let counts = mesh.count(mesh.stream, 8);
            (counts.values().sum::<usize>() == 8 && !counts.contains_key(&None)).then_some(())
        });
    }
}

#[test]
fn streams_of_tls_go_where_their_server_is() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("sni", 1);
    let tls = |name: &str, hosts: Value, backend: &str| {
        mesh.route(
            "TLSRoute",
            name,
            71,
            json!({"hostnames": hosts, "rules": [{"backendRefs": backends(&[(backend, 1)], 71)}]}),
        );
    };
    tls("exact", json!(["a.example"]), "one");
    tls("below", json!(["*.example", "*.b.example"]), "two");
    let wanted =
        [("a.example", Some("one")), ("x.example", Some("two")), ("x.y.b.example", Some("two")), ("other.test", None)];
    // Without any rule every name is answered, by either.
    until("the names are in force", || {
        let as_wanted = |(name, who): &(&str, Option<&str>)| mesh.who(mesh.any, &hello(name)).as_deref() == *who;
        wanted.iter().rev().all(as_wanted).then_some(())
    });
    for (name, who) in wanted {
        for _ in 0..4 {
            assert_eq!(mesh.who(mesh.any, &hello(name)).as_deref(), who, "{name}");
        }
    }
    let start = Instant::now();
    assert_eq!(mesh.who(mesh.any, b"GET / HTTP/1.1\r\n\r\n"), None, "no TLS, and the rules are for nothing else");
    assert!(start.elapsed() < Duration::from_secs(2), "that is known from its first bytes");
    assert!(mesh.client.metric("weir_connections_refused_total", &[("reason", "no_route")]) > 0.9);
}

#[test]
fn calls_of_grpc_are_told_apart_by_service_and_method() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("calls", 1);
    let to =
        |method: Value, name: &str| json!({"matches": [{"method": method}], "backendRefs": backends(&[(name, 1)], 80)});
    mesh.route(
        "GRPCRoute",
        "calls",
        80,
        json!({"rules": [
            to(json!({"service": "a.S"}), "one"),
            to(json!({"service": "a.S", "method": "M"}), "two"),
            to(json!({"type": "RegularExpression", "method": "[XY]"}), "two"),
        ]}),
    );
    mesh.in_force("GRPCRoute/shop/calls/0/0");
    for (path, who) in
        [("/a.S/N", Some("one")), ("/a.S/M", Some("two")), ("/b.T/X", Some("two")), ("/b.T/Z", None), ("/a.St/N", None)]
    {
        let answer = mesh.get(path);
        assert_eq!((answer.header("x-pod"), answer.status), (who, if who.is_some() { 200 } else { 404 }), "{path}");
    }
}

#[test]
fn the_backend_sees_the_path_and_host_of_the_rule() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("rewrite", 1);
    for (prefix, change, asked, seen) in [
        ("/a", json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}), "/a/c?d=1", "/b/c?d=1"),
        ("/a", json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}), "/a", "/b"),
        ("/a", json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}), "/a/c", "/c"),
        ("/a", json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}), "/a", "/"),
        ("/", json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}), "/c", "/b/c"),
        ("/a", json!({"type": "ReplaceFullPath", "replaceFullPath": "/x"}), "/a/c?d=1", "/x?d=1"),
    ] {
        mesh.rule(json!({"matches": [{"path": {"value": prefix}}], "backendRefs": backends(&[("one", 1)], 80),
            "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "in.example", "path": change}}]}));
        let head = until("the rule is in force", || {
            let head = mesh.get(asked).text();
            head.starts_with(&format!("GET {seen} ")).then_some(head)
        });
        assert!(head.to_ascii_lowercase().contains("\r\nhost: in.example\r\n"), "{head}");
    }
}

#[test]
fn the_caller_is_told_another_place() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("redirect", 1);
    for (redirect, status, location) in [
        (json!({"hostname": "a.example"}), 302, "http://a.example/x/y?q=1"),
        (json!({"scheme": "https", "hostname": "a.example", "statusCode": 308}), 308, "https://a.example/x/y?q=1"),
        (json!({"hostname": "a.example", "port": 8083, "statusCode": 301}), 301, "http://a.example:8083/x/y?q=1"),
        (
            json!({"hostname": "a.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/z"}}),
            302,
            "http://a.example/z/y?q=1",
        ),
        (
            json!({"hostname": "a.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}),
            302,
            "http://a.example/y?q=1",
        ),
    ] {
        mesh.rule(json!({"matches": [{"path": {"value": "/x"}}], "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]}));
        until(location, || {
            let answer = mesh.get("/x/y?q=1");
            (answer.status == status && answer.header("location") == Some(location)).then_some(())
        });
    }
}

#[test]
fn policies_make_faults_and_bound_requests() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("policy", 1);
    let policy = |spec: Value| {
        let mut object = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "all"}]}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        mesh.world.write("policy", &object.to_string());
    };
    policy(json!({"fault": {"abort": {"httpStatus": 418}}}));
    until("requests fail", || (mesh.get("/").status == 418).then_some(()));
    policy(json!({"fault": {"delay": {"fixedDelay": "300ms"}}}));
    until("requests wait", || {
        let start = Instant::now();
        (mesh.get("/").status == 200 && start.elapsed() >= Duration::from_millis(300)).then_some(())
    });
    policy(json!({"rateLimit": {"requests": 1, "interval": "1h"}}));
    until("requests are too many", || (mesh.get("/").status == 429).then_some(()));
    policy(json!({"limits": {"requestBodyBytes": 10}}));
    until("bodies are too large", || {
        let answer = mesh.client.connect(mesh.http).try_post("/", &[b'x'; 11]).ok()?;
        (answer.status == 413).then_some(())
    });
    assert_eq!(mesh.client.connect(mesh.http).try_post("/", &[b'x'; 10]).unwrap().status, 200);
}

#[test]
fn a_request_ends_when_its_time_is_over() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("time", 1);
    // Nobody answers HTTP on the port of the streams.
    mesh.rule(json!({"timeouts": {"request": "200ms"}, "backendRefs": backends(&[("one", 1)], 71)}));
    until("the answer comes in time", || {
        let start = Instant::now();
        let answer = mesh.get("/");
        (answer.status == 504 && start.elapsed() < Duration::from_secs(2)).then_some(())
    });
}

#[test]
fn callers_meet_one_server_by_a_key_or_a_session() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("keys", 1);
    let ask = |header: &str| {
        mesh.client.connect(mesh.http).ask(&format!("GET / HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n")).unwrap()
    };
    let of = |header: &str| ask(header).header("x-pod").map(str::to_owned);
    let stays = |header: &str| {
        let first = of(header);
        first.is_some() && (0..8).all(|_| of(header) == first)
    };
    let rule = |name: &str, policy: Value| {
        let object = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"host": "all.shop.svc.cluster.local", "trafficPolicy": policy}});
        mesh.world.write("destination", &object.to_string());
    };
    rule(
        "keys",
        json!({"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user", "maglev": {"tableSize": 251}}}}),
    );
    until("callers stay by their header", || (0..6).all(|user| stays(&format!("x-user: {user}"))).then_some(()));
    let servers: std::collections::BTreeSet<_> = (0..20).map(|user| of(&format!("x-user: {user}"))).collect();
    assert_eq!(servers.len(), 2, "{servers:?}");
    rule("turns", json!({"loadBalancer": {"simple": "ROUND_ROBIN"}}));
    until("servers take turns", || {
        let all: Vec<_> = (0..20).map(|_| of("x-user: 1")).collect();
        all.windows(2).all(|pair| pair[0] != pair[1]).then_some(())
    });
    mesh.rule(json!({"sessionPersistence": {"sessionName": "shop", "type": "Cookie"}, "backendRefs": backends(&[("all", 1)], 80)}));
    let first = until("a session begins", || Some(ask("x: 1")).filter(|answer| answer.header("set-cookie").is_some()));
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let server = first.header("x-pod").unwrap();
    assert!((0..8).all(|_| of(&format!("cookie: {cookie}")).as_deref() == Some(server)));
}

/// As GEP-1619 asks: weights are for new sessions. So a version that gets no more of them can be taken away once its sessions have ended.
#[test]
fn a_session_stays_with_a_backend_that_has_no_weight_any_more() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("drained", 1);
    let weights = |one, two, session: Value| {
        let mark = json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rule", "value": format!("{one}/{two}/{session}")}]}}]);
        mesh.rule(json!({"filters": mark, "sessionPersistence": session, "backendRefs": backends(&[("one", one), ("two", two)], 80)}));
        until("the weights are in force", || {
            let answer = mesh.get("/");
            (answer.header("x-rule") == Some(&format!("{one}/{two}/{session}"))).then_some(())
        });
    };
    let ask = |header: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{header}\r\n");
        mesh.client.connect(mesh.http).ask(&request).unwrap()
    };
    for (kind, name) in [("Cookie", "set-cookie"), ("Header", "x-session")] {
        let session = json!({"sessionName": "x-session", "type": kind});
        weights(1, 0, session.clone());
        let first = ask("");
        assert_eq!((first.status, first.header("x-pod")), (200, Some("one")), "{first:?}");
        let token = first.header(name).unwrap().split(';').next().unwrap().to_owned();
        let kept = if kind == "Cookie" { format!("cookie: {token}\r\n") } else { format!("x-session: {token}\r\n") };
        weights(0, 1, session);
        for _ in 0..8 {
            assert_eq!(ask(&kept).header("x-pod"), Some("one"), "the session stays, {kind}");
            assert_eq!(ask("").header("x-pod"), Some("two"), "new ones begin elsewhere, {kind}");
        }
        // Its end is that of the pod: the next request begins a new one, and does not fail.
        mesh.servers[0].set_ready(false);
        until("the session goes on elsewhere", || {
            let answer = ask(&kept);
            assert_eq!(answer.status, 200, "{answer:?}");
            (answer.header("x-pod") == Some("two")).then(|| assert!(answer.header(name).is_some(), "{answer:?}"))
        });
        mesh.servers[0].set_ready(true);
        until("it is back", || (ask(&kept).header("x-pod") == Some("one")).then_some(()));
    }
}

/// A pod that ends stays known as long as its Service has no other, though its application takes nothing more.
#[test]
fn a_session_of_an_application_that_refuses_goes_where_the_weights_are() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("refuses", 1);
    let weights = |one: u32, two: u32| {
        let backends = backends(&[("one", one), ("two", two)], 80);
        mesh.rule(
            json!({"sessionPersistence": {"sessionName": "x-session", "type": "Header"}, "backendRefs": backends}),
        );
        let who = if one > 0 { "one" } else { "two" };
        until("the weights are in force", || (mesh.get("/").header("x-pod") == Some(who)).then_some(()));
    };
    weights(1, 0);
    let token = until("a session begins", || mesh.get("/").header("x-session").map(str::to_owned));
    weights(0, 1);
    let ask = |method: &str| {
        let request = format!("{method} / HTTP/1.1\r\nhost: a\r\nx-session: {token}\r\ncontent-length: 4\r\n\r\nbody");
        mesh.client.connect(mesh.http).ask(&request).unwrap()
    };
    assert_eq!(ask("POST").header("x-pod"), Some("one"));
    mesh.apps[0].stop();
    for method in ["GET", "POST", "POST"] {
        let answer = ask(method);
        assert_eq!((answer.status, answer.header("x-pod")), (200, Some("two")), "{method}: {answer:?}");
        assert_eq!(answer.header("x-received"), Some("4"), "with its body");
        assert!(answer.header("x-session").is_some_and(|new| new != token), "a new session: {answer:?}");
    }
}

#[test]
fn a_browser_is_told_what_a_page_may_ask() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("cors", 1);
    mesh.rule(json!({"backendRefs": backends(&[("one", 1)], 80), "filters": [{"type": "CORS", "cors": {
        "allowOrigins": ["https://page.example"], "allowMethods": ["PUT"], "allowHeaders": ["x-a"], "maxAge": 60, "allowCredentials": true}}]}));
    let ask = |method: &str, origin: &str| {
        let request = format!(
            "{method} /x HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\naccess-control-request-method: PUT\r\ncontent-length: 0\r\n\r\n"
        );
        mesh.client.connect(mesh.http).ask(&request).unwrap()
    };
    let allowed = until("the preflight request is answered", || {
        Some(ask("OPTIONS", "https://page.example"))
            .filter(|answer| answer.header("access-control-allow-methods").is_some())
    });
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://page.example"));
    assert_eq!((allowed.header("access-control-max-age"), allowed.header("x-pod")), (Some("60"), None));
    let other = ask("OPTIONS", "https://other.example");
    // A page that the rule does not know is the application's affair, as with Envoy.
    assert_eq!((other.header("access-control-allow-origin"), other.header("x-pod")), (None, Some("one")));
    let answer = ask("PUT", "https://page.example");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example"));
    assert_eq!(answer.header("x-pod"), Some("one"));
}

/// What the whole chain does with the limits of a Service: its proxies take every field, and one request too many is refused.
#[test]
fn limits_and_ejections_of_a_service_are_taken() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("limits", 1);
    let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
    "metadata": {"name": "limits", "namespace": "shop"}, "spec": {"host": "all", "trafficPolicy": {
        "connectionPool": {
            "tcp": {"maxConnections": 100, "connectTimeout": "2s"},
            "http": {"http1MaxPendingRequests": 100, "http2MaxRequests": 1, "maxRequestsPerConnection": 5, "maxRetries": 2, "idleTimeout": "5s"},
        },
        "outlierDetection": {"consecutive5xxErrors": 3, "consecutiveGatewayErrors": 3, "interval": "1s", "baseEjectionTime": "10s", "maxEjectionPercent": 50},
        "loadBalancer": {"simple": "LEAST_REQUEST", "warmup": {"duration": "1s"}},
    }}});
    mesh.world.write("limits", &rule.to_string());
    let policy = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "limits", "namespace": "shop"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "all"}], "retryBudget": {"percent": 20, "minConcurrency": 3},
            "healthChecks": [{"type": "HTTP", "interval": "100ms", "http": {"path": "/healthz"}}, {"type": "TCP", "interval": "100ms"}],
            "fault": {"delay": {"fixedDelay": "10ms"}}}});
    mesh.world.write("policy", &policy.to_string());
    until("endpoints are checked", || {
        let _ = mesh.get("/warm");
        (mesh.client.metric("weir_health_checks_total", &[]) > 4.0).then_some(())
    });
    // One request at a time: the second is refused while the first is answered.
    let mut first = mesh.client.connect(mesh.http);
    until("one too many is refused", || {
        first.send(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nx").ok()?;
        let second = mesh.get("/second");
        first.send(b"y").ok()?;
        let _ = first.response().ok()?;
        (second.status == 503 && second.header("x-envoy-overloaded").is_some()).then_some(())
    });
    assert_eq!(mesh.get("/after").status, 200);
}
