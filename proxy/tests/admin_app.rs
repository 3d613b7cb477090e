//! Probes, hooks and metrics of an application beside the proxy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admin_world;

use std::{sync::Arc, time::Duration};

use admin_world::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use weir_mesh::probe::{Action, AppCall, Which, path};

fn http(port: u16, target: &str) -> Action {
    Action::Http { port, path: target.into(), tls: false, host: None, headers: Vec::new() }
}

/// A proxy that knows one call, as the path of a container's liveness probe.
async fn proxy_with(action: Action, timeout_seconds: u32) -> World {
    World::start(|app| {
        for which in [Which::Liveness, Which::PreStop] {
            app.calls.insert(path("web", which), AppCall { timeout_seconds, action: action.clone() });
        }
    })
    .await
}

async fn probe(world: &World) -> (u16, String) {
    get(world.bound.merged[0], "/app/web/livez").await
}

#[tokio::test]
async fn http_probes_answer_as_the_application_does() {
    let app = Application::answering(|head| {
        let status = head.split(['/', ' ']).nth(2).unwrap();
        format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nhi").into_bytes()
    })
    .await;
    for (status, expected) in
        [(200, 200), (204, 204), (299, 299), (302, 200), (399, 200), (400, 400), (404, 404), (503, 503)]
    {
        let world = proxy_with(http(app.port, &format!("/{status}")), 1).await;
        assert_eq!(probe(&world).await.0, expected, "{status}");
    }
    let (peer, head) = app.seen.lock().unwrap()[0].clone();
    assert_eq!(peer.ip().to_string(), "127.0.0.6", "the redirect lets this source pass");
    assert!(head.starts_with("GET /200 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: 127.0.0.1:{}\r\n", app.port)), "{head}");
}

#[tokio::test]
async fn headers_of_the_probe_and_of_the_kubelet() {
    let app = Application::answering(|_| ok("")).await;
    let world = proxy_with(
        Action::Http {
            port: app.port,
            path: "health?full=1".into(),
            tls: false,
            host: None,
            headers: vec![
                ("Host".into(), "web.example".into()),
                ("X-Probe".into(), "a".into()),
                ("X-Probe".into(), "b".into()),
                ("Accept".into(), String::new()),
            ],
        },
        1,
    )
    .await;
    let request = "GET /app/web/livez HTTP/1.1\r\nHost: 198.18.0.1:15020\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n";
    assert_eq!(raw(world.bound.merged[0], request).await.0, 200);
    let head = app.heads().remove(0);
    assert!(head.starts_with("GET /health?full=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("host: web.example\r\n") && !head.contains("127.0.0.1"), "{head}");
    assert!(head.contains("user-agent: kube-probe/1.34\r\n"), "{head}");
    assert!(head.contains("x-probe: a\r\nx-probe: b\r\n"), "{head}");
    assert!(!head.contains("accept:"), "{head}");
}

#[tokio::test]
async fn bad_probes_are_refused_and_not_sent() {
    let app = Application::answering(|_| ok("")).await;
    for (path, name, value) in
        [("/a b", "X-A", "b"), ("/", "X A", "b"), ("/", "X-A", "b\r\nX-Evil: c"), ("/\r\n", "X-A", "b")]
    {
        let action = Action::Http {
            port: app.port,
            path: path.into(),
            tls: false,
            host: None,
            headers: vec![(name.into(), value.into())],
        };
        assert_eq!(probe(&proxy_with(action, 1).await).await.0, 503);
    }
    assert!(app.heads().is_empty());
    let world = proxy_with(http(app.port, "/"), 1).await;
    for unknown in
        ["/app/web/readyz", "/app/other/livez", "/app/web/livez/", "/app/web/livez/../livez", "//app/web/livez"]
    {
        assert_eq!(get(world.bound.merged[0], unknown).await.0, 404, "{unknown}");
    }
    assert_eq!(post(world.bound.merged[0], "/app/web/livez").await.0, 405);
    assert!(app.heads().is_empty());
}

#[tokio::test]
async fn redirects_as_the_kubelet_follows_them() {
    let app = Application::answering(|head| {
        let path = head.split(' ').nth(1).unwrap();
        let to =
            |place: &str| format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n").into_bytes();
        match path {
            "/start" => to("/bad"),
            "/bad" => b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/away" => to("http://198.18.255.254:9/"),
            "/loop" => to("/loop"),
            _ => to("::not a url::://"),
        }
    })
    .await;
    for (path, expected) in [("/start", 500), ("/away", 200), ("/loop", 503)] {
        assert_eq!(probe(&proxy_with(http(app.port, path), 5).await).await.0, expected, "{path}");
    }
    assert_eq!(app.heads().iter().filter(|head| head.starts_with("GET /loop ")).count(), 11);
}

#[tokio::test]
async fn silence_and_closed_ports() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let world = proxy_with(http(port, "/"), 1).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(probe(&world).await.0, 504);
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&begun.elapsed()));
    // A hook that reached nobody must fail for the kubelet, which looks at the connection only.
    assert_eq!(get(world.bound.merged[0], "/app/web/prestop").await.0, 0);
    drop(silent);
    let (status, why) = probe(&world).await;
    assert_eq!(status, 503);
    assert!(why.contains(&format!("port {port}")), "{why}");
    assert_eq!(get(world.bound.merged[0], "/app/web/prestop").await.0, 0);
    let text = get(world.bound.metrics[0], "/stats/prometheus").await.1;
    assert!(text.contains("weir_app_probes_total{kind=\"http\",result=\"timeout\"} 2"), "{text}");

    // An answer that breaks off is none.
    let app = Application::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()).await;
    assert_eq!(probe(&proxy_with(http(app.port, "/"), 1).await).await.0, 503);
    // A long one is not read to its end.
    let app = Application::answering(|_| ok(&"x".repeat(1_000_000))).await;
    assert_eq!(probe(&proxy_with(http(app.port, "/"), 1).await).await.0, 200);
    let junk = Application::answering(|_| b"SSH-2.0-x\r\n".to_vec()).await;
    assert_eq!(probe(&proxy_with(http(junk.port, "/"), 1).await).await.0, 503);
}

