//! Weir's proxy with sidecars of Istio, as a client and as a server: a stock Envoy with Istio's names on the wire.
//!
//! That a list which begins with `istio-peer-exchange` is answered by another name, so that no Istio client begins its preamble, is
//! held by `wire.rs` over every list: an Envoy can not be asked what was agreed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use h2::server;
use http::{HeaderMap, Response};
use serde_json::json;
use weir_sandbox::tap::Verdict;
use weir_tests::{
    App, Pod, PodSpec, World, at,
    envoy::{Envoy, Inside, Upstream, istio_inbound, istio_outbound},
    http2::{self, H2App, H2Client, grpc, send},
    is_root, until,
};

/// Ports of the server's Services and of its application: each protocol declared and not.
const HTTP: [(&str, u16, u16); 2] = [("http", 80, 8080), ("", 81, 8081)];
const GRPC: [(&str, u16, u16); 2] = [("grpc", 90, 9000), ("", 91, 9001)];
const TCP: [(&str, u16, u16); 2] = [("tcp", 70, 7000), ("", 71, 7001)];

/// Greets, and then sends back six bytes at a time; everything that came is kept.
fn greeter(pod: &Pod, port: u16) -> (App, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    let app = App::raw(&pod.netns, port, move |mut stream: TcpStream| {
        let _ = stream.write_all(b"220 ready\r\n");
        let mut line = [0; 6];
        while stream.read_exact(&mut line).is_ok() {
            kept.lock().unwrap().extend(line);
            if stream.write_all(&line).is_err() {
                return;
            }
        }
    });
    (app, heard)
}

/// Hears the greeting before it says anything.
fn greeted(from: &Pod, to: SocketAddr) {
    let mut connection = from.connect(to);
    assert_eq!(connection.exactly(11).unwrap(), b"220 ready\r\n", "{to}");
    connection.send(b"HELO\r\n").unwrap();
    assert_eq!(connection.exactly(6).unwrap(), b"HELO\r\n", "{to}");
}

/// A gRPC server that answers with what its caller's sidecar said of the caller, and with trailers.
fn grpc_app(pod: &Pod, port: u16) -> H2App {
    H2App::new(&pod.netns, port, server::Builder::new(), |request, mut respond| async move {
        let told = request.headers().get("x-forwarded-client-cert").cloned();
        let mut response = Response::builder().header("content-type", "application/grpc");
        if let Some(told) = told {
            response = response.header("x-told", told);
        }
        let mut body = request.into_body();
        let Ok(mut out) = respond.send_response(response.body(()).unwrap(), false) else { return };
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            if send(&mut out, data, false).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 7.into());
        trailers.insert("x-end", "reached".parse().unwrap());
        let _ = out.send_trailers(trailers);
    })
}

/// A Service for each port: two ports without a name are no valid Service.
fn services(world: &World, first: u8, app: &str) -> Ipv4Addr {
    let ports = [HTTP[0], GRPC[0], TCP[0]];
    let ip = world.service(app, first, &json!({"app": app}), &ports);
    for (n, port) in (1..).zip([HTTP[1], GRPC[1], TCP[1]]) {
        world.service(&format!("{app}-{n}"), first + n, &json!({"app": app}), &[port]);
    }
    ip
}

fn with_ports(mut spec: PodSpec) -> PodSpec {
    for (name, _, target) in HTTP.into_iter().chain(GRPC).chain(TCP) {
        spec = spec.port(name, target);
    }
    spec
}

