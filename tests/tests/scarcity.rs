//! The proxy when the memory of its container runs out: it takes nothing new and says so, keeps what it has, and takes load again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use weir_tests::{
    App, Flow, Pod, PodSpec, World, at,
    frames::*,
    http2::{self, H2App},
    is_root, until,
};

/// A control group of this machine with a limit for memory, for one process.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    used: &'static str,
}

impl Group {
    /// `None` where this machine lets none be made.
    fn new(pid: u32) -> Option<Self> {
        let name = format!("weir-tests-{}-{pid}", std::process::id());
        let (v1, v2) = (PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/sys/fs/cgroup"));
        let group = if v1.join("memory.limit_in_bytes").exists() {
            Self { folder: v1.join(name), limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes" }
        } else {
            Self { folder: v2.join(name), limit: "memory.max", used: "memory.current" }
        };
        fs::create_dir(&group.folder).ok()?;
        let made = group.folder.join(group.limit).exists()
            && fs::write(group.folder.join("cgroup.procs"), pid.to_string()).is_ok();
        made.then_some(group)
    }

    fn set(&self, bytes: u64) {
        fs::write(self.folder.join(self.limit), bytes.to_string()).unwrap();
    }

    fn used(&self) -> u64 {
        fs::read_to_string(self.folder.join(self.used)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What is in it goes back to where it came from.
        let parent = self.folder.parent().unwrap().join("cgroup.procs");
        for pid in fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default().lines() {
            fs::write(&parent, pid).ok();
        }
        let end = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn app(pod: &Pod, name: &'static str) -> App {
    App::http(&pod.netns, 8080, move |request, stream| {
        if request.path == "/slow" {
            std::thread::sleep(Duration::from_secs(3));
        }
        write!(stream, "HTTP/1.1 200 OK\r\nx-pod: {name}\r\ncontent-length: 2\r\n\r\nok")?;
        Ok(Flow::Keep)
    })
}

/// An application whose answers are large.
fn large(pod: &Pod) -> H2App {
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    H2App::new(&pod.netns, 9000, h2::server::Builder::new(), move |_, mut respond| {
        let body = body.clone();
        async move {
            let Ok(mut out) = respond.send_response(http::Response::new(()), false) else { return };
            let _ = http2::send(&mut out, body, true).await;
        }
    })
}

/// The proxy's group gets a limit that it has nearly reached; then it gets room again.
#[test]
fn near_the_limit_of_its_container_a_proxy_takes_nothing_new_and_says_so() {
    if !is_root() {
        return;
    }
    let world = World::new("memory");
    let first = world.pod_unready(PodSpec::new("first").label("app", "shop").port("http", 8080).port("grpc", 9000));
    let second = world.pod_unready(PodSpec::new("second").label("app", "shop").port("http", 8080));
    let ip = world.service("shop", 10, &json!({"app": "shop"}), &[("http", 80, 8080)]);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    [&first, &second].into_iter().for_each(Pod::wait_ready);
    let _apps = [app(&first, "first"), app(&second, "second")];
    let direct = at(first.ip, 8080);

    let Some(group) = Group::new(first.proxy(|proxy| proxy.pid())) else {
        assert!(std::env::var_os("CI").is_none(), "no control group can be made here");
        eprintln!("SKIPPED: no control group can be made here");
        return;
    };
    group.set(1 << 30);
    // What it had before stays in the account of its old group. In this one it gets 45 to 60 MB to hold, by how many connections to the
    // application there are: answers that nobody takes.
    let _large = large(&first);
    let mut holders = Vec::new();
    for _ in 0..4 {
        let mut peer = Peer::client(stranger.netns.connect(at(first.ip, 9000)).unwrap(), &[(WINDOW_SIZE, 0)]).unwrap();
        for stream in 0..100 {
            peer.send(HEADERS, END_STREAM | END_HEADERS, 2 * stream + 1, &get("/large")).unwrap();
        }
        holders.push(peer);
    }
    until("it holds much", || (group.used() > 40 << 20).then_some(()));
    let mut kept = stranger.connect(direct);
    let mut kept_by_mesh = client.connect(at(ip, 80));
    let mut slow = stranger.connect(direct);
    assert_eq!(kept.get("/before").status, 200);
    assert_eq!(kept_by_mesh.get("/before").status, 200);
    slow.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    until("both pods are called", || {
        kept_by_mesh.get("/spread").header("x-pod").is_some_and(|pod| pod == "first").then_some(())
    });

    group.set(group.used() * 100 / 94);
    let begun = Instant::now();
    until("it sheds load", || (first.metric("weir_overload", &[]) > 0.9).then_some(()));
    eprintln!("shed after {:?}", begun.elapsed());
    let response = kept.get("/refused");
    assert_eq!((response.status, response.text().contains("takes no request now")), (503, true), "{response:?}");
    let line = first.logged("the refusal", |line| line["path"] == "/refused");
    assert_eq!((&line["response_flags"], &line["response_code"]), (&json!("OM"), &json!(503)), "{line}");
    // New connections are refused at once, and counted.
    for _ in 0..20 {
        let answer = stranger.try_connect(direct).and_then(|mut connection| connection.try_get("/new"));
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(first.metric("weir_connections_refused_total", &[("reason", "overload")]) >= 20.0);
    // What was under way comes to its end, and callers of the mesh go elsewhere: on kept connections and on new ones.
    assert_eq!(slow.response().unwrap().status, 200);
    for _ in 0..20 {
        let mut fresh = client.connect(at(ip, 80));
        for connection in [&mut kept_by_mesh, &mut fresh] {
            let response = connection.get("/elsewhere");
            assert_eq!((response.status, response.header("x-pod")), (200, Some("second")), "{response:?}");
        }
    }
    assert_eq!(first.readiness().unwrap().status, 200, "what is under way needs the pod");
    let said = first.log(&["memory runs out"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("limit_mib"), "{said:?}");

    group.set(1 << 30);
    until("it takes load again", || (first.metric("weir_overload", &[]) < 0.1).then_some(()));
    assert_eq!(stranger.connect(direct).get("/after").status, 200);
    until("callers of the mesh come back", || {
        (client.connect(at(ip, 80)).get("/back").header("x-pod") == Some("first")).then_some(())
    });
}

/// The same by a limit that was set by hand, over HTTP/2.
#[test]
fn a_limit_that_is_given_counts_too() {
    if !is_root() {
        return;
    }
    let world = World::new("memory-given");
    let server = world.pod_unready(PodSpec::new("server").port("grpc", 9000).env("WEIR_MEMORY_LIMIT", "1000000"));
    let _app = http2::H2App::echo(&server.netns, 9000, "server");
    let stranger = world.pod(PodSpec::new("stranger").outside());
    server.wait_ready();
    // A megabyte is less than it needs: it is overloaded from the beginning, but its own pages answer.
    until("it sheds load", || (server.metric("weir_overload", &[]) > 0.9).then_some(()));
    let refused = stranger.netns.connect(at(server.ip, 9000)).and_then(|stream| Peer::client(stream, &[]));
    if let Ok(mut peer) = refused {
        let _ = peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &get("/refused"));
        assert_eq!(peer.outcome(1), Outcome::Ended(None));
    }
    until("it is counted", || {
        (server.metric("weir_connections_refused_total", &[("reason", "overload")]) >= 1.0).then_some(())
    });
}
