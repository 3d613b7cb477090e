//! What a split's percentages are worth: 10,000 requests of one caller's proxy, by HTTP/1.1 and HTTP/2, with one worker and with four, and
//! the few requests right after a change.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{net::SocketAddr, thread};

use bytes::Bytes;
use http::Request;
use serde_json::json;
use weir_tests::{
    App, Pod, PodSpec, World, at,
    http2::{H2App, H2Client, run},
    is_root, until,
};

/// Requests of a long run.
const MANY: usize = 10_000;
/// Connections that share them.
const CONNECTIONS: usize = 8;
/// Weights of the old and of the new version.
const WEIGHTS: [(u32, u32); 5] = [(99, 1), (95, 5), (75, 25), (667, 333), (50, 50)];

/// How requests are sent.
#[derive(Debug, Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

/// Service `catalog` with a port for either version of HTTP, and Services `old` and `new` behind it.
struct Shop {
    client: Pod,
    _servers: [Pod; 2],
    _apps: ([App; 2], [H2App; 2]),
    catalog: [SocketAddr; 2],
    world: World,
}

impl Shop {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let servers = ["old", "new"].map(|name| {
            let spec = PodSpec::new(name).label("shop", "catalog").port("http", 8080).port("http2", 8081);
            world.pod_unready(spec.workers(workers))
        });
        let echo = |pod: &Pod| (App::echo(&pod.netns, 8080, &pod.name), H2App::echo(&pod.netns, 8081, &pod.name));
        let [(old, old2), (new, new2)] = [echo(&servers[0]), echo(&servers[1])];
        let ports = [("http", 80, 8080), ("http2", 81, 8081)];
        let catalog = world.service("catalog", 10, &json!({"shop": "catalog"}), &ports);
        for (last, name) in [(11, "old"), (12, "new")] {
            world.service(name, last, &json!({"app": name}), &ports);
        }
        let client = world.pod(PodSpec::new("client").workers(workers));
        servers.iter().for_each(Pod::wait_ready);
        let catalog = [80, 81].map(|port| at(catalog, port));
        Self { client, _servers: servers, _apps: ([old, new], [old2, new2]), catalog, world }
    }

    /// Gives the versions these weights, and waits until answers say that the rule is in force.
    fn weights(&self, old: u32, new: u32) {
        let mark = format!("{old}/{new}");
        for port in [80, 81] {
            let backends: Vec<_> = [("old", old), ("new", new)]
                .map(|(name, weight)| json!({"name": name, "port": port, "weight": weight}))
                .into();
            let mark = json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rule", "value": mark}]}}]);
            let route = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": format!("catalog-{port}"), "namespace": "shop"},
                "spec": {
                    "parentRefs": [{"group": "", "kind": "Service", "name": "catalog", "port": port}],
                    "rules": [{"filters": mark, "backendRefs": backends}],
                },
            });
            self.world.write(&format!("route-{port}"), &route.to_string());
        }
        for version in [Version::Http1, Version::Http2] {
            until("the weights are in force", || {
                self.asked(version, 1).iter().all(|(_, rule)| *rule == mark).then_some(())
            });
        }
    }

    /// Who answered so many requests on one connection, and by which rule.
    fn asked(&self, version: Version, requests: usize) -> Vec<(String, String)> {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        match version {
            Version::Http1 => {
                let mut connection = self.client.connect(self.catalog[0]);
                let answers = (0..requests).map(|_| connection.get("/"));
                answers.map(|answer| (text(answer.header("x-pod")), text(answer.header("x-rule")))).collect()
            }
            Version::Http2 => run(async {
                let mut connection = H2Client::connect(&self.client.netns, self.catalog[1]).await.unwrap();
                let mut all = Vec::new();
                for _ in 0..requests {
                    let request = Request::get("http://catalog/").body(()).unwrap();
                    let answer = connection.ask(request, Bytes::new()).await.unwrap();
                    all.push((text(answer.header("x-pod")), text(answer.header("x-rule"))));
                }
                all
            }),
        }
    }

    /// How many of so many requests the new version answered.
    fn new_of(&self, version: Version, requests: usize) -> usize {
        let of_one = || self.asked(version, requests / CONNECTIONS);
        let answers: Vec<(String, String)> = thread::scope(|scope| {
            let all: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(of_one)).collect();
            all.into_iter().flat_map(|one| one.join().unwrap()).collect()
        });
        let by = |name: &str| answers.iter().filter(|(pod, _)| pod == name).count();
        assert_eq!(by("old") + by("new"), requests, "every request is answered by one of them");
        by("new")
    }
}

/// A point of 10,000 requests would be 100 of them. It is one: any run of requests of a proxy has each share rounded up or down.
#[test]
fn shares_of_ten_thousand_requests_are_exact() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let shop = Shop::new("percent", workers);
        for (old, new) in WEIGHTS {
            shop.weights(old, new);
            for version in [Version::Http1, Version::Http2] {
                let got = shop.new_of(version, MANY);
                let wanted = MANY as f64 * f64::from(new) / f64::from(old + new);
                println!("{workers} workers, {version:?}, {new} of {}: {got} of {MANY}", old + new);
                assert!(
                    (got as f64 - wanted).abs() <= 1.0,
                    "{workers} workers, {version:?}: {got} and not {wanted:.1}"
                );
            }
        }
    }
}

/// Right after a change, and from any moment on: a canary of 1 % gets one of 100 requests, not none or five.
#[test]
fn shares_of_a_few_requests_are_as_close_as_whole_requests_can_be() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let shop = Shop::new("few", workers);
        for (old, new) in WEIGHTS {
            shop.weights(old, new);
            for version in [Version::Http1, Version::Http2] {
                for requests in [1, 4, 10, 20, 100] {
                    let answers = shop.asked(version, requests);
                    let got = answers.iter().filter(|(pod, _)| pod == "new").count();
                    let wanted = requests as f64 * f64::from(new) / f64::from(old + new);
                    assert!(
                        (wanted.floor()..=wanted.ceil()).contains(&(got as f64)),
                        "{workers} workers, {version:?}, {new} of {}: {got} of {requests}, and not {wanted}",
                        old + new
                    );
                }
            }
        }
    }
}
