//! Callers that reach for more than is meant for them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use serde_json::json;
use weir_tests::{
    App, Pod, PodSpec, World, at,
    http2::{self, H2App, H2Client, grpc},
    is_root, until,
};

/// An application that listens on loopback means its own pod. The proxy calls the address that was called, and so does not carry
/// strangers there.
#[test]
fn an_application_on_loopback_stays_its_pod_s_own() {
    if !is_root() {
        return;
    }
    let world = World::new("loopback");
    let server = world.pod(PodSpec::new("server").port("http", 9000).port("tcp", 9001));
    let ip = world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 9000), ("tcp", 81, 9001)]);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
    let called = Arc::<AtomicUsize>::default();
    for port in [9000, 9001, 9002] {
        let (listener, called) = (server.netns.listen(([127, 0, 0, 1], port).into()), called.clone());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                called.fetch_add(1, Relaxed);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                // What was asked is read, so that the answer is not lost with a reset.
                let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
            }
        });
    }
    let calls = [
        (&client, at(ip, 80)),
        (&client, at(ip, 81)),
        (&client, at(server.ip, 9000)),
        (&client, at(server.ip, 9002)),
        (&stranger, at(server.ip, 9000)),
        (&stranger, at(server.ip, 9001)),
        (&stranger, at(server.ip, 9002)),
    ];
    for (from, to) in calls {
        let answer = from.try_connect(to).and_then(|mut connection| {
            connection.patience(Duration::from_secs(15));
            connection.try_get("/")
        });
        assert!(!matches!(&answer, Ok(response) if response.status != 503), "{} to {to}: {answer:?}", from.name);
    }
    assert_eq!(called.load(Relaxed), 0, "a stranger reached loopback");
    // It is there for its own pod.
    assert_eq!(server.connect(at([127, 0, 0, 1], 9002)).get("/").status, 200);
}

/// Deadlines that no clock can hold are far away, and those that have passed are over: nothing wraps around.
#[test]
fn deadlines_at_the_ends_of_what_can_be_said_are_kept() {
    if !is_root() {
        return;
    }
    let world = World::new("deadlines");
    let server = world.pod(PodSpec::new("catalog").port("grpc", 9000));
    let _app = H2App::echo(&server.netns, 9000, "catalog");
    let service = at(world.service("catalog", 10, &json!({"app": "catalog"}), &[("grpc", 90, 9000)]), 90);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    http2::run(async {
        for (from, to) in [(&client, service), (&stranger, at(server.ip, 9000))] {
            let mut caller = H2Client::connect(&from.netns, to).await.unwrap();
            for (timeout, want) in [
                ("99999999H", &[0][..]),
                ("99999999M", &[0]),
                // A call that is answered within the millisecond that timers count in is in time.
                ("0n", &[0, 4]),
                ("1n", &[0, 4]),
                // None that can be read: the application judges.
                ("100000000H", &[0]),
                ("-1S", &[0]),
                ("18446744073709551616n", &[0]),
                ("1", &[0]),
            ] {
                let request = grpc("/deadline", &[("grpc-timeout", timeout)]);
                let reply = match caller.ask(request, Bytes::from_static(b"\0\0\0\0\x01x")).await {
                    // It passed between the head of the answer, which can not be taken back, and its end.
                    Err(error) if want.contains(&4) && error.reason() == Some(Reason::CANCEL) => continue,
                    reply => reply.unwrap(),
                };
                assert!(
                    reply.grpc().is_some_and(|status| want.contains(&status)),
                    "{}: {timeout}: {reply:?}",
                    from.name
                );
            }
        }
    });
}

/// Metrics are labelled by what the control plane knows, and not by what a caller writes: nobody can fill the proxies' memory with names.
#[test]
fn names_that_callers_make_up_add_no_series() {
    if !is_root() {
        return;
    }
    let world = World::new("series");
    let server = world.pod(PodSpec::new("server").port("http", 8080));
    let _app = App::echo(&server.netns, 8080, "server");
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    let ways = [(&client, service), (&client, at(server.ip, 8080)), (&stranger, at(server.ip, 8080))];
    let made_up = |numbers: std::ops::Range<usize>| {
        for (from, to) in ways {
            let mut connection = from.connect(to);
            for n in numbers.clone() {
                let request = format!(
                    "M{n} /p{n}?q{n} HTTP/1.1\r\nhost: h{n}.test:{n}\r\nuser-agent: a{n}\r\nx-forwarded-for: 10.0.0.{n}\r\n\r\n"
                );
                assert_eq!(connection.ask(&request).unwrap().status, 200, "{n}");
            }
        }
    };
    let series = |pod: &Pod| pod.admin("/stats/prometheus").lines().filter(|line| !line.starts_with('#')).count();
    // A caller's series begin anew once the control plane has said who has its address.
    until("the server's proxy knows its callers", || {
        made_up(1..3);
        let known = |app| server.metric("istio_requests_total", &[("source_app", app)]) > 0.0;
        (known("client") && known("stranger")).then_some(())
    });
    made_up(1..3);
    let before = [&client, &server].map(series);
    made_up(3..200);
    let after = [&client, &server].map(series);
    assert_eq!(after, before, "series of the client's proxy, and of the server's");
}