#[test]
fn istio_clients_are_served() {
    if !is_root() {
        return;
    }
    let world = World::new("istio-client");
    let server = world.pod(with_ports(PodSpec::new("catalog")));
    let apps = HTTP.map(|(_, _, port)| App::echo(&server.netns, port, "catalog"));
    let _grpc = GRPC.map(|(_, _, port)| H2App::echo(&server.netns, port, "catalog"));
    let greeters = TCP.map(|(_, _, port)| greeter(&server, port));
    services(&world, 10, "catalog");
    let client = world.pod(PodSpec::new("client").foreign());
    let (right, wrong) = (server.identity(), "spiffe://cluster.local/ns/shop/sa/other");
    let upstream =
        |port, target, inside, identity| Upstream { port, endpoint: at(server.ip, target), inside, identity };
    let mut upstreams = Vec::new();
    for (ports, inside) in [(HTTP, Inside::Http1), (GRPC, Inside::Http2), (TCP, Inside::Tcp)] {
        upstreams.extend(ports.map(|(_, port, target)| upstream(port, target, inside, right.as_str())));
    }
    upstreams.push(upstream(99, 8080, Inside::Http1, wrong));
    let envoy = Envoy::start(&world, &client, &client.identity(), |folder| istio_outbound(folder, &upstreams));
    until("the server knows its ports", || server.admin("/config_dump").contains("opaque").then_some(()));
    let tap = world.tap(&server);
    // Where a Service would be: the sidecar chooses by the port alone.
    let service = |port| at([198, 19, 0, 10], port);

    for ((_, port, _), app) in HTTP.into_iter().zip(&apps) {
        let mut connection = client.connect(service(port));
        for turn in ["one", "two"] {
            let path = format!("/{port}/{turn}");
            let response = connection.try_post(&path, b"hello").unwrap();
            assert_eq!((response.status, response.header("x-pod")), (200, Some("catalog")), "{response:?}");
            let line = server.logged("the request", |line| line["path"] == path.as_str());
            assert_eq!(line["peer_identity"], client.identity(), "{line}");
            assert_eq!(line["protocol"], "HTTP/1.1", "{line}");
        }
        let seen = app.last().unwrap();
        assert_eq!((app.count(), seen.method(), &seen.body[..]), (2, "POST", &b"hello"[..]));
        assert!(seen.header("x-request-id").is_some() && seen.header("x-forwarded-proto").is_some(), "{}", seen.head);
        assert_eq!(app.connections.load(Relaxed), 1, "connections are kept");
    }
    http2::run(async {
        for (_, port, _) in GRPC {
            let mut caller = H2Client::connect(&client.netns, service(port)).await.unwrap();
            let path = format!("/shop.Catalog/Get{port}");
            let reply = caller.ask(grpc(&path, &[("x-status", "5")]), Bytes::from_static(b"\0\0\0\0\x05hello")).await;
            let reply = reply.unwrap();
            assert_eq!((reply.status, reply.grpc(), &reply.body[..]), (200, Some(5), &b"\0\0\0\0\x05hello"[..]));
            assert_eq!(reply.trailers["x-bytes"], "10", "{reply:?}");
            let line = server.logged("the call", |line| line["path"] == path.as_str());
            assert_eq!(line["peer_identity"], client.identity(), "{line}");
            assert_eq!(line["protocol"], "HTTP/2", "{line}");
        }
    });
    for ((_, port, _), (_, heard)) in TCP.into_iter().zip(&greeters) {
        greeted(&client, service(port));
        assert_eq!(heard.lock().unwrap().as_slice(), b"HELO\r\n", "not what the client said");
    }
    for flow in World::between_pods(tap) {
        assert_eq!(flow.verdict(), Verdict::Tls, "{flow:?}");
    }
    for protocol in ["http", "http2", "opaque"] {
        let labels = [("protocol", protocol), ("reason", "alpn")];
        assert!(server.metric("weir_detection_total", &labels) >= 2.0, "{protocol}");
    }
    let labels = [("source_principal", &*client.identity()), ("connection_security_policy", "mutual_tls")];
    until("the streams are counted", || {
        (server.metric("istio_tcp_connections_closed_total", &labels) >= 2.0).then_some(())
    });

    // It looks at our certificate: of another identity it wants nothing.
    assert_eq!(client.connect(service(99)).get("/wrong").status, 503);
    assert!(envoy.counter("ssl.fail_verify_san") > 0);
    assert!(apps[0].last().is_none_or(|request| request.path != "/wrong"));
}

#[test]
fn istio_clients_of_another_trust_domain_are_refused() {
    if !is_root() {
        return;
    }
    let world = World::new("istio-stranger");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080).port("tcp", 7000));
    let app = App::echo(&server.netns, 8080, "catalog");
    let (_tcp, heard) = greeter(&server, 7000);
    world.service("catalog", 10, &json!({"app": "catalog"}), &[("http", 80, 8080), ("tcp", 70, 7000)]);
    let client = world.pod(PodSpec::new("client").foreign());
    let right = server.identity();
    let upstreams = [(80, 8080, Inside::Http1), (70, 7000, Inside::Tcp)].map(|(port, target, inside)| Upstream {
        port,
        endpoint: at(server.ip, target),
        inside,
        identity: right.as_str(),
    });
    let _envoy = Envoy::start(&world, &client, "spiffe://elsewhere.test/ns/shop/sa/client", |folder| {
        istio_outbound(folder, &upstreams)
    });
    assert_eq!(client.connect(at([198, 19, 0, 10], 80)).get("/").status, 503);
    let mut tcp = client.connect(at([198, 19, 0, 10], 70));
    assert!(tcp.exactly(1).is_err(), "a stranger was greeted");
    until("both are counted", || {
        let refused = server.metric("weir_connections_refused_total", &[("reason", "handshake_failed")]);
        (refused >= 2.0).then_some(())
    });
    assert_eq!(app.count(), 0);
    assert!(heard.lock().unwrap().is_empty());
}

