//! HTTP/2 and gRPC through two proxies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;
use weir_tests::{
    PodSpec, World, at,
    http2::{self, H2App, H2Client, grpc, send},
    is_root, until,
};

#[test]
fn calls_streams_trailers_and_statuses_pass_by_declaration_and_by_detection() {
    if !is_root() {
        return;
    }
    let world = World::new("h2");
    let server = world.pod(PodSpec::new("catalog").port("grpc", 9000).port("", 9001));
    let _declared = H2App::echo(&server.netns, 9000, "catalog");
    let _detected = H2App::echo(&server.netns, 9001, "catalog");
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000), ("other", 91, 9001)]);
    let client = world.pod(PodSpec::new("client"));
    http2::run(async {
        for port in [90, 91] {
            let mut caller = H2Client::connect(&client.netns, at(ip, port)).await.unwrap();
            let reply = caller.call("/shop.Catalog/Get", b"hello").await.unwrap();
            assert_eq!(
                (reply.status, reply.grpc(), reply.header("x-pod")),
                (200, Some(0), Some("catalog")),
                "{reply:?}"
            );
            assert_eq!(&reply.body[..], b"\0\0\0\0\x05hello");
            assert_eq!(reply.header("x-path"), Some("/shop.Catalog/Get"));
            assert_eq!(reply.header("x-authority"), Some("catalog"));
            let got = reply.header("x-headers").unwrap();
            assert_eq!(got, "content-type,te,x-request-id", "nothing else is added, nothing is lost");

            // A status in trailers, and one in an answer that is nothing but trailers.
            let failed = caller.ask(grpc("/f", &[("x-status", "5")]), Bytes::from_static(b"\0\0\0\0\0")).await.unwrap();
            assert_eq!((failed.grpc(), failed.trailers.contains_key("grpc-status")), (Some(5), true), "{failed:?}");
            let alone = [("x-status", "16"), ("x-fail", "trailers-only")];
            let failed = caller.ask(grpc("/f", &alone), Bytes::new()).await.unwrap();
            assert_eq!((failed.grpc(), failed.headers.contains_key("grpc-status")), (Some(16), true), "{failed:?}");

            // Both ways at once, one message after the other has come back; then trailers of the request.
            let (response, mut out) = caller.begin(grpc("/stream", &[]), false).await.unwrap();
            let mut body = response.await.unwrap().into_body();
            for number in 0..20_u8 {
                send(&mut out, Bytes::from(vec![number; 1000]), false).await.unwrap();
                let mut came = 0;
                while came < 1000 {
                    let data = body.data().await.unwrap().unwrap();
                    assert!(data.iter().all(|byte| *byte == number));
                    let _ = body.flow_control().release_capacity(data.len());
                    came += data.len();
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sent", "end".parse().unwrap());
            out.send_trailers(trailers).unwrap();
            assert!(body.data().await.is_none());
            let trailers = body.trailers().await.unwrap().unwrap();
            assert!(trailers["grpc-status"] == "0" && trailers["x-sent"] == "end", "{trailers:?}");
            assert_eq!(trailers["x-bytes"], "20000");
        }
    });
    for (pod, reporter, port) in [(&server, "inbound", 9000), (&client, "outbound", 90)] {
        let line = pod.logged("the call", |line| line["path"] == "/shop.Catalog/Get");
        assert_eq!(
            (&line["protocol"], &line["method"], &line["direction"]),
            (&json!("HTTP/2"), &json!("POST"), &json!(reporter))
        );
        assert!(line["downstream_local_address"].as_str().unwrap().ends_with(&format!(":{port}")), "{line}");
    }
    let counted = |status| [("request_protocol", "grpc"), ("grpc_response_status", status), ("response_code", "200")];
    for pod in [&server, &client] {
        for (status, times) in [("0", 4.0), ("5", 2.0), ("16", 2.0)] {
            until("calls are counted", || {
                (pod.metric("istio_requests_total", &counted(status)) == times).then_some(())
            });
        }
    }
    let security = [("connection_security_policy", "mutual_tls"), ("source_principal", &*client.identity())];
    assert!(server.metric("istio_requests_total", &security) > 7.0);
    assert!(client.metric("weir_detection_total", &[("protocol", "http2"), ("reason", "first_bytes")]) >= 1.0);
    assert!(server.metric("weir_detection_total", &[("protocol", "http2"), ("reason", "alpn")]) >= 2.0);
}

#[test]
fn large_bodies_and_streams_that_nobody_reads_do_not_stop_others() {
    if !is_root() {
        return;
    }
    let world = World::new("h2-flow");
    let server = world.pod(PodSpec::new("catalog").port("grpc", 9000));
    let _app = H2App::echo(&server.netns, 9000, "catalog");
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000)]);
    let client = world.pod(PodSpec::new("client"));
    http2::run(async {
        let settings = h2::client::Builder::new().initial_connection_window_size(64 << 20).clone();
        let mut caller = H2Client::with(&client.netns, at(ip, 90), &settings).await.unwrap();
        let large: Bytes = (0..20_000_000_u32).map(|number| (number % 251) as u8).collect::<Vec<_>>().into();
        let reply = caller.ask(grpc("/large", &[]), large.clone()).await.unwrap();
        assert!(reply.body == large, "{} bytes", reply.body.len());
        assert_eq!(reply.trailers["x-bytes"], "20000000");

        // Forty streams whose answers nobody reads: each is full, and those beside go on.
        let mut stuck = Vec::new();
        for _ in 0..40 {
            let (response, mut out) = caller.begin(grpc("/stuck", &[]), false).await.unwrap();
            let body = response.await.unwrap().into_body();
            let filling = tokio::task::spawn_local(async move {
                let _ = send(&mut out, Bytes::from(vec![1; 4 << 20]), true).await;
            });
            stuck.push((body, filling));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(stuck.iter().all(|(_, filling)| !filling.is_finished()), "nothing is kept without end");
        let begun = Instant::now();
        for _ in 0..50 {
            assert_eq!(caller.call("/beside", b"x").await.unwrap().grpc(), Some(0));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // One of them is read after all.
        let (mut body, _) = stuck.pop().unwrap();
        let mut came = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            came += data.len();
            let _ = body.flow_control().release_capacity(data.len());
        }
        assert_eq!(came, 4 << 20);
    });
    let resident = server.proxy(|proxy| proxy.resident());
    assert!(resident < 60 << 20, "{resident} bytes");
}
