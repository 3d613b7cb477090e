//! Peers that are gone without a word, as with their node: nobody says that the connection has ended, and nothing is acknowledged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    io::{Read as _, Write as _},
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use weir_tests::{
    App, Flow, Pod, PodSpec, World, at,
    http2::{self, H2App, H2Client, grpc},
    is_root, until,
};

/// The bound that `docs/protocols.md` states, and room for a busy machine.
const BOUND: Duration = Duration::from_secs(20);
const BUSY: Duration = Duration::from_secs(15);

/// Cuts a pod off: what is sent to it, or by it, is dropped on the node.
fn cut_off(world: &World, pod: &Pod) {
    world.node.nft("add table ip gone");
    world.node.nft("add chain ip gone forward { type filter hook forward priority 0 ; }");
    world.node.nft(&format!("add rule ip gone forward ip daddr {} drop", pod.ip));
    world.node.nft(&format!("add rule ip gone forward ip saddr {} drop", pod.ip));
}

#[test]
fn calls_to_a_node_that_vanished_end_and_say_why() {
    if !is_root() {
        return;
    }
    let world = World::new("vanished");
    let spec =
        |name: &str| PodSpec::new(name).label("app", "shop").port("http", 8080).port("grpc", 9000).port("tcp", 7000);
    let gone = world.pod_unready(spec("gone"));
    let ports = [("http", 80, 8080), ("grpc", 90, 9000), ("tcp", 70, 7000)];
    let ip = world.service("shop", 10, &json!({"app": "shop"}), &ports);
    let client = world.pod(PodSpec::new("client"));
    gone.wait_ready();
    let http = App::http(&gone.netns, 8080, |request, stream| {
        if request.path == "/wait" {
            std::thread::sleep(Duration::from_secs(60));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        Ok(Flow::Keep)
    });
    let _grpc = H2App::echo(&gone.netns, 9000, "gone");
    let _tcp = App::raw(&gone.netns, 7000, |mut stream| {
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
    });
    // Idle ones that are kept: two of HTTP/1.1, by two requests at once.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(client.connect(at(ip, 80)).get("/").status, 200));
        }
    });
    let mut opaque = client.connect(at(ip, 70));
    opaque.send(b"hello").unwrap();
    assert_eq!(opaque.exactly(5).unwrap(), b"hello");

    // Keep-alive is on: an idle connection learns of the end, too.
    let timers = Command::new("nsenter")
        .arg(format!("--net={}", client.netns.path().display()))
        .args(["ss", "-tno", "state", "established", "dst", &gone.ip.to_string()])
        .output()
        .unwrap();
    let timers = String::from_utf8_lossy(&timers.stdout).into_owned();
    assert!(timers.matches("timer:(keepalive").count() >= 2, "{timers}");

    http2::run(async {
        let mut caller = H2Client::connect(&client.netns, at(ip, 90)).await.unwrap();
        assert_eq!(caller.call("/before", b"x").await.unwrap().grpc(), Some(0));
        cut_off(&world, &gone);
        let start = Instant::now();

        // Each kind of call to the one that is gone: a POST is sent once, and its fate is unknown.
        let (client_of, to) = (client.netns.clone(), at(ip, 80));
        let posts: Vec<_> = (0..4)
            .map(|_| {
                let mut connection = weir_tests::Client::new(client_of.connect(to).unwrap());
                std::thread::spawn(move || {
                    connection.patience(BOUND + BUSY);
                    (connection.try_post("/post", b"body").map(|response| response.status), start.elapsed())
                })
            })
            .collect();
        opaque.patience(BOUND + BUSY);
        opaque.send(b"are you there?").unwrap();
        let opaque = std::thread::spawn(move || (opaque.exactly(1).is_err(), start.elapsed()));
        let mut calls = Vec::new();
        for _ in 0..4 {
            let (response, mut out) = caller.begin(grpc("/call", &[]), false).await.unwrap();
            out.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), true).unwrap();
            calls.push(response);
        }
        // Another endpoint comes, and gets what is new.
        let other = world.pod(spec("other"));
        let _others = (
            App::echo(&other.netns, 8080, "other"),
            H2App::echo(&other.netns, 9000, "other"),
            App::echo(&other.netns, 7000, "other"),
        );
        until("the client knows both", || client.admin("/config_dump").contains(&other.ip.to_string()).then_some(()));
        for call in calls {
            let reply = tokio::time::timeout(BOUND + BUSY, http2::whole(call)).await.expect("a call hangs").unwrap();
            assert!(matches!(reply.grpc(), Some(0 | 14)), "{reply:?}");
        }
        eprintln!("gRPC: {:?}", start.elapsed());
        for post in posts {
            let (status, took) = post.join().unwrap();
            eprintln!("POST: {status:?} after {took:?}");
            assert!(matches!(status, Ok(503)), "{status:?}");
            assert!(took < BOUND + BUSY, "{took:?}");
        }
        let (cut, took) = opaque.join().unwrap();
        assert!(cut && took < BOUND + BUSY, "{took:?}");
        eprintln!("opaque: {took:?}");
        let line = client.logged("the request", |line| line["path"] == "/post" && line["response_flags"] == "UC");
        assert_eq!(line["response_code"], 503, "{line}");
        assert!(line["reason"].as_str().unwrap().contains("is gone"), "{line}");
        let line = client.logged("the stream", |line| line["protocol"] == "tcp" && line["response_flags"] == "UC");
        assert!(line["connection_termination_details"].as_str().unwrap().contains("is gone"), "{line}");

        // What is kept to it is of no use any more: nothing waits for it again.
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(client.connect(at(ip, 80)).get("/after").status, 200);
        }
        eprintln!("20 requests afterwards: {:?}", start.elapsed());
        assert!(start.elapsed() < BUSY, "{:?}", start.elapsed());
        drop(http);
    });
}

#[test]
fn a_peer_that_is_there_and_does_not_read_is_not_lost() {
    if !is_root() {
        return;
    }
    let world = World::new("paused");
    let server = world.pod_unready(PodSpec::new("server").port("tcp", 7000));
    let (resume, resumed) = std::sync::mpsc::channel::<()>();
    let resumed = std::sync::Mutex::new(resumed);
    let _tcp = App::raw(&server.netns, 7000, move |mut stream| {
        let _ = resumed.lock().unwrap().recv_timeout(Duration::from_secs(60));
        let (mut bytes, mut count) = (vec![0; 64 * 1024], 0);
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            count += n;
        }
        let _ = write!(stream, "{count}");
    });
    let ip = world.service("server", 10, &json!({"app": "server"}), &[("tcp", 70, 7000)]);
    let client = world.pod(PodSpec::new("client"));
    server.wait_ready();
    // Everything on the way is full, and its window shut, for longer than a lost peer is waited for.
    let mut stream = client.connect(at(ip, 70)).stream;
    stream.set_nonblocking(true).unwrap();
    let (part, mut sent, start) = (vec![7; 64 * 1024], 0, Instant::now());
    while start.elapsed() < Duration::from_secs(19) {
        match stream.write(&part) {
            Ok(n) => sent += n,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "after {:?}", start.elapsed());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    resume.send(()).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut count = String::new();
    stream.read_to_string(&mut count).unwrap();
    assert_eq!(count, sent.to_string());
}
