//! Header filters of an HTTPRoute, through two proxies: what the application gets and what the client hears, byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::{Value, json};
use weir_tests::{App, Flow, Pod, PodSpec, World, app::Request, at, is_root, until};

/// Two pods with a Service each, and a third Service whose rules lead to them.
struct Shop {
    client: Pod,
    apps: [App; 2],
    service: SocketAddr,
    world: World,
    _pods: [Pod; 2],
}

impl Shop {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let pods = ["a", "b"].map(|name| world.pod_unready(PodSpec::new(name).port("http", 8080).workers(workers)));
        let apps = [0, 1].map(|n: usize| App::http(&pods[n].netns, 8080, answer));
        let ports = [("http", 80, 8080)];
        world.service("a", 11, &json!({"app": "a"}), &ports);
        world.service("b", 12, &json!({"app": "b"}), &ports);
        let service = at(world.service("shop", 10, &json!({"app": "none"}), &ports), 80);
        let client = world.pod(PodSpec::new("client").workers(workers));
        pods.iter().for_each(Pod::wait_ready);
        Self { client, apps, service, world, _pods: pods }
    }

    /// Puts one rule in force.
    fn rule(&self, version: &str, backends: &Value, filters: &Value) {
        let mark = json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rule", "value": version}]}});
        let marker =
            json!([{"matches": [{"path": {"value": "/version"}}], "filters": [mark], "backendRefs": backends}]);
        let mut rules = marker;
        rules.as_array_mut().unwrap().push(json!({"filters": filters, "backendRefs": backends}));
        self.world.route("shop", &rules);
        until("the rule is in force", || {
            let response = self.client.connect(self.service).get("/version");
            (response.header("x-rule") == Some(version)).then_some(())
        });
    }
}

fn answer(_: &Request, stream: &mut TcpStream) -> io::Result<Flow> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nServer: app\r\nX-Set: app\r\nX-Add: app\r\nX-Gone: app\r\nx-gone: again\r\n\
          Set-Cookie: a=1\r\nSet-Cookie: b=2\r\ncontent-length: 2\r\n\r\nok",
    )?;
    Ok(Flow::Keep)
}

const REQUEST: &str = "GET /x?y=z HTTP/1.1\r\nHost: shop\r\nx-request-id: 1\r\nX-Set: old\r\nx-set: older\r\nX-Add: one\r\n\
                       X-Gone: 1\r\nx-GONE: 2\r\nx-stay: a\r\nX-Both: c\r\nX-Stay: b\r\nCookie: k=v\r\n\r\n";

#[test]
fn filters_of_rule_and_backend_edit_exactly_what_they_name() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let shop = Shop::new("filters", workers);
        let on_rule = json!([
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                "set": [{"name": "x-SET", "value": "rule"}, {"name": "X-Both", "value": "rule"}, {"name": "x-rule-only", "value": "1"}],
                "add": [{"name": "x-ADD", "value": "rule"}], "remove": ["X-gone"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                "set": [{"name": "x-set", "value": "rule"}],
                "add": [{"name": "X-ADD", "value": "rule"}, {"name": "Set-Cookie", "value": "c=3, d"}], "remove": ["SERVER"]}},
        ]);
        let on_backend = json!([
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                "set": [{"name": "X-New", "value": "backend"}],
                "add": [{"name": "x-both", "value": "backend"}, {"name": "x-add", "value": "backend"}], "remove": ["x-Rule-Only"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                "set": [{"name": "X-SET", "value": "backend"}], "add": [{"name": "x-add", "value": "backend"}], "remove": ["x-gone"]}},
        ]);
        let plain = json!([{"name": "a", "port": 80}]);
        let edited = json!([{"name": "a", "port": 80, "filters": on_backend}]);
        let untouched = "GET /x?y=z HTTP/1.1\r\nHost: shop\r\nx-request-id: 1\r\n";
        let app_says = "HTTP/1.1 200 OK\r\n";
        let cases = [
            (
                "none",
                &plain,
                json!([]),
                REQUEST.trim_end().to_owned(),
                format!(
                    "{app_says}Server: app\r\nX-Set: app\r\nX-Add: app\r\nX-Gone: app\r\nx-gone: again\r\nSet-Cookie: a=1\r\n\
                     Set-Cookie: b=2\r\ncontent-length: 2"
                ),
            ),
            (
                "rule",
                &plain,
                on_rule.clone(),
                format!(
                    "{untouched}X-Add: one,rule\r\nx-stay: a\r\nX-Stay: b\r\nCookie: k=v\r\nx-set: rule\r\nx-both: rule\r\nx-rule-only: 1"
                ),
                format!(
                    "{app_says}X-Add: app,rule\r\nX-Gone: app\r\nx-gone: again\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
                     content-length: 2\r\nx-set: rule\r\nset-cookie: c=3, d"
                ),
            ),
            (
                "backend",
                &edited,
                json!([]),
                format!(
                    "{untouched}X-Set: old\r\nx-set: older\r\nX-Add: one,backend\r\nX-Gone: 1\r\nx-GONE: 2\r\nx-stay: a\r\n\
                     X-Both: c,backend\r\nX-Stay: b\r\nCookie: k=v\r\nx-new: backend"
                ),
                format!(
                    "{app_says}Server: app\r\nX-Add: app,backend\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\ncontent-length: 2\r\n\
                     x-set: backend"
                ),
            ),
            (
                "both",
                &edited,
                on_rule,
                format!(
                    "{untouched}X-Add: one,rule,backend\r\nx-stay: a\r\nX-Stay: b\r\nCookie: k=v\r\nx-set: rule\r\n\
                     x-both: rule,backend\r\nx-new: backend"
                ),
                format!(
                    "{app_says}X-Add: app,rule,backend\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\ncontent-length: 2\r\n\
                     x-set: backend\r\nset-cookie: c=3, d"
                ),
            ),
        ];
        for (what, backends, filters, received, heard) in cases {
            shop.rule(what, backends, &filters);
            let mut connection = shop.client.connect(shop.service);
            for _ in 0..2 {
                let response = connection.ask(REQUEST).unwrap();
                assert_eq!(shop.apps[0].last().unwrap().head, received, "{what}: what the application got");
                assert_eq!((response.head, response.body), (heard.clone(), b"ok".to_vec()), "{what}");
            }
        }
    }
}