#[tokio::test]
async fn tcp_probes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = proxy_with(Action::Tcp { port, host: None }, 1).await;
    assert_eq!(probe(&world).await.0, 200);
    let (_, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip().to_string(), "127.0.0.6");
    drop(listener);
    assert_eq!(probe(&world).await.0, 503);
    let named = proxy_with(Action::Tcp { port, host: Some("localhost".into()) }, 1).await;
    assert_eq!(probe(&named).await.0, 503);
    let nobody = World::start(|app| {
        app.addresses.clear();
        let action = Action::Tcp { port, host: None };
        app.calls.insert(path("web", Which::Liveness), AppCall { timeout_seconds: 1, action });
    })
    .await;
    assert!(probe(&nobody).await.1.contains("was not told the pod's address"));
}

#[tokio::test]
async fn https_probes_take_any_certificate() {
    let certified = rcgen::generate_simple_self_signed(vec!["nobody.example".into()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await.unwrap();
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let action = Action::Http { port, path: "/".into(), tls: true, host: None, headers: Vec::new() };
    assert_eq!(probe(&proxy_with(action, 5).await).await.0, 201);
    server.await.unwrap();
    // Plaintext behind an HTTPS probe fails.
    let plain = Application::answering(|_| ok("")).await;
    let action = Action::Http { port: plain.port, path: "/".into(), tls: true, host: None, headers: Vec::new() };
    assert!(probe(&proxy_with(action, 1).await).await.0 >= 503);
}

/// A gRPC health service: `ready` is served, `down` is not, others are not known; `broken` answers nonsense.
async fn health_service() -> u16 {
    async fn answer(
        request: Request<Incoming>,
    ) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, hyper::Error>>, hyper::Error> {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let body = request.into_body().collect().await?.to_bytes();
        let service = String::from_utf8(body.get(7..).unwrap_or_default().to_vec()).unwrap();
        let (message, status): (&'static [u8], _) = match service.as_str() {
            "" | "ready" => (&[0, 0, 0, 0, 2, 8, 1], "0"),
            "down" => (&[0, 0, 0, 0, 2, 8, 2], "0"),
            "broken" => (&[9, 9], "0"),
            _ => (&[], "5"),
        };
        let trailers = hyper::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        let body = Full::new(Bytes::from_static(message)).with_trailers(std::future::ready(Some(Ok(trailers))));
        Ok(Response::builder()
            .header("content-type", "application/grpc")
            .body(body.map_err(|never: std::convert::Infallible| match never {}).boxed())
            .unwrap())
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    });
    port
}

#[tokio::test]
async fn grpc_probes() {
    let port = health_service().await;
    for (service, status, why) in [
        ("", 200, ""),
        ("ready", 200, ""),
        ("down", 503, "NOT_SERVING"),
        ("unknown", 503, "gRPC status"),
        ("broken", 503, "not understood"),
    ] {
        let (got, body) = probe(&proxy_with(Action::Grpc { port, service: service.into() }, 5).await).await;
        assert_eq!(got, status, "{service}: {body}");
        assert!(body.contains(why), "{service}: {body}");
    }
    let plain = Application::answering(|_| ok("")).await;
    assert_eq!(probe(&proxy_with(Action::Grpc { port: plain.port, service: String::new() }, 1).await).await.0 / 100, 5);
}

async fn merging(port: u16) -> World {
    World::start(|app| app.metrics = Some(format!("{port}/metrics").parse().unwrap())).await
}

async fn merged(world: &World) -> String {
    let (status, text) = get(world.bound.merged[0], "/stats/prometheus").await;
    assert_eq!(status, 200, "a scrape never fails");
    assert!(text.contains("istio_build{component=\"proxy\""));
    text
}

fn failures(text: &str, reason: &str) -> bool {
    text.contains(&format!("weir_app_scrape_failures_total{{reason=\"{reason}\"}} 1"))
}

#[tokio::test]
async fn metrics_of_the_application_follow_the_proxys() {
    let app = Application::answering(|_| {
        ok("# TYPE app_total counter\napp_total{a=\"b\"} 7\nprocess_cpu_seconds_total 1\nnonsense here\n# EOF\n")
    })
    .await;
    let world = merging(app.port).await;
    let text = merged(&world).await;
    assert!(text.ends_with("# TYPE app_total counter\napp_total{a=\"b\"} 7\nprocess_cpu_seconds_total 1\n"), "{text}");
    assert_eq!(text.matches("process_cpu_seconds_total").count(), 1, "that name is the application's");
    assert!(merged(&world).await.contains("weir_app_scrape_lines_dropped_total 1\n"));
    let head = app.heads().remove(0);
    assert!(head.starts_with("GET /metrics HTTP/1.1\r\n") && head.contains("accept: text/plain"), "{head}");
    // Alone, and without an application, the proxy's own are whole.
    for alone in [get(world.bound.metrics[0], "/stats/prometheus").await.1, merged(&World::start(|_| {}).await).await] {
        assert!(alone.contains("process_resident_memory_bytes ") && !alone.contains("app_total"));
    }
}

#[tokio::test]
async fn an_application_that_fails_never_fails_the_scrape() {
    type Case = (&'static str, fn() -> Vec<u8>);
    let cases: [Case; 5] = [
        ("status", || b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("protocol", || b"not HTTP\r\n\r\n".to_vec()),
        ("content_type", || b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\n\r\nx".to_vec()),
        ("broken_off", || b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na 1\nb".to_vec()),
        ("too_large", || ok(&"a_metric_with_a_long_name 1\n".repeat(700_000))),
    ];
    for (reason, answer) in cases {
        let app = Application::answering(move |_| answer()).await;
        let world = merging(app.port).await;
        let first = merged(&world).await;
        let text = merged(&world).await;
        assert!(text.contains(&format!("weir_app_scrape_failures_total{{reason=\"{reason}\"}}")), "{reason}");
        assert!(first.ends_with('\n'), "{reason}");
        assert_eq!(first.contains("\na 1\n"), reason == "broken_off", "whole lines pass");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let world = merging(closed).await;
    merged(&world).await;
    assert!(failures(&get(world.bound.metrics[0], "/stats/prometheus").await.1, "connect"));
}

#[tokio::test]
async fn a_slow_application_gets_what_prometheus_grants() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = merging(silent.local_addr().unwrap().port()).await;
    let begun = tokio::time::Instant::now();
    let request = "GET /stats/prometheus HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: 1.5\r\nConnection: close\r\n\r\n";
    let (status, text) = raw(world.bound.merged[0], request).await;
    assert_eq!(status, 200);
    assert!(text.contains("istio_build"));
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(failures(&get(world.bound.metrics[0], "/stats/prometheus").await.1, "timeout"));
}

#[tokio::test]
async fn openmetrics_are_made_plain() {
    let app = Application::answering(|_| {
        let body = "# TYPE a counter\na_total 1 1700000000.5 # {trace_id=\"x\"} 1\n# EOF\n";
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    })
    .await;
    assert!(merged(&merging(app.port).await).await.ends_with("# TYPE a counter\na_total 1\n"));
}
