//! What is on the wire between pods, and who is let in.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::json;
use weir_sandbox::tap::Verdict;
use weir_tests::{App, Pod, PodSpec, World, at, certs, is_root, until};

#[test]
fn between_proxies_there_is_nothing_but_tls_and_the_server_knows_who_calls() {
    if !is_root() {
        return;
    }
    let world = World::new("wire");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080));
    let app = App::echo(&server.netns, 8080, "catalog");
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("http", 80, 8080)]);
    let client = world.pod(PodSpec::new("client"));
    let tap = world.tap(&server);

    let mut connection = client.connect(at(ip, 80));
    for path in ["/one", "/two"] {
        let response = connection.get(path);
        assert_eq!((response.status, response.header("x-pod")), (200, Some("catalog")), "{response:?}");
    }
    let v6 = client.connect("[fd00::100a]:80".parse().unwrap()).get("/six");
    assert_eq!(v6.status, 200, "{v6:?}");
    // The pod's own address works without a Service, and is protected as well.
    assert_eq!(client.connect(at(server.ip, 8080)).get("/direct").status, 200);

    let flows = World::between_pods(tap);
    assert!(!flows.is_empty());
    for flow in &flows {
        assert_eq!(flow.verdict(), Verdict::Tls, "{flow:?}");
        assert!(flow.sent.records > 3, "{flow:?}");
    }
    let line = server.logged("the request", |line| line["path"] == "/one");
    assert_eq!(line["peer_identity"], client.identity(), "{line}");
    assert_eq!(line["direction"], "inbound");
    let line = client.logged("the request", |line| line["path"] == "/one");
    assert_eq!(line["peer_identity"], server.identity(), "{line}");
    for (pod, reporter) in [(&server, "destination"), (&client, "source")] {
        let labels = [
            ("reporter", reporter),
            ("connection_security_policy", "mutual_tls"),
            ("source_principal", &client.identity()),
            ("destination_principal", &server.identity()),
            ("destination_service_name", "catalog"),
            ("response_code", "200"),
        ];
        let labels = if reporter == "source" { &labels[..2] } else { &labels[..] };
        until("requests are counted", || (pod.metric("istio_requests_total", labels) >= 3.0).then_some(()));
    }
    drop(app);
}

#[test]
fn a_caller_outside_the_mesh_comes_in_by_plaintext_and_is_counted_as_such() {
    if !is_root() {
        return;
    }
    let world = World::new("plaintext");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080).port("tcp", 7000));
    let _http = App::echo(&server.netns, 8080, "catalog");
    let _tcp = App::raw(&server.netns, 7000, |mut stream| {
        let _ = stream.write_all(b"hello\n");
    });
    let outside = world.pod(PodSpec::new("stranger").outside());

    let mut connection = outside.connect(at(server.ip, 8080));
    let response = connection.ask("GET /in HTTP/1.1\r\nhost: x\r\nx-weir-fault: not-delivered\r\n\r\n").unwrap();
    assert_eq!(response.status, 200, "{response:?}");
    assert!(!response.text().contains("weir-fault"), "a marker of the mesh came in from outside: {}", response.text());
    let line = server.logged("the request", |line| line["path"] == "/in");
    assert!(line["peer_identity"].is_null(), "{line}");
    assert!(line["downstream_remote_address"].as_str().unwrap().starts_with(&format!("{}:", outside.ip)), "{line}");
    let labels = [
        ("connection_security_policy", "none"),
        ("source_principal", "unknown"),
        ("source_app", "stranger"),
        ("reporter", "destination"),
    ];
    // Who it is, the proxy learns from its address; the connection is older than the answer, but its labels are not.
    until("a request is counted with its caller", || {
        assert_eq!(connection.get("/again").status, 200);
        (server.metric("istio_requests_total", &labels) >= 1.0).then_some(())
    });
    let encrypted = server.metric("istio_requests_total", &[("connection_security_policy", "mutual_tls")]);
    assert!(encrypted < 0.1, "{encrypted}");

    let mut tcp = outside.connect(at(server.ip, 7000));
    assert_eq!(tcp.exactly(6).unwrap(), b"hello\n");
    drop(tcp);
    until("the connection is counted", || {
        (server.metric("istio_tcp_connections_closed_total", &labels) == 1.0).then_some(())
    });
    let sent = server.metric("istio_tcp_sent_bytes_total", &labels);
    assert!((sent - 6.0).abs() < 0.1, "{sent}");
}