#[test]
fn each_backend_of_a_split_has_filters_of_its_own() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let shop = Shop::new("split-filters", workers);
        let to = |name: &str| {
            json!({"name": name, "port": 80, "weight": 1, "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-to", "value": name}]}},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "x-from", "value": name}]}},
            ]})
        };
        shop.rule("split", &json!([to("a"), to("b")]), &json!([]));
        for app in &shop.apps {
            app.requests.lock().unwrap().clear();
        }
        let mut connection = shop.client.connect(shop.service);
        let mut heard = [0, 0];
        for _ in 0..40 {
            let response = connection.ask("GET /split HTTP/1.1\r\nhost: shop\r\nX-To: nobody\r\n\r\n").unwrap();
            match response.header("x-from") {
                Some("a") => heard[0] += 1,
                Some("b") => heard[1] += 1,
                other => panic!("{other:?}: {response:?}"),
            }
        }
        for (n, name) in ["a", "b"].into_iter().enumerate() {
            let requests = shop.apps[n].requests.lock().unwrap();
            assert!(requests.iter().all(|request| request.header("x-to") == Some(name)), "{name}: {requests:?}");
            assert_eq!(requests.len(), heard[n], "{heard:?}");
            assert!((19..=21).contains(&heard[n]), "{heard:?}");
        }
    }
}

/// However it is written: an application never sees the mesh's own marker, and what it says of it is not believed.
#[test]
fn the_marker_can_not_be_smuggled_in_by_another_spelling() {
    if !is_root() {
        return;
    }
    let world = World::new("smuggle");
    let server = world.pod(PodSpec::new("server").port("http", 8080));
    let app = App::http(&server.netns, 8080, |request, stream| {
        let body = match request.path.as_str() {
            "/trailer" => "transfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nX-Weir-Fault: 3\r\n\r\n",
            _ => "content-length: 2\r\n\r\nno",
        };
        write!(stream, "HTTP/1.1 503 No\r\nX-Weir-Fault: not-delivered\r\nx-weir-FAULT: 2\r\n{body}")?;
        Ok(Flow::Keep)
    });
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    let requests = [
        "GET / HTTP/1.1\r\nhost: x\r\nX-Weir-Fault: not-delivered\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\nx-weir-fault: not-delivered\r\na: b\r\nX-WEIR-FAULT:\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: x-weir-fault\r\nx-weir-fault: not-delivered\r\n\r\n",
        "GET / HTTP/1.0\r\nx-weir-fault: not-delivered\r\nconnection: keep-alive\r\n\r\n",
    ];
    let mut sent = 0;
    for (from, to) in [(&client, service), (&stranger, at(server.ip, 8080))] {
        for request in requests {
            let response = from.connect(to).ask(request).unwrap();
            sent += 1;
            assert_eq!((response.status, response.text().as_str()), (503, "no"), "{request}");
            assert!(!response.head.to_ascii_lowercase().contains("weir-fault"), "{request}: {}", response.head);
            let head = app.last().unwrap().head.to_ascii_lowercase();
            assert!(!head.contains("weir-fault"), "{}: {head}", from.name);
        }
    }
    // Among trailers, which may be on their way before the last of them is read, it is a fault of the message.
    for (from, to) in [(&client, service), (&stranger, at(server.ip, 8080))] {
        let answer = from.connect(to).try_get("/trailer");
        sent += 1;
        assert!(!matches!(&answer, Ok(response) if response.status != 502), "{}: {answer:?}", from.name);
        let request = "POST /evil HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nX-Weir-fault: not-delivered\r\n\r\n";
        assert_eq!(from.connect(to).ask(request).unwrap().status, 400, "{}", from.name);
    }
    assert_eq!(app.count(), sent, "an answer of the application was taken for the mesh's word");
    assert!(client.metric("weir_retries_total", &[]) < 0.1);
}
