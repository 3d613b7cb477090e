//! HTTP/2 and gRPC through two proxies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, server};
use http::{HeaderMap, Request, Response};
use serde_json::json;
use weir_tests::{
    PodSpec, World, at,
    http2::{self, H2App, H2Client, grpc, send, whole},
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

/// A server whose connections are this script.
fn scripted<F: Future<Output = ()> + 'static>(
    pod: &weir_tests::Pod,
    port: u16,
    script: impl Fn(usize, server::Connection<tokio::net::TcpStream, Bytes>) -> F + Clone + Send + 'static,
) -> H2App {
    let number = Arc::new(AtomicUsize::new(0));
    H2App::raw(&pod.netns, port, move |stream| {
        let (script, number) = (script.clone(), number.fetch_add(1, Relaxed));
        async move {
            if let Ok(connection) = server::handshake(stream).await {
                script(number, connection).await;
            }
        }
    })
}

fn ok(mut respond: server::SendResponse<Bytes>) {
    let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "0");
    let _ = respond.send_response(head.body(()).unwrap(), true);
}

#[test]
fn what_was_not_looked_at_is_sent_again_and_nothing_else() {
    if !is_root() {
        return;
    }
    let world = World::new("h2-again");
    let server = world.pod(PodSpec::new("catalog").port("grpc", 9000).port("grpc-b", 9001).port("grpc-c", 9002));
    let seen = Arc::new(AtomicUsize::new(0));
    // The first connection refuses each stream, and then says that it goes away; the next ones serve.
    let _refuses = scripted(&server, 9000, |number, mut connection| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if number == 0 {
                respond.send_reset(Reason::REFUSED_STREAM);
                connection.graceful_shutdown();
            } else {
                ok(respond);
            }
        }
    });
    // Takes a request, and the connection is cut without a word.
    let cut = seen.clone();
    let _cuts = scripted(&server, 9001, move |number, mut connection| {
        let cut = cut.clone();
        async move {
            while let Some(Ok((request, respond))) = connection.accept().await {
                if request.uri().path() == "/first" || number > 0 {
                    ok(respond);
                } else {
                    cut.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
    });
    // Ends a connection after each answer, as a server with a limit of requests does.
    let _ends = scripted(&server, 9002, |_, mut connection| async move {
        while let Some(Ok((_, respond))) = connection.accept().await {
            ok(respond);
            connection.graceful_shutdown();
        }
    });
    let ip = world.service(
        "catalog",
        10,
        &json!({"app": "catalog"}),
        &[("grpc", 90, 9000), ("grpc-b", 91, 9001), ("grpc-c", 92, 9002)],
    );
    let client = world.pod(PodSpec::new("client"));
    http2::run(async {
        let mut caller = H2Client::connect(&client.netns, at(ip, 90)).await.unwrap();
        for _ in 0..5 {
            let reply = caller.call("/refused", b"once").await.unwrap();
            assert_eq!(reply.grpc(), Some(0), "{reply:?}");
        }
        let mut caller = H2Client::connect(&client.netns, at(ip, 91)).await.unwrap();
        assert_eq!(caller.call("/first", b"x").await.unwrap().grpc(), Some(0));
        let reply = caller.call("/second", b"x").await.unwrap();
        assert_eq!((reply.status, reply.grpc()), (200, Some(14)), "{reply:?}");
        assert_eq!(seen.load(Relaxed), 1, "it may have had an effect, so it is not sent twice");
        assert!(reply.header("grpc-message").unwrap().contains("request id"), "{reply:?}");
        let mut caller = H2Client::connect(&client.netns, at(ip, 92)).await.unwrap();
        for _ in 0..100 {
            assert_eq!(caller.call("/ends", b"x").await.unwrap().grpc(), Some(0));
        }
    });
}

#[test]
fn an_application_that_is_not_there_is_tried_elsewhere_and_the_caller_told_what_it_may_know() {
    if !is_root() {
        return;
    }
    let world = World::new("h2-gone");
    let gone = world.pod(PodSpec::new("gone").label("app", "catalog").port("grpc", 9000));
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000)]);
    let client = world.pod(PodSpec::new("client"));
    http2::run(async {
        let mut caller = H2Client::connect(&client.netns, at(ip, 90)).await.unwrap();
        let reply = caller.call("/nobody", b"x").await.unwrap();
        assert_eq!((reply.status, reply.grpc()), (200, Some(14)), "{reply:?}");
        let said = reply.header("grpc-message").unwrap();
        assert!(said.starts_with("weir: the upstream can not be reached") && !said.contains("198.18"), "{said}");
        // One that is no gRPC gets a status of HTTP.
        let request = Request::get("http://catalog/plain").body(()).unwrap();
        let reply = caller.ask(request, Bytes::new()).await.unwrap();
        assert_eq!(reply.status, 503);
        assert!(reply.body.starts_with(b"weir: the upstream can not be reached"), "{reply:?}");
        let there = world.pod(PodSpec::new("there").label("app", "catalog").port("grpc", 9000));
        let _app = H2App::echo(&there.netns, 9000, "there");
        until("the other endpoint is known", || {
            client.admin("/config_dump").contains(&there.ip.to_string()).then_some(())
        });
        for _ in 0..20 {
            let reply = caller.call("/somebody", b"x").await.unwrap();
            assert_eq!((reply.grpc(), reply.header("x-pod")), (Some(0), Some("there")), "{reply:?}");
        }
    });
    let line = gone.logged("the refusal", |line| line["path"] == "/nobody");
    assert!(line["reason"].as_str().unwrap().contains("connect"), "{line}");
}

