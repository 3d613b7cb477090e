//! Certificates and roots that change while requests run.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use weir_tests::{App, Load, Pod, PodSpec, World, at, certs, is_root, until, until_within};

/// Longest time for what the proxies do by themselves: they look at the roots' file every ten seconds.
const SOON: Duration = Duration::from_secs(60);

struct Mesh {
    client: Pod,
    server: Pod,
    stranger: Pod,
    _apps: [App; 2],
    http: std::net::SocketAddr,
    tcp: std::net::SocketAddr,
    world: World,
}

impl Mesh {
    fn new(name: &str, ttl: &str) -> Self {
        let world = World::with_control(name, &["--certificate-ttl", ttl]);
        let server = world.pod_unready(PodSpec::new("server").port("http", 8080).port("tcp", 7000).workers(4));
        let echo = App::echo(&server.netns, 8080, "server");
        let greet = App::raw(&server.netns, 7000, |mut stream| {
            let _ = stream.write_all(b"hello");
        });
        let ip = world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080), ("tcp", 81, 7000)]);
        let client = world.pod(PodSpec::new("client"));
        server.wait_ready();
        let stranger = world.pod(PodSpec::new("stranger").outside());
        Self { client, server, stranger, _apps: [echo, greet], http: at(ip, 80), tcp: at(ip, 81), world }
    }

    /// A handshake between the proxies, whatever connections they keep.
    fn handshake(&self, from: &Pod) {
        assert_eq!(from.connect(self.tcp).exactly(5).unwrap(), b"hello", "from {}", from.name);
    }

    /// Calls the server's proxy as a peer with this certificate: what the server presents.
    fn call(&self, own: &certs::Certificate) -> io::Result<Vec<u8>> {
        let stream = self.stranger.netns.connect(at(self.server.ip, 8080))?;
        let mut tls = certs::call(stream, Some(own), &["istio-http/1.1"])?;
        tls.write_all(b"GET /peer HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut status = [0; 12];
        tls.read_exact(&mut status)?;
        assert_eq!(&status, b"HTTP/1.1 200");
        Ok(tls.conn.peer_certificates().unwrap().first().unwrap().to_vec())
    }
}

/// Ends of the certificates that a proxy has installed, in seconds since 1970.
fn installed(pod: &Pod) -> Vec<i64> {
    let lines = pod.log(&["certificate installed"]);
    let ends = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let field = line.get("not_after").or_else(|| line.get("fields")?.get("not_after"));
        field.and_then(Value::as_i64).unwrap_or_else(|| panic!("{line}"))
    };
    lines.iter().map(ends).collect()
}

const PEER: &str = "spiffe://cluster.local/ns/shop/sa/stranger";

#[test]
fn certificates_are_renewed_at_half_their_life_while_requests_run() {
    if !is_root() {
        return;
    }
    const LIFE: i64 = 16;
    let mesh = Mesh::new("renewal", &LIFE.to_string());
    let peer = certs::Certificate::signed_by(&mesh.world.path("ca"), &[PEER]);
    let load = Load::start(&mesh.client, mesh.http, 4);
    let mut presented: Vec<Vec<u8>> = Vec::new();
    until_within(SOON, "three certificates are presented one after the other", || {
        mesh.handshake(&mesh.client);
        let leaf = mesh.call(&peer).unwrap();
        if presented.last() != Some(&leaf) {
            assert!(!presented.contains(&leaf), "an old certificate is back");
            presented.push(leaf);
        }
        (presented.len() >= 3).then_some(())
    });
    let outcome = load.stop();
    assert!(outcome.failed.is_empty(), "{:?} of {}", outcome.failed, outcome.total());
    for pod in [&mesh.server, &mesh.client] {
        let ends = installed(pod);
        assert!(ends.len() >= 2, "{}: {ends:?}", pod.name);
        // Asked at 45 to 55 % of a life of 16 s; a busy machine may be late, but not past the end.
        for pair in ends.windows(2) {
            assert!((LIFE * 4 / 10..LIFE).contains(&(pair[1] - pair[0])), "{}: {ends:?}", pod.name);
        }
        assert!(pod.log(&["no new certificate"]).is_empty());
    }
}

#[test]
fn a_root_is_replaced_while_requests_run_and_the_old_one_is_worth_nothing_then() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("roots", "30");
    let read = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let (ca, old, new) = (mesh.world.path("ca"), mesh.world.path("ca-old"), mesh.world.path("ca-new"));
    fs::create_dir(&old).unwrap();
    for file in ["ca-key.pem", "root-cert.pem"] {
        fs::copy(ca.join(file), old.join(file)).unwrap();
    }
    certs::new_root(&new);
    let [old_pem, new_pem] = [&old, &new].map(|folder| read(folder, "root-cert.pem"));
    let both = format!("{old_pem}{new_pem}");
    let (by_old, by_new) = (certs::Certificate::signed_by(&old, &[PEER]), certs::Certificate::signed_by(&new, &[PEER]));
    let pods = [&mesh.server, &mesh.client];
    let load = Load::start(&mesh.client, mesh.http, 4);
    assert!(mesh.call(&by_old).is_ok() && mesh.call(&by_new).is_err());

    // First both roots are trusted everywhere.
    pods.iter().for_each(|pod| pod.set_roots(&both));
    for pod in pods {
        until_within(SOON, "both roots are in use", || {
            (!pod.log(&["new root certificates are in use"]).is_empty()).then_some(())
        });
    }
    assert!(mesh.call(&by_old).is_ok() && mesh.call(&by_new).is_ok());

    // Then the authority signs with the new one.
    let before = pods.map(|pod| installed(pod).len());
    mesh.world.stop_control();
    fs::write(ca.join("ca-key.pem"), read(&new, "ca-key.pem")).unwrap();
    fs::write(ca.join("root-cert.pem"), &both).unwrap();
    mesh.world.start_control();
    let late = mesh.world.pod(PodSpec::new("late"));
    mesh.handshake(&late);
    assert_eq!(late.connect(mesh.http).get("/late").status, 200);
    for (pod, before) in pods.into_iter().zip(before) {
        until_within(SOON, "a certificate of the new root", || {
            mesh.handshake(&mesh.client);
            (installed(pod).len() > before).then_some(())
        });
    }

    // Then the old one goes.
    mesh.world.stop_control();
    fs::write(ca.join("root-cert.pem"), &new_pem).unwrap();
    mesh.world.start_control();
    for pod in [&mesh.server, &mesh.client, &late] {
        pod.set_roots(&new_pem);
    }
    until_within(SOON, "a certificate of the old root is refused", || mesh.call(&by_old).is_err().then_some(()));
    let reason = until("the reason", || mesh.server.log(&["mutual TLS failed"]).last().cloned());
    assert!(reason.contains("UnknownIssuer") || reason.contains("root"), "{reason}");
    assert!(mesh.call(&by_new).is_ok());
    for from in [&mesh.client, &late] {
        mesh.handshake(from);
        until_within(SOON, "one root is left", || {
            let certs = from.admin("/certs");
            (!certs.is_empty() && !from.log(&["new root certificates are in use"]).is_empty()).then_some(())
        });
    }
    load.more(100);
    let outcome = load.stop();
    assert!(outcome.failed.is_empty(), "{:?} of {}", outcome.failed, outcome.total());
}
