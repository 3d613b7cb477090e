//! Every endpoint over real sockets, with the callers it is meant for and those it is not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admin_world;

use std::{net::SocketAddr, time::Duration};

use admin_world::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_proxy::{
    admin::{Addresses, Servers, readiness, wait::wait_for},
    telemetry::{Direction, HttpLabels, Peer, Protocol, ResponseFlags, SecurityPolicy, Service},
    tls::MeshTls,
};

#[tokio::test]
async fn readiness_says_why_not() {
    let world = World::start(|_| {}).await;
    let at = world.bound.readiness[0];
    let (status, body) = get(at, "/healthz/ready").await;
    assert_eq!(status, 503);
    assert_eq!(body, "certificate: not known yet\ninbound configuration: not known yet\nredirect: not known yet\n");

    world.readiness.set(readiness::CERTIFICATE, Err("there is none, because\nthe control plane is down".into()));
    world.readiness.set(readiness::INBOUND_CONFIG, Ok(()));
    world.readiness.set(readiness::REDIRECT, Ok(()));
    let (status, body) = get(at, "/healthz/ready").await;
    assert_eq!((status, body.as_str()), (503, "certificate: there is none, because the control plane is down\n"));
    assert_eq!(get(world.bound.admin[0], "/ready").await, (503, body));

    world.readiness.set(readiness::CERTIFICATE, Ok(()));
    assert_eq!(get(at, "/healthz/ready").await, (200, "ready\n".into()));
    assert!(world.readiness.set(readiness::CERTIFICATE, Err("x".repeat(100_000))));
    assert!(get(at, "/healthz/ready").await.1.len() < 2000);

    assert_eq!(get(at, "/").await.0, 404);
    assert_eq!(get(at, "/stats/prometheus").await.0, 404);
    assert_eq!(raw(at, "POST /healthz/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.0, 405);
}

#[tokio::test]
async fn waiting_for_readiness() {
    let world = World::start(|_| {}).await;
    let at = world.bound.readiness[0];
    world.readiness.set(readiness::INBOUND_CONFIG, Ok(()));
    world.readiness.set(readiness::REDIRECT, Ok(()));
    let wait = move |limit: u64| tokio::task::spawn_blocking(move || wait_for(at, Duration::from_millis(limit)));
    let error = wait(100).await.unwrap().unwrap_err();
    assert_eq!(error, "the proxy is not ready after 0 s: certificate: not known yet");

    let waiting = wait(10_000);
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.readiness.set(readiness::CERTIFICATE, Ok(()));
    assert_eq!(waiting.await.unwrap(), Ok(()));

    // Nobody there, and somebody who never answers.
    let gone = tokio::task::spawn_blocking(|| wait_for("127.0.0.1:1".parse().unwrap(), Duration::from_millis(60)));
    assert!(gone.await.unwrap().unwrap_err().contains("does not answer on 127.0.0.1:1"));
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let begun = std::time::Instant::now();
    let mute = tokio::task::spawn_blocking(move || wait_for(address, Duration::from_millis(200)));
    assert!(mute.await.unwrap().is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn admin_endpoints_answer() {
    let world = World::start(|_| {}).await;
    let at = world.bound.admin[0];
    let (status, help) = get(at, "/help").await;
    assert_eq!(status, 200);
    for endpoint in ["/config_dump", "/certs", "/stats", "/ready", "/logging"] {
        assert!(help.contains(endpoint), "{help}");
    }
    assert_eq!(get(at, "/").await.1, help);
    let (status, dump) = get(at, "/config_dump").await;
    assert_eq!((status, serde_json::from_str::<serde_json::Value>(&dump).unwrap()), (200, serde_json::json!({"a": 1})));
    for path in ["/stats", "/stats/prometheus"] {
        let (status, stats) = get(at, path).await;
        assert_eq!(status, 200);
        assert!(stats.contains("istio_build{component=\"proxy\",tag=\"test\"} 1"));
    }
    assert_eq!(
        raw(at, "HEAD /help HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await,
        (200, String::new())
    );
    assert_eq!(get(at, "/nothing").await.0, 404);
    for gone in ["/quitquitquit", "/shutdown", "/healthcheck/fail"] {
        assert_eq!(get(at, gone).await.0, 404);
        assert_eq!(post(at, gone).await.0, 405);
    }
    assert_eq!(get(at, "/logging?level=info").await.0, 405, "a GET changes nothing");
    assert_eq!(post(at, "/logging?level=weir_proxy=debug").await, (200, "level changed\n".into()));
    assert_eq!(post(at, "/logging?level=weir_proxy%3Ddebug&access=100").await.0, 200);
    for bad in [
        "/logging",
        "/logging?level=",
        "/logging?level=loud!",
        "/logging?access=x",
        "/logging?level=%zz",
        "/logging?x=y",
    ] {
        assert_eq!(post(at, bad).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn certificates_are_shown_without_their_key() {
    let world = World::start(|_| {}).await;
    let at = world.bound.admin[0];
    let shown: serde_json::Value = serde_json::from_str(&get(at, "/certs").await.1).unwrap();
    assert_eq!(shown["certificate"], serde_json::Value::Null);
    assert!(shown["why"].as_str().unwrap().contains("certificate"));

    let key = install(&world.tls);
    let text = get(at, "/certs").await.1;
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["certificate"]["identity"], "spiffe://cluster.local/ns/shop/sa/catalog");
    assert!(shown["certificate"]["not_after"].as_str().unwrap().ends_with('Z'));
    assert_eq!(shown["roots"].as_array().unwrap().len(), 1);
    assert!(!text.contains("PRIVATE") && !text.contains(&key), "{text}");
}

fn install(tls: &MeshTls) -> String {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/shop/sa/catalog".try_into().unwrap())];
    let leaf = params.signed_by(&key, &root).unwrap();
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    tls.install(vec![leaf.der().clone()], der.into(), vec![root.der().clone()]).unwrap();
    key.serialize_pem().lines().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn only_loopback_names_reach_the_admin_port() {
    let world = World::start(|_| {}).await;
    let at = world.bound.admin[0];
    let ask = |line: &'static str, headers: &'static str| async move {
        raw(at, &format!("{line}\r\n{headers}Connection: close\r\n\r\n")).await.0
    };
    for good in ["Host: localhost\r\n", "Host: 127.0.0.1:15000\r\n", "Host: [::1]:15000\r\n", "Host: LocalHost:1\r\n"] {
        assert_eq!(ask("GET /certs HTTP/1.1", good).await, 200, "{good}");
    }
    for bad in [
        "",
        "Host: \r\n",
        "Host: evil.example\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: 198.18.0.1\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: localhost\r\n",
        "Host: localhost\r\nOrigin: http://evil.example\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
    ] {
        assert_eq!(ask("GET /certs HTTP/1.1", bad).await, 403, "{bad:?}");
        assert_eq!(ask("POST /logging?level=off HTTP/1.1", bad).await, 403, "{bad:?}");
    }
    assert_eq!(ask("GET http://evil.example/certs HTTP/1.1", "Host: localhost\r\n").await, 403);
    assert_eq!(ask("GET /certs HTTP/1.1", "Host: localhost\r\nOrigin: http://localhost:15000\r\n").await, 200);

    let mut addresses = addresses();
    addresses.admin = vec!["0.0.0.0:0".parse().unwrap()];
    assert!(Servers::bind(&addresses).is_err(), "the admin port never listens elsewhere");
    assert!(Addresses::default().admin.iter().all(|address| address.ip().is_loopback()));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut addresses = addresses();
    addresses.metrics = vec![taken.local_addr().unwrap()];
    let error = Servers::bind(&addresses).unwrap_err().to_string();
    assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
}

#[tokio::test]
async fn metrics_of_many_series_arrive_whole() {
    let world = World::start(|_| {}).await;
    let service = Service::new("s.shop", "s", "shop");
    for n in 0..300 {
        let peer = Peer::new(weir_proxy::telemetry::PeerFields { workload: format!("w{n}"), ..Default::default() });
        world
            .registry
            .http(&HttpLabels {
                direction: Direction::Inbound,
                peer: &peer,
                service: &service,
                protocol: Protocol::Http,
                code: 200,
                grpc_status: None,
                flags: ResponseFlags::NONE,
                security: SecurityPolicy::None,
            })
            .record(Duration::from_millis(1), 1, 1);
    }
    let (status, text) = get(world.bound.metrics[0], "/stats/prometheus").await;
    assert_eq!(status, 200);
    assert!(text.len() > 10_000_000, "{} bytes", text.len());
    assert_eq!(text.lines().filter(|line| line.starts_with("istio_requests_total{")).count(), 300);
    assert_eq!(text.lines().filter(|line| line.starts_with("istio_request_bytes_bucket{")).count(), 6000);
    assert!(text.ends_with('\n'));
    assert_eq!(get(world.bound.metrics[0], "/healthz/ready").await.0, 404);
    assert_eq!(get(world.bound.metrics[0], "/config_dump").await.0, 404);
}

#[tokio::test]
async fn hostile_requests_are_answered_or_closed() {
    let world = World::start(|_| {}).await;
    let all: [SocketAddr; 4] =
        [world.bound.admin[0], world.bound.merged[0], world.bound.readiness[0], world.bound.metrics[0]];
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X-A: b\r\n".repeat(5000));
    for at in all {
        for hostile in [
            "\r\n\r\n\0\0\0",
            "GET\r\n\r\n",
            "GET / HTTP/9.9\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\u{16}\u{3}\u{1}\u{2}\u{0}",
            "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "GET /%2e%2e/%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            &long_path,
            &many,
        ] {
            let (status, _) = raw(at, hostile).await;
            assert!(status == 0 || status == 200 || (400..=505).contains(&status), "{status} for {hostile:.60}");
            assert_ne!((status, hostile.contains("etc/passwd")), (200, true));
        }
        // Still there.
        assert!(get(at, "/nothing").await.0 == 404);
    }
}

#[tokio::test]
async fn slow_and_many_callers_do_not_lock_others_out() {
    let world = World::start(|_| {}).await;
    let at = world.bound.readiness[0];
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /healthz").await.unwrap();
        slow.push(stream);
    }
    // Every place is taken; they are freed by the limit on heads.
    let begun = tokio::time::Instant::now();
    assert_eq!(get(at, "/healthz/ready").await.0, 503);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(8), slow[0].read_to_end(&mut rest)).await.unwrap();
    // An idle connection that had its answer is closed as well.
    let mut idle = tokio::net::TcpStream::connect(at).await.unwrap();
    idle.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(12), idle.read_to_end(&mut all)).await.expect("closed when idle").unwrap();
}

#[tokio::test]
async fn ends_when_told() {
    let world = World::start(|_| {}).await;
    let at = world.bound.readiness[0];
    assert_eq!(get(at, "/healthz/ready").await.0, 503);
    world.stop().await;
    assert!(tokio::net::TcpStream::connect(at).await.is_err());
}