#[test]
fn deadlines_of_grpc_end_a_call_on_all_sides() {
    if !is_root() {
        return;
    }
    let world = World::new("h2-deadline");
    let server = world.pod(PodSpec::new("catalog").port("grpc", 9000));
    let ended = Arc::new(AtomicUsize::new(0));
    let seen = ended.clone();
    let _app = H2App::new(&server.netns, 9000, server::Builder::new(), move |_, mut respond| {
        let seen = seen.clone();
        async move {
            let reason = poll_fn(|cx| respond.poll_reset(cx)).await;
            assert!(matches!(reason, Ok(Reason::CANCEL)), "{reason:?}");
            seen.fetch_add(1, Relaxed);
        }
    });
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000)]);
    let client = world.pod(PodSpec::new("client"));
    http2::run(async {
        let mut caller = H2Client::connect(&client.netns, at(ip, 90)).await.unwrap();
        let begun = Instant::now();
        let reply =
            caller.ask(grpc("/slow", &[("grpc-timeout", "300m")]), Bytes::from_static(b"\0\0\0\0\0")).await.unwrap();
        assert_eq!((reply.status, reply.grpc()), (200, Some(4)), "{reply:?}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(2), "{took:?}");
        until("the application hears of it", || (ended.load(Relaxed) == 1).then_some(()));
        // A caller that takes its request back, without a deadline or with one beyond all calendars.
        for timeout in [&[][..], &[("grpc-timeout", "99999999H")], &[("grpc-timeout", "soon")]] {
            let before = ended.load(Relaxed);
            let (response, mut out) = caller.begin(grpc("/back", timeout), false).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            out.send_reset(Reason::CANCEL);
            drop(response);
            let end = Instant::now() + Duration::from_secs(10);
            while ended.load(Relaxed) == before {
                assert!(Instant::now() < end, "the application hears that the caller took it back");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let line = client.logged("the call that was taken back", |line| line["path"] == "/back");
    assert_eq!(line["response_flags"], "DC", "{line}");
}

#[test]
fn several_connections_carry_what_one_does_not_take() {
    if !is_root() {
        return;
    }
    let world = World::new("h2-pool");
    let server = world.pod(PodSpec::new("catalog").port("grpc", 9000));
    let settings = server::Builder::new().max_concurrent_streams(10).clone();
    let app = H2App::new(&server.netns, 9000, settings, |_, respond| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        ok(respond);
    });
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000)]);
    let client = world.pod(PodSpec::new("client").workers(1));
    http2::run(async {
        // The first call tells the proxy how many streams a connection takes.
        let mut caller = H2Client::connect(&client.netns, at(ip, 90)).await.unwrap();
        assert_eq!(caller.call("/x", b"x").await.unwrap().grpc(), Some(0));
        let begun = Instant::now();
        let mut calls = Vec::new();
        for _ in 0..90 {
            let (response, _) = caller.begin(grpc("/x", &[]), true).await.unwrap();
            calls.push(whole(response));
        }
        for call in calls {
            assert_eq!(call.await.unwrap().grpc(), Some(0));
        }
        // In turns on one connection it would be nine times as long.
        assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    });
    let connections = app.connections.load(Relaxed);
    assert!((9..=30).contains(&connections), "{connections}");
}

#[test]
fn a_pod_that_ends_sends_callers_elsewhere_and_loses_nothing() {
    if !is_root() {
        return;
    }
    let world = World::new("h2-drain");
    let leaving = world.pod(PodSpec::new("leaving").label("app", "catalog").port("grpc", 9000));
    let _one = H2App::echo(&leaving.netns, 9000, "leaving");
    let staying = world.pod(PodSpec::new("staying").label("app", "catalog").port("grpc", 9000));
    let _other = H2App::echo(&staying.netns, 9000, "staying");
    let ip = world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000)]);
    let client = world.pod(PodSpec::new("client"));
    http2::run(async {
        let mut caller = H2Client::connect(&client.netns, at(ip, 90)).await.unwrap();
        let mut by = [0, 0];
        let end = Instant::now() + Duration::from_secs(12);
        let mut told = false;
        let mut after = 0;
        while Instant::now() < end && after < 300 {
            let reply = caller.call("/x", b"x").await.unwrap();
            assert_eq!(reply.grpc(), Some(0), "{reply:?}");
            by[usize::from(reply.header("x-pod") == Some("staying"))] += 1;
            if by[0] > 50 && !told {
                told = true;
                leaving.proxy(|proxy| proxy.signal(nix::sys::signal::Signal::SIGTERM));
            }
            if told && !leaving.proxy(weir_tests::Process::is_running) {
                after += 1;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(told && after == 300, "{by:?}, {after} after the end");
    });
}
