//! The same rules for callers of HTTP/2 and gRPC: what changes a request, answers it, sends it again or copies it does so in either version.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::server;
use http::{Request, Response};
use serde_json::{Value, json};
use weir_tests::{
    Pod, PodSpec, World, at, each_with,
    http2::{H2App, H2Client, Reply, grpc, run},
    until,
};

/// What a server got: path, host, length of the body.
type Got = Arc<Mutex<Vec<(String, String, usize)>>>;

/// Service `all` in front of pods `one` and `two`, and a Service for each of them.
struct Mesh {
    client: Pod,
    _servers: [Pod; 2],
    _apps: Vec<H2App>,
    /// What each of them got.
    got: [Got; 2],
    all: SocketAddr,
    /// Pod `one` says that it does not serve.
    sick: Arc<AtomicBool>,
    world: World,
}

/// Says of its health that pod `one` does not serve where it is sick. Answers 200 with the name of the pod, or as the headers say:
/// `x-fail-at: NAME` is 503 there, `x-reset-at: NAME` a reset,
/// `x-slow` comes late.
fn app(pod: &Pod, got: &Got, sick: &Arc<AtomicBool>) -> H2App {
    let (name, got, sick) = (pod.name.clone(), got.clone(), sick.clone());
    H2App::new(&pod.netns, 8080, server::Builder::new(), move |request: Request<h2::RecvStream>, mut respond| {
        let (name, got, sick) = (name.clone(), got.clone(), sick.clone());
        async move {
            let (parts, mut body) = request.into_parts();
            let mut length = 0;
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                length += data.len();
            }
            let path = parts.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
            let host = parts.uri.authority().map_or("", |host| host.as_str()).to_owned();
            got.lock().unwrap().push((path.clone(), host, length));
            if parts.headers.contains_key("x-slow") {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            let fails = parts.headers.get("x-fail-at").is_some_and(|at| at == name.as_str());
            if parts.headers.get("x-reset-at").is_some_and(|at| at == name.as_str()) {
                return respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            if path == "/grpc.health.v1.Health/Check" {
                let sick = sick.load(SeqCst) && name == "one";
                let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let Ok(mut out) = respond.send_response(head, false) else { return };
                let _ = out.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, if sick { 2 } else { 1 }]), false);
                let _ =
                    out.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect());
                return;
            }
            let is_grpc = parts.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
            let head = Response::builder().header("x-pod", &name);
            let head = match (is_grpc, fails) {
                (true, fails) => head
                    .header("content-type", "application/grpc")
                    .header("grpc-status", if fails { "14" } else { "0" }),
                (false, fails) => head.status(if fails { 503 } else { 200 }),
            };
            let _ = respond.send_response(head.body(()).unwrap(), true);
        }
    })
}

impl Mesh {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let servers = ["one", "two"].map(|name| {
            world.pod_unready(PodSpec::new(name).label("tier", "back").port("http2", 8080).workers(workers))
        });
        let got: [Got; 2] = Default::default();
        let sick = Arc::new(AtomicBool::new(false));
        let apps = servers.iter().zip(&got).map(|(pod, got)| app(pod, got, &sick)).collect();
        let all = at(world.service("all", 10, &json!({"tier": "back"}), &[("http2", 80, 8080)]), 80);
        for (last, name) in [(11, "one"), (12, "two")] {
            world.service(name, last, &json!({"app": name}), &[("http2", 80, 8080)]);
        }
        let client = world.pod(PodSpec::new("client").workers(workers));
        servers.iter().for_each(Pod::wait_ready);
        Self { client, _servers: servers, _apps: apps, got, all, sick, world }
    }

    /// The only rule of Service `all`.
    fn rule(&self, rule: Value) {
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "rules", "namespace": "shop"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "all", "port": 80}], "rules": [rule]},
        });
        self.world.write("rules", &route.to_string());
    }

    /// A policy of this kind for Service `all`.
    fn policy(&self, version: &str, kind: &str, spec: Value) {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "policy", "namespace": "shop"}, "spec": spec});
        self.world.write(&format!("policy-{kind}"), &object.to_string());
    }

    fn ask(&self, request: Request<()>, body: &'static [u8]) -> Option<Reply> {
        run(async {
            let mut client = H2Client::connect(&self.client.netns, self.all).await.ok()?;
            client.ask(request, Bytes::from_static(body)).await.ok()
        })
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Option<Reply> {
        let mut request = Request::get(format!("http://all{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.ask(request.body(()).unwrap(), b"")
    }

    fn post(&self, path: &str, body: &'static [u8]) -> Option<Reply> {
        self.ask(Request::post(format!("http://all{path}")).body(()).unwrap(), body)
    }

    fn call(&self, headers: &[(&str, &str)]) -> Option<Reply> {
        self.ask(grpc("/a.S/M", headers), b"\0\0\0\0\x01x")
    }

    /// What any of them got with this path.
    fn came(&self, path: &str) -> Vec<(String, usize)> {
        let all = self.got.iter().flat_map(|got| got.lock().unwrap().clone());
        all.filter(|(came, ..)| came == path).map(|(_, host, length)| (host, length)).collect()
    }
}

fn backends(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name, "port": 80})).collect()
}