#[test]
fn peers_with_wrong_certificates_are_refused_counted_and_named() {
    if !is_root() {
        return;
    }
    let world = World::new("peers");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080).port("tcp", 7000));
    let app = App::echo(&server.netns, 8080, "catalog");
    let tcp = App::raw(&server.netns, 7000, |mut stream| {
        let mut text = [0; 4];
        if stream.read_exact(&mut text).is_ok() {
            let _ = stream.write_all(&text);
        }
    });
    let outside = world.pod(PodSpec::new("stranger").outside());
    let ca = world.path("ca");
    let mine = "spiffe://cluster.local/ns/shop/sa/stranger";
    let good = certs::Certificate::signed_by(&ca, &[mine]);
    let two = certs::Certificate::signed_by(&ca, &[mine, "spiffe://cluster.local/ns/shop/sa/admin"]);
    let foreign = certs::Certificate::signed_by(&ca, &["spiffe://elsewhere.test/ns/shop/sa/stranger"]);
    let other = World::new("other-ca");
    let unknown = certs::Certificate::signed_by(&other.path("ca"), &[mine]);

    let refused =
        |server: &weir_tests::Pod| server.metric("weir_connections_refused_total", &[("reason", "handshake_failed")]);
    let cases =
        [("none", None), ("two names", Some(&two)), ("another domain", Some(&foreign)), ("another CA", Some(&unknown))];
    for (number, (what, certificate)) in (1_u8..).zip(cases) {
        for (port, alpn) in [(8080, "istio-http/1.1"), (7000, "istio")] {
            let stream = outside.netns.connect(at(server.ip, port)).unwrap();
            let from = stream.local_addr().unwrap();
            let got = certs::call(stream, certificate, &[alpn]).and_then(|mut tls| {
                tls.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
                let mut bytes = [0; 100];
                tls.read(&mut bytes)
            });
            assert!(!matches!(got, Ok(n) if n > 0), "{what}: let in");
            let named = until("the refusal is logged", || {
                server.log(&["mutual TLS failed", &from.to_string()]).first().cloned()
            });
            assert!(named.contains("error"), "{named}");
        }
        assert!((refused(&server) - f64::from(number) * 2.0).abs() < 0.1, "{what}: {}", refused(&server));
    }
    assert_eq!(app.count(), 0, "something reached the application");

    // The same calls with a good certificate: only the names were wrong.
    let mut tls =
        certs::call(outside.netns.connect(at(server.ip, 8080)).unwrap(), Some(&good), &["istio-http/1.1"]).unwrap();
    tls.write_all(b"GET /good HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut bytes = [0; 15];
    tls.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"HTTP/1.1 200 OK");
    let line = server.logged("the request", |line| line["path"] == "/good");
    assert_eq!(line["peer_identity"], mine);
    drop(tcp);
}

/// What a peer offers, and what the port is, decide together; never the order of the offer alone.
#[test]
fn the_protocol_inside_tls_is_what_the_port_is() {
    if !is_root() {
        return;
    }
    let world = World::new("alpn");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080).port("tcp", 7000));
    let http = App::echo(&server.netns, 8080, "catalog");
    let tcp = App::echo(&server.netns, 7000, "catalog");
    let _service = world.service("catalog", 10, &json!({"app": "catalog"}), &[("http", 80, 8080), ("tcp", 81, 7000)]);
    until("the server knows its ports", || server.admin("/config_dump").contains("opaque").then_some(()));
    let outside = world.pod(PodSpec::new("stranger").outside());
    let own = certs::Certificate::signed_by(&world.path("ca"), &["spiffe://cluster.local/ns/shop/sa/stranger"]);

    // The application speaks no HTTP/2: settings come from the proxy alone.
    for offer in [&["istio-h2", "istio-http/1.1", "istio"][..], &["istio-http/1.1", "istio-h2"], &["istio-h2"]] {
        let stream = outside.netns.connect(at(server.ip, 8080)).unwrap();
        let mut tls = certs::call(stream, Some(&own), offer).unwrap_or_else(|error| panic!("{offer:?}: {error}"));
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"istio-h2"[..]), "{offer:?}");
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        let mut head = [0; 9];
        tls.read_exact(&mut head).unwrap();
        assert_eq!(head[3..], [4, 0, 0, 0, 0, 0], "{offer:?}: not a frame of settings");
    }
    assert_eq!(http.count(), 0, "something reached the application");

    // A header that only the codec takes away shows who read the request.
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nkeep-alive: seen\r\n\r\n";
    for (port, offer, want, parsed) in [
        (8080, &["istio-peer-exchange", "istio-http/1.1", "istio"][..], "istio-http/1.1", true),
        (8080, &["istio-peer-exchange", "istio"], "istio", false),
        (7000, &["istio-peer-exchange", "istio"], "istio", false),
        (7000, &["istio-http/1.1", "istio"], "istio", false),
        (7000, &["istio-http/1.1"], "istio-http/1.1", false),
        (7000, &["istio-h2"], "istio-h2", false),
    ] {
        let app = if port == 8080 { &http } else { &tcp };
        let stream = outside.netns.connect(at(server.ip, port)).unwrap();
        let mut tls =
            certs::call(stream, Some(&own), offer).unwrap_or_else(|error| panic!("{port} {offer:?}: {error}"));
        assert_eq!(tls.conn.alpn_protocol(), Some(want.as_bytes()), "{port} {offer:?}");
        tls.write_all(request).unwrap();
        let mut bytes = [0; 15];
        tls.read_exact(&mut bytes).unwrap();
        let got = app.last().unwrap();
        assert_eq!(got.header("keep-alive").is_none(), parsed, "{port} {offer:?}: {}", got.head);
    }
}

