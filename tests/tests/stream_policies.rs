//! A DestinationRule for a port that carries streams: limits, keys and ejections act on connections as they do on requests.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::{Value, json};
use weir_tests::{App, Client, Pod, PodSpec, World, at, each_with, until};

const SERVERS: usize = 4;

/// A client, and a Service of servers that answer each byte with their number.
struct Shop {
    clients: Vec<Pod>,
    apps: Vec<App>,
    /// A port that declares its protocol.
    tcp: SocketAddr,
    /// One that does not.
    any: SocketAddr,
    world: World,
    servers: Vec<Pod>,
}

/// Answers each byte with this number.
fn server(pod: &Pod, number: usize) -> App {
    App::raw(&pod.netns, 7000, move |mut stream: TcpStream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(number.to_string().as_bytes()).is_ok() {}
    })
}

impl Shop {
    fn new(name: &str, workers: usize, clients: usize) -> Self {
        let world = World::new(name);
        let servers: Vec<Pod> = (0..SERVERS)
            .map(|number| {
                world.pod_unready(PodSpec::new(&format!("server-{number}")).label("app", "shop").port("tcp", 7000))
            })
            .collect();
        let apps = servers.iter().enumerate().map(|(number, pod)| server(pod, number)).collect();
        let ip = world.service("shop", 10, &json!({"app": "shop"}), &[("tcp", 70, 7000), ("any", 71, 7000)]);
        let clients =
            (0..clients).map(|number| world.pod(PodSpec::new(&format!("client-{number}")).workers(workers))).collect();
        servers.iter().for_each(Pod::wait_ready);
        Self { clients, apps, tcp: at(ip, 70), any: at(ip, 71), world, servers }
    }

    /// What is said of connections to the Service.
    fn rule(&self, policy: Value) {
        let rule = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"host": "shop", "trafficPolicy": policy},
        });
        self.world.write("rule", &rule.to_string());
    }

    /// Which server answers a new stream, and the stream; none where it is refused.
    fn stream(&self, client: usize, to: SocketAddr) -> Option<(String, Client)> {
        let mut stream = self.clients[client].try_connect(to).ok()?;
        stream.send(b"x").ok()?;
        let answer = stream.exactly(1).ok()?;
        Some((String::from_utf8_lossy(&answer).into_owned(), stream))
    }

    /// The servers that so many streams meet.
    fn met(&self, client: usize, to: SocketAddr, streams: usize) -> BTreeSet<String> {
        (0..streams).map(|_| self.stream(client, to).expect("a server").0).collect()
    }
}

#[test]
fn so_many_streams_and_no_more() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("stream-limit", workers, 1);
        shop.rule(json!({"connectionPool": {"tcp": {"maxConnections": 3}}}));
        for to in [shop.tcp, shop.any] {
            // Those that were there before the limit count for nothing.
            until("the limit is in force", || {
                let open: Vec<_> = (0..4).map(|_| shop.stream(0, to)).collect();
                open.iter().any(Option::is_none).then_some(())
            });
            let mut open: Vec<_> = until("three are open", || {
                let open: Vec<_> = (0..3).filter_map(|_| shop.stream(0, to)).collect();
                (open.len() == 3).then_some(open)
            });
            for _ in 0..8 {
                assert!(shop.stream(0, to).is_none(), "{workers} workers: a fourth");
            }
            let (_, mut first) = open.remove(0);
            first.send(b"x").unwrap();
            assert_eq!(first.exactly(1).unwrap().len(), 1, "the others are not disturbed");
            drop(first);
            open.push(until("there is room again", || shop.stream(0, to)));
            assert!(shop.stream(0, to).is_none());
        }
        let client = &shop.clients[0];
        assert!(client.metric("weir_connections_refused_total", &[("reason", "max_connections")]) > 15.5);
        assert!(client.metric("istio_tcp_connections_closed_total", &[("response_flags", "UO")]) > 15.5);
        let lines = client.log(&["connection refused", "max_connections", "shop"]);
        assert!(!lines.is_empty(), "the log says why");
    });
}

/// `useSourceIp` gives a pod one server for all its streams, and another pod maybe another; without it they go to all.
#[test]
fn streams_of_a_pod_stay_with_one_server() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("stream-key", workers, 6);
        assert!(shop.met(0, shop.tcp, 40).len() > 1);
        for hash in [json!({"useSourceIp": true}), json!({"useSourceIp": true, "maglev": {}})] {
            shop.rule(json!({"loadBalancer": {"consistentHash": hash}}));
            for to in [shop.tcp, shop.any] {
                for client in 0..shop.clients.len() {
                    until("the key is in force", || (shop.met(client, to, 12).len() == 1).then_some(()));
                }
                let of = |client| {
                    let servers = shop.met(client, to, 20);
                    assert_eq!(servers.len(), 1, "{workers} workers, client {client}: {servers:?}");
                    servers.into_iter().next()
                };
                let all: BTreeSet<_> = (0..shop.clients.len()).map(of).collect();
                assert!(all.len() > 1, "not all pods have the same: {all:?}");
            }
            // A key that streams do not have: as without one.
            shop.rule(json!({"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}));
            for client in 0..shop.clients.len() {
                until("there is no key", || (shop.met(client, shop.tcp, 40).len() > 1).then_some(()));
            }
        }
    });
}

/// A rule of the route decides for the services behind it.
#[test]
fn streams_of_a_route_have_the_key_of_its_backends() {
    let shop = Shop::new("stream-route-key", 1, 1);
    let ip = shop.world.service("front", 11, &json!({"app": "nobody"}), &[("tcp", 70, 7000)]);
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "TCPRoute", "metadata": {"name": "front", "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "front"}],
            "rules": [{"backendRefs": [{"name": "shop", "port": 70}]}]},
    });
    shop.world.write("route", &route.to_string());
    let to = at(ip, 70);
    until("the route is in force", || shop.stream(0, to));
    assert!(shop.met(0, to, 40).len() > 1);
    shop.rule(json!({"loadBalancer": {"consistentHash": {"useSourceIp": true}}}));
    until("the key is in force", || (shop.met(0, to, 20).len() == 1).then_some(()));
}

/// Who does not take connections is ejected, and gets one on probation when its time is over.
#[test]
fn who_takes_no_streams_is_ejected() {
    each_with(&[1, 4], |workers| {
        let mut shop = Shop::new("stream-outlier", workers, 1);
        shop.rule(json!({"loadBalancer": {"simple": "ROUND_ROBIN"},
            "outlierDetection": {"consecutive5xxErrors": 2, "baseEjectionTime": "1s", "maxEjectionPercent": 50}}));
        until("the rule is in force", || {
            shop.stream(0, shop.tcp);
            shop.clients[0].admin("/config_dump").contains("consecutive").then_some(())
        });
        shop.apps[0].stop();
        let ejections = |shop: &Shop, reason| shop.clients[0].metric("weir_ejections_total", &[("reason", reason)]);
        until("it is ejected", || {
            assert!(shop.stream(0, shop.tcp).is_some(), "another one takes the stream");
            (ejections(&shop, "consecutive_5xx") > 0.5).then_some(())
        });
        until("one stream finds out that it is not well yet", || {
            assert!(shop.stream(0, shop.tcp).is_some());
            (ejections(&shop, "probation") > 0.5).then_some(())
        });
        drop(shop.apps.remove(0));
        shop.apps.push(server(&shop.servers[0], 0));
        until("it is back", || shop.met(0, shop.tcp, 8).contains("0").then_some(()));
    });
}