#[test]
fn paths_hosts_and_places_are_those_of_the_rule() {
    each_with(&[1, 4], |workers| {
        let mesh = Mesh::new("h2-rewrite", workers);
        mesh.rule(json!({"matches": [{"path": {"value": "/a"}}], "backendRefs": backends(&["one"]), "filters": [
        {"type": "URLRewrite", "urlRewrite": {"hostname": "in.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}}]}));
        until("the path is another", || {
            mesh.get("/a/c?d=1", &[]);
            (!mesh.came("/b/c?d=1").is_empty()).then_some(())
        });
        assert_eq!(mesh.came("/b/c?d=1")[0].0, "in.example");
        mesh.rule(json!({"matches": [{"path": {"value": "/x"}}], "filters": [{"type": "RequestRedirect", "requestRedirect": {
        "hostname": "a.example", "statusCode": 308, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/z"}}}]}));
        let reply =
            until("the caller is told another place", || mesh.get("/x/y?q=1", &[]).filter(|reply| reply.status == 308));
        assert_eq!(reply.header("location"), Some("http://a.example/z/y?q=1"));
        assert!(reply.body.is_empty());
    });
}

#[test]
fn what_fails_is_asked_of_another_and_what_is_late_ends() {
    each_with(&[1, 4], |workers| {
        let mesh = Mesh::new("h2-retry", workers);
        let retries = |codes: Value| json!({"backendRefs": backends(&["all"]), "retry": {"codes": codes, "attempts": 3, "backoff": "1ms"}});
        let at = |how, name| {
            (0..20).filter(|_| mesh.get("/", &[(how, name)]).is_none_or(|reply| reply.status == 503)).count()
        };
        let fails = || at("x-fail-at", "one") + at("x-fail-at", "two");
        let resets = || at("x-reset-at", "one") + at("x-reset-at", "two");
        assert!(fails() > 3 && resets() > 3, "whoever is asked fails one of both, without a rule");
        mesh.rule(retries(json!([503])));
        until("all go well", || (fails() == 0).then_some(()));
        // No answer is no 503, whatever the server's proxy makes of it.
        mesh.rule(retries(json!([500])));
        until("the codes are others", || (fails() > 3).then_some(()));
        assert_eq!(resets(), 0, "{workers} workers");
        mesh.rule(retries(json!([503])));
        until("all go well", || (fails() == 0).then_some(()));
        // With a body, which is sent again.
        let reply = mesh
            .ask(Request::post("http://all/body").header("x-fail-at", "two").body(()).unwrap(), b"some body")
            .unwrap();
        assert_eq!((reply.status, reply.header("x-pod")), (200, Some("one")));
        assert!(mesh.came("/body").iter().all(|(_, length)| *length == 9), "{:?}", mesh.came("/body"));
        mesh.rule(json!({"timeouts": {"request": "200ms"}, "backendRefs": backends(&["all"])}));
        until("what is late ends", || {
            let start = Instant::now();
            let reply = mesh.get("/", &[("x-slow", "1")])?;
            (reply.status == 504 && start.elapsed() < Duration::from_secs(2)).then_some(())
        });
        let late =
            until("and so does a call", || mesh.call(&[("x-slow", "1")]).filter(|reply| reply.grpc() == Some(4)));
        assert_eq!(late.status, 200);
    });
}

#[test]
fn copies_go_out_and_nobody_waits_for_them() {
    each_with(&[1, 4], |workers| {
        let mesh = Mesh::new("h2-mirror", workers);
        mesh.rule(json!({"backendRefs": backends(&["one"]), "filters": [
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "two", "port": 80}}}]}));
        let mut number = 0;
        until("copies come", || {
            number += 1;
            let path = format!("/copied/{number}");
            let reply = mesh.post(&path, b"some body")?;
            assert_eq!(reply.status, 200);
            // Without the rule one of both answers alone.
            let came = |got: &Got| got.lock().unwrap().iter().any(|(came, _, length)| *came == path && *length == 9);
            let end = Instant::now() + Duration::from_secs(1);
            while !mesh.got.iter().all(came) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            (mesh.got.iter().all(came) && reply.header("x-pod") == Some("one")).then_some(())
        });
        let start = Instant::now();
        assert_eq!(mesh.get("/", &[]).unwrap().status, 200);
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn policies_make_faults_and_bound_requests() {
    each_with(&[1, 4], |workers| {
        let mesh = Mesh::new("h2-policy", workers);
        let policy = |key: &str, value: Value| {
            mesh.policy(
                "weir.dev/v1alpha1",
                "TrafficPolicy",
                json!({"targetRefs": [{"group": "", "kind": "Service", "name": "all"}], key: value}),
            );
        };
        policy("fault", json!({"abort": {"grpcStatus": 8}}));
        let reply = until("calls fail", || mesh.call(&[]).filter(|reply| reply.grpc() == Some(8)));
        assert_eq!(reply.status, 200);
        assert_eq!(mesh.get("/", &[]).unwrap().status, 429, "what stands for it in HTTP");
        policy("limits", json!({"requestBodyBytes": 10}));
        until("bodies are too large", || mesh.post("/", b"12345678901").filter(|reply| reply.status == 413));
        assert_eq!(mesh.post("/", b"1234567890").unwrap().status, 200);
        policy("rateLimit", json!({"requests": 1, "interval": "1h"}));
        until("requests are too many", || mesh.get("/", &[]).filter(|reply| reply.status == 429));
    });
}

#[test]
fn health_is_asked_by_grpc() {
    each_with(&[1, 4], |workers| {
        let mesh = Mesh::new("h2-health", workers);
        mesh.policy(
        "weir.dev/v1alpha1",
        "TrafficPolicy",
        json!({"targetRefs": [{"group": "", "kind": "Service", "name": "all"}], "healthChecks": [
            {"type": "GRPC", "grpc": {"service": "a.S"}, "interval": "100ms", "timeout": "1s", "unhealthyThreshold": 2}]}),
    );
        until("both are asked", || {
            mesh.get("/", &[]);
            let asked = |got: &Got| {
                got.lock().unwrap().iter().any(|(path, _, length)| path.ends_with("/Check") && *length == 10)
            };
            mesh.got.iter().all(asked).then_some(())
        });
        mesh.sick.store(true, SeqCst);
        let by_one =
            || (0..20).filter(|_| mesh.get("/", &[]).is_some_and(|reply| reply.header("x-pod") == Some("one"))).count();
        until("one does not serve", || (by_one() == 0).then_some(()));
        mesh.sick.store(false, SeqCst);
        until("and serves again", || (by_one() > 0).then_some(()));
    });
}

/// One connection to the Service, and as many requests on it as there are; where several workers have some, each gets its turn.
#[test]
fn limited_connections_are_shared() {
    each_with(&[1, 4], |workers| {
        let mesh = Mesh::new("h2-limits", workers);
        mesh.rule(json!({"backendRefs": backends(&["one"])}));
        let pool = json!({"connectionPool": {"tcp": {"maxConnections": 1}}});
        let policy = json!({"host": "one.shop.svc.cluster.local", "trafficPolicy": pool});
        mesh.policy("networking.istio.io/v1", "DestinationRule", policy);
        until("the rules are in force", || {
            mesh.get("/", &[]).filter(|reply| reply.header("x-pod") == Some("one"))?;
            mesh.client.admin("/config_dump").contains("max_connections").then_some(())
        });
        let end = Instant::now() + Duration::from_secs(4);
        let answers = run(async {
            let mut callers = Vec::new();
            for _ in 0..8 {
                let mut client = H2Client::connect(&mesh.client.netns, mesh.all).await.unwrap();
                callers.push(tokio::task::spawn_local(async move {
                    let mut answers = 0;
                    while Instant::now() < end {
                        let reply = client.ask(Request::get("http://all/").body(()).unwrap(), Bytes::new()).await;
                        assert_eq!(reply.unwrap().status, 200);
                        answers += 1;
                    }
                    answers
                }));
            }
            let mut answers = Vec::new();
            for caller in callers {
                answers.push(caller.await.unwrap());
            }
            answers
        });
        let share = answers.iter().sum::<usize>() / answers.len();
        let least = *answers.iter().min().unwrap();
        assert!(least * 5 > share, "{workers} workers: somebody got less than a fifth of its share: {answers:?}");
    });
}