/// A stream whose every write is a packet of a few bytes.
struct Dribble {
    stream: TcpStream,
    piece: usize,
}

impl Read for Dribble {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for Dribble {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_micros(300)); // so that each is read for itself
        self.stream.write(&bytes[..bytes.len().min(self.piece)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[test]
fn a_hello_of_many_packets_is_read_to_its_end() {
    if !is_root() {
        return;
    }
    let world = World::new("hello");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080).port("", 7000));
    let _mesh = App::echo(&server.netns, 8080, "catalog");
    let _own = App::raw(&server.netns, 7000, |stream| {
        if let Ok(mut tls) = certs::accept(stream) {
            let mut text = [0; 5];
            while tls.read_exact(&mut text).is_ok() && tls.write_all(&text).is_ok() {}
        }
    });
    let outside = world.pod(PodSpec::new("stranger").outside());
    let client = world.pod(PodSpec::new("client"));
    let own = certs::Certificate::signed_by(&world.path("ca"), &["spiffe://cluster.local/ns/shop/sa/stranger"]);
    let dribble = |from: &Pod, port, piece| {
        let stream = from.netns.connect(at(server.ip, port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Dribble { stream, piece }
    };
    for piece in [1, 97, 1200] {
        // A proxy of the mesh.
        let mut tls =
            certs::call_over(dribble(&outside, 8080, piece), Some(&own), &["istio-http/1.1", "istio"]).unwrap();
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"istio-http/1.1"[..]), "{piece}");
        tls.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut bytes = [0; 15];
        tls.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"HTTP/1.1 200 OK", "{piece}");
        // TLS of the applications' own, from outside and through two proxies.
        for from in [&outside, &client] {
            let mut tls = certs::call_over(dribble(from, 7000, piece), None, &["h2", "http/1.1"]).unwrap();
            tls.write_all(b"hello").unwrap();
            let mut text = [0; 5];
            tls.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"hello", "{piece} from {}", from.name);
        }
    }
    for (pod, least) in [(&server, 3.0), (&client, 3.0)] {
        let found = pod.metric("weir_detection_total", &[("protocol", "tls"), ("reason", "first_bytes")]);
        assert!(found >= least, "{}: {found}", pod.name);
    }
}

#[test]
fn the_proxys_own_ports_can_not_be_called_and_its_admin_interface_stays_inside() {
    if !is_root() {
        return;
    }
    let world = World::new("direct");
    let server = world.pod(PodSpec::new("catalog").port("http", 8080));
    let app = App::echo(&server.netns, 8080, "catalog");
    let outside = world.pod(PodSpec::new("stranger").outside());
    let client = world.pod(PodSpec::new("client"));

    for (from, to) in
        [(&outside, server.ip), (&client, server.ip), (&server, server.ip), (&server, [127, 0, 0, 1].into())]
    {
        for port in [15001, 15006] {
            // Wherever it is refused (by the caller's proxy, or by this one): nobody is answered, and nothing loops.
            let answer = from.try_connect(at(to, port)).and_then(|mut connection| connection.try_get("/loop"));
            match answer {
                // Its own proxy speaks HTTP with the client, and says that the server's refuses.
                Ok(response) if from.name == "client" => assert_eq!(response.status, 503),
                answer => assert!(answer.is_err(), "{} to {to}:{port}: {answer:?}", from.name),
            }
        }
    }
    // From outside 15006 is not redirected, 15001 is; from the pod itself neither is.
    for (pod, reason, least) in
        [(&server, "not_redirected", 6.0), (&server, "own_port", 1.0), (&client, "not_redirected", 1.0)]
    {
        let refused = pod.metric("weir_connections_refused_total", &[("reason", reason)]);
        assert!((least..20.0).contains(&refused), "{} {reason}: {refused}", pod.name);
    }
    assert_eq!(app.count(), 0);
    assert_eq!(server.readiness().unwrap().status, 200);
    assert_eq!(client.connect(at(server.ip, 8080)).get("/after").status, 200);
    assert!(server.metric("process_open_fds", &[]) < 60.0);

    for from in [&outside, &client] {
        let answer =
            from.try_connect(at(server.ip, 15000)).and_then(|mut connection| connection.try_get("/config_dump"));
        assert!(!matches!(&answer, Ok(response) if response.status != 503), "{}: {answer:?}", from.name);
    }
    // Readiness and metrics are for the kubelet and Prometheus.
    assert_eq!(outside.connect(at(server.ip, 15021)).get("/healthz/ready").status, 200);
    let dump = server.admin("/config_dump");
    let token = server.own_token();
    for page in ["/config_dump", "/certs", "/stats/prometheus", "/help", "/ready"] {
        let text = server.admin(page);
        // The signature differs with each token, the claims do not.
        let claims = token.split('.').nth(1).unwrap();
        assert!(!text.contains("PRIVATE KEY") && !text.contains(claims) && !text.contains("Bearer"), "{page}: {text}");
    }
    assert!(dump.contains("8080"), "{dump}");
}
