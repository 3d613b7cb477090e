//! Tunnels by CONNECT in HTTP/2: the application is a proxy for others, and what follows its consent is passed on as it comes. Those of
//! HTTP/1.1 are made by curl (`clients.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server};
use http::{Method, Request, Response};
use serde_json::json;
use weir_tests::{
    PodSpec, World, at,
    http2::{self, H2App, H2Client, send},
    is_root, until,
};

/// Consents to tunnels to one place: greets, sends back what comes, and takes its leave when the other direction has ended.
async fn tunnel(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let meant = parts.uri.authority().map(http::uri::Authority::as_str);
    if parts.method != Method::CONNECT || meant != Some("shop.test:443") {
        let _ = respond.send_response(Response::builder().status(403).body(()).unwrap(), true);
        return;
    }
    let Ok(mut out) = respond.send_response(Response::new(()), false) else { return };
    let _ = send(&mut out, Bytes::from_static(b"hello "), false).await;
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        if send(&mut out, data, false).await.is_err() {
            return;
        }
    }
    let _ = send(&mut out, Bytes::from_static(b" bye"), true).await;
}

/// As much as was asked for, or what there was to the end.
async fn read(body: &mut RecvStream, len: usize) -> BytesMut {
    let mut all = BytesMut::new();
    while all.len() < len
        && let Some(data) = body.data().await
    {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        all.extend(data);
    }
    all
}

#[test]
fn a_tunnel_carries_both_directions_until_each_has_ended() {
    if !is_root() {
        return;
    }
    let world = World::new("tunnel");
    let server = world.pod_unready(PodSpec::new("server").port("http2", 9000));
    let _app = H2App::new(&server.netns, 9000, server::Builder::new(), tunnel);
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http2", 90, 9000)]), 90);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    server.wait_ready();
    until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
    let connect = |to: &str| Request::builder().method(Method::CONNECT).uri(to).body(()).unwrap();
    for (from, to) in [(&client, service), (&stranger, at(server.ip, 9000))] {
        http2::run(async {
            let mut caller = H2Client::connect(&from.netns, to).await.unwrap();
            let (refused, _) = caller.begin(connect("elsewhere.test:443"), false).await.unwrap();
            assert_eq!(refused.await.unwrap().status(), 403, "{}", from.name);
            let (response, mut out) = caller.begin(connect("shop.test:443"), false).await.unwrap();
            let (parts, mut body) = response.await.unwrap().into_parts();
            assert_eq!(parts.status, 200, "{}", from.name);
            assert_eq!(read(&mut body, 6).await, "hello ", "{}", from.name);
            for word in [&b"one"[..], b"two", b"\x16\x03\x01\0"] {
                send(&mut out, Bytes::from_static(word), false).await.unwrap();
                assert_eq!(read(&mut body, word.len()).await, word, "{}", from.name);
            }
            let much = Bytes::from(vec![7; 3 << 20]);
            let (sent, got) = tokio::join!(send(&mut out, much.clone(), true), read(&mut body, much.len()));
            sent.unwrap();
            assert!(got.starts_with(&much), "{}: {}", from.name, got.len());
            let rest = [&got[much.len()..], &read(&mut body, 5).await].concat();
            assert_eq!(rest, b" bye", "{}", from.name);
        });
    }
    let line = server.logged("the tunnel", |line| line["method"] == "CONNECT" && !line["peer_identity"].is_null());
    assert_eq!((&line["protocol"], &line["peer_identity"]), (&json!("HTTP/2"), &json!(client.identity())), "{line}");
}
