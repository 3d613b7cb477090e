//! Callers that take their time: half-closed, or slow to take what they asked for.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{io::Write as _, net::Shutdown, time::Duration};

use serde_json::json;
use weir_tests::{App, Flow, Pod, PodSpec, World, at, is_root, until};

/// Resident memory of a pod's proxy, in kB.
fn resident(pod: &Pod) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.proxy(|proxy| proxy.pid()))).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_caller_that_has_ended_its_side_still_gets_its_answer() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let world = World::new("half-closed");
        let server = world.pod_unready(PodSpec::new("server").port("http", 8080).workers(workers));
        let app = App::http(&server.netns, 8080, |request, stream| {
            std::thread::sleep(Duration::from_millis(300));
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}", request.body.len())?;
            Ok(Flow::Keep)
        });
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
        let client = world.pod(PodSpec::new("client").workers(workers));
        server.wait_ready();
        let stranger = world.pod(PodSpec::new("stranger").outside());
        for (from, to) in [(&client, service), (&stranger, at(server.ip, 8080))] {
            for (request, body) in [
                ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "0"),
                ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody", "4"),
            ] {
                let mut connection = from.connect(to);
                connection.send(request.as_bytes()).unwrap();
                connection.stream.shutdown(Shutdown::Write).unwrap();
                let response = connection.response().unwrap_or_else(|error| panic!("{}: {error}", from.name));
                assert_eq!((response.status, response.text().as_str()), (200, body), "{}: {response:?}", from.name);
                assert!(connection.is_closed(), "{}", from.name);
            }
            // One that ends in the middle of its request is owed nothing, and the application sees no end of it.
            let before = app.count();
            let mut connection = from.connect(to);
            connection.send(b"POST /half HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbo").unwrap();
            connection.stream.shutdown(Shutdown::Write).unwrap();
            assert!(connection.is_closed(), "{}: half a request was answered", from.name);
            assert_eq!(app.count(), before);
        }
    }
}

#[test]
fn a_caller_that_does_not_read_costs_no_memory_and_gets_everything_in_the_end() {
    if !is_root() {
        return;
    }
    const EACH: usize = 20 * 1024 * 1024;
    let world = World::new("slow-readers");
    let server = world.pod_unready(PodSpec::new("server").port("http", 8080));
    let app = App::http(&server.netns, 8080, |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {EACH}\r\n\r\n")?;
        let part = [b'x'; 64 * 1024];
        for _ in 0..EACH / part.len() {
            stream.write_all(&part)?;
        }
        Ok(Flow::Keep)
    });
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
    let client = world.pod(PodSpec::new("client"));
    server.wait_ready();
    let before = [&client, &server].map(resident);
    let mut slow: Vec<_> = (0..10).map(|_| client.connect(service)).collect();
    slow.iter_mut().for_each(|connection| connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap());
    until("all answers have begun", || (app.count() == 10).then_some(()));
    // Until nothing moves any more: all buffers on the way are full.
    let moved = || client.metric("process_cpu_seconds_total", &[]) + server.metric("process_cpu_seconds_total", &[]);
    let mut last = moved();
    until("the buffers are full", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = moved();
        let still = now - last < 0.05;
        last = now;
        still.then_some(())
    });
    for (pod, before) in [&client, &server].into_iter().zip(before) {
        let more = resident(pod).saturating_sub(before);
        assert!(more < 20_000, "{}: {more} kB for ten callers that do not read", pod.name);
    }
    assert_eq!(client.connect(service).try_get("/").unwrap().body.len(), EACH, "others are served meanwhile");
    for connection in &mut slow {
        let response = connection.response().unwrap();
        assert_eq!((response.status, response.body.len()), (200, EACH));
    }
}