#[test]
fn istio_servers_are_called() {
    if !is_root() {
        return;
    }
    let world = World::new("istio-server");
    let server = world.pod(with_ports(PodSpec::new("catalog").foreign()));
    let apps = HTTP.map(|(_, _, port)| App::echo(&server.netns, port, "catalog"));
    let _grpc = GRPC.map(|(_, _, port)| grpc_app(&server, port));
    let greeters = TCP.map(|(_, _, port)| greeter(&server, port));
    let ip = services(&world, 10, "catalog");
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger"));
    let own = client.identity();
    let envoy = Envoy::start(&world, &server, &server.identity(), |folder| istio_inbound(folder, &[&own]));
    let tap = world.tap(&server);
    let service = |n: usize, port| at(Ipv4Addr::from(u32::from(ip) + u32::try_from(n).unwrap()), port);
    let told = format!("URI={own}");

    for (n, ((_, port, _), app)) in HTTP.into_iter().zip(&apps).enumerate() {
        let mut connection = client.connect(service(n, port));
        for turn in ["one", "two"] {
            let path = format!("/{port}/{turn}");
            let response = connection.try_post(&path, b"hello").unwrap();
            assert_eq!((response.status, response.header("x-pod")), (200, Some("catalog")), "{response:?}");
            let line = client.logged("the request", |line| line["path"] == path.as_str());
            assert_eq!(line["peer_identity"], server.identity(), "{line}");
            let line = envoy.logged("the request", |line| line["path"] == path.as_str());
            let want = json!({"chain": "mtls-http", "peer": own, "tls": "TLSv1.3", "protocol": "HTTP/1.1"});
            for (key, value) in want.as_object().unwrap() {
                assert_eq!(&line[key], value, "{line}");
            }
        }
        let seen = app.last().unwrap();
        assert_eq!(&seen.body, b"hello");
        assert!(seen.header("x-forwarded-client-cert").is_some_and(|value| value.contains(&told)), "{}", seen.head);
    }
    http2::run(async {
        for (n, (_, port, _)) in GRPC.into_iter().enumerate() {
            let mut caller = H2Client::connect(&client.netns, service(2 * n, port)).await.unwrap();
            let path = format!("/shop.Catalog/Get{port}");
            let reply = caller.call(&path, b"hello").await.unwrap();
            assert_eq!((reply.status, reply.grpc(), &reply.body[..]), (200, Some(7), &b"\0\0\0\0\x05hello"[..]));
            assert_eq!(reply.trailers["x-end"], "reached", "{reply:?}");
            assert!(reply.header("x-told").is_some_and(|value| value.contains(&told)), "{reply:?}");
            let line = client.logged("the call", |line| line["path"] == path.as_str());
            assert_eq!(line["peer_identity"], server.identity(), "{line}");
            let line = envoy.logged("the call", |line| line["path"] == path.as_str());
            assert_eq!((&line["chain"], &line["protocol"]), (&json!("mtls-http"), &json!("HTTP/2")), "{line}");
        }
    });
    for (n, ((_, port, _), (_, heard))) in TCP.into_iter().zip(&greeters).enumerate() {
        greeted(&client, service(3 * n, port));
        assert_eq!(heard.lock().unwrap().as_slice(), b"HELO\r\n", "not what the client said");
    }
    let line = envoy.logged("the stream", |line| line["chain"] == "mtls-tcp");
    assert_eq!((&line["peer"], &line["tls"]), (&json!(own), &json!("TLSv1.3")), "{line}");
    for flow in World::between_pods(tap) {
        assert_eq!(flow.verdict(), Verdict::Tls, "{flow:?}");
    }

    // It looks at our certificate: another workload of the mesh is not let in, and hears why from its own proxy.
    let answer = stranger.connect(service(0, 80)).get("/stranger");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(stranger.try_connect(service(0, 70)).and_then(|mut tcp| tcp.exactly(1)).is_err());
    assert!(envoy.counter("ssl.fail_verify_san") >= 2);
    assert!(apps[0].last().is_some_and(|request| request.path != "/stranger"));
}

#[test]
fn an_istio_server_with_another_identity_is_not_believed() {
    if !is_root() {
        return;
    }
    let world = World::new("istio-impostor");
    let server = world.pod(PodSpec::new("catalog").foreign().port("http", 8080).port("tcp", 7000));
    let app = App::echo(&server.netns, 8080, "catalog");
    let (_tcp, heard) = greeter(&server, 7000);
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("http", 80, 8080), ("tcp", 70, 7000)]);
    let client = world.pod(PodSpec::new("client"));
    let own = client.identity();
    let impostor = "spiffe://cluster.local/ns/shop/sa/other";
    let _envoy = Envoy::start(&world, &server, impostor, |folder| istio_inbound(folder, &[&own]));
    assert_eq!(client.connect(at(ip, 80)).get("/").status, 503);
    assert!(client.try_connect(at(ip, 70)).and_then(|mut tcp| tcp.exactly(1)).is_err());
    until("our proxy says whom it met", || (!client.log(&[impostor]).is_empty()).then_some(()));
    assert_eq!(app.count(), 0);
    assert!(heard.lock().unwrap().is_empty());
}
