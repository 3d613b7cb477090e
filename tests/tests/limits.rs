//! The proxy when something runs out, when it is not yet ready, and when it ends.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::Write as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use serde_json::json;
use weir_tests::{App, Client, Flow, Pod, PodSpec, Process, World, at, is_root, tokens::Issuer, until};

/// Many connections have two ends in this process.
fn many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// Resident memory of a pod's proxy, in kB.
fn resident(pod: &Pod) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.proxy(|proxy| proxy.pid()))).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

struct Pair {
    client: Pod,
    server: Pod,
    service: SocketAddr,
    world: World,
}

impl Pair {
    fn new(name: &str, spec: impl Fn(PodSpec) -> PodSpec) -> Self {
        let world = World::new(name);
        let server = world.pod_unready(spec(PodSpec::new("server").port("http", 8080)));
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
        let client = world.pod(spec(PodSpec::new("client")));
        server.wait_ready();
        Self { client, server, service, world }
    }
}

#[test]
fn file_descriptors_that_run_out_come_back() {
    if !is_root() {
        return;
    }
    many_files();
    for workers in [1, 4] {
        let pair = Pair::new("files", |spec| spec.workers(workers).nofile(150));
        let _app = App::echo(&pair.server.netns, 8080, "server");
        let stranger = pair.world.pod(PodSpec::new("stranger").outside());
        let complaints = |pod: &Pod| pod.log(&["no connection can be accepted"]).len();
        for (victim, from, to) in
            [(&pair.server, &stranger, at(pair.server.ip, 8080)), (&pair.client, &pair.client, pair.service)]
        {
            let start = Instant::now();
            let mut idle: Vec<_> = (0..300).filter_map(|_| from.netns.connect(to).ok()).collect();
            // Half of a request: a silent connection would be ended sooner.
            idle.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\n").unwrap());
            until("it is full", || (complaints(victim) > 0).then_some(()));
            assert!(victim.proxy(Process::is_running));
            drop(idle);
            until("it serves again", || {
                let mut connection = from.try_connect(to).ok()?;
                connection.patience(Duration::from_secs(1));
                connection.try_get("/").ok().filter(|response| response.status == 200)
            });
            // Each worker says so at most once in ten seconds.
            let most = workers * (1 + usize::try_from(start.elapsed().as_secs() / 10).unwrap());
            assert!((1..=most).contains(&complaints(victim)), "{} lines", complaints(victim));
            until("all are closed", || (victim.metric("process_open_fds", &[]) < 90.0).then_some(()));
            assert_eq!(victim.readiness().unwrap().status, 200);
        }
        assert_eq!(pair.client.connect(pair.service).get("/after").status, 200);
    }
}

#[test]
fn idle_connections_cost_little_memory() {
    if !is_root() {
        return;
    }
    many_files();
    const CONNECTIONS: u64 = 2000;
    let pair = Pair::new("idle", |spec| spec);
    let _app = App::echo(&pair.server.netns, 8080, "server");
    let stranger = pair.world.pod(PodSpec::new("stranger").outside());
    for (victim, from, to) in
        [(&pair.client, &pair.client, pair.service), (&pair.server, &stranger, at(pair.server.ip, 8080))]
    {
        assert_eq!(from.connect(to).get("/").status, 200);
        let before = resident(victim);
        let mut connections: Vec<Client> = (0..CONNECTIONS).map(|_| from.connect(to)).collect();
        for connection in &mut connections {
            assert_eq!(connection.get("/").status, 200);
        }
        let each = resident(victim).saturating_sub(before) * 1024 / CONNECTIONS;
        eprintln!("{}: {before} kB before, {each} bytes for each idle connection", victim.name);
        assert!(each < 20 * 1024, "{}: {each} bytes for each idle connection", victim.name);
        // They are alive.
        for connection in connections.iter_mut().step_by(100) {
            assert_eq!(connection.get("/").status, 200);
        }
    }
}

#[test]
fn a_proxy_that_is_told_to_end_finishes_what_it_has_begun() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        for victim in ["server", "client"] {
            let pair = Pair::new("drain", |spec| spec.workers(workers));
            let _app = App::http(&pair.server.netns, 8080, |request, stream| {
                if request.path == "/slow" {
                    std::thread::sleep(Duration::from_millis(1500));
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
                Ok(Flow::Keep)
            });
            let mut kept = pair.client.connect(pair.service);
            assert_eq!(kept.get("/").status, 200);
            let mut slow = pair.client.connect(pair.service);
            slow.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let pod = if victim == "server" { &pair.server } else { &pair.client };
            until("the slow request is on its way", || (_app.count() >= 2).then_some(()));
            let start = Instant::now();
            pod.proxy(|proxy| proxy.signal(Signal::SIGTERM));
            until("it drains", || (!pod.log(&["draining"]).is_empty()).then_some(()));
            let response = kept.get("/late");
            assert_eq!(response.status, 200, "{victim}: {response:?}");
            if victim == "client" {
                assert!(response.closes() && kept.is_closed(), "{victim}: {response:?}");
            }
            let response = slow.response().unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{victim}");
            assert!(start.elapsed() > Duration::from_millis(1000), "the request was not in flight");
            let status = pod.proxy(|proxy| proxy.wait(Duration::from_secs(30)));
            assert!(status.success(), "{victim}: {status}");
            assert!(pod.log(&["drain deadline reached"]).is_empty());
        }
    }
}

#[test]
fn the_end_of_a_proxy_has_a_deadline() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("deadline", |spec| spec.env("WEIR_DRAIN_SECONDS", "2"));
    let app = App::http(&pair.server.netns, 8080, |_, _| {
        std::thread::sleep(Duration::from_secs(60));
        Ok(Flow::Close)
    });
    let mut stuck = pair.client.connect(pair.service);
    stuck.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    until("the request is on its way", || (app.count() > 0).then_some(()));
    let start = Instant::now();
    pair.server.proxy(|proxy| proxy.signal(Signal::SIGTERM));
    let status = pair.server.proxy(|proxy| proxy.wait(Duration::from_secs(30)));
    assert!(status.success(), "{status}");
    assert!(start.elapsed() > Duration::from_millis(1900), "{:?}", start.elapsed());
    assert_eq!(pair.server.log(&["drain deadline reached"]).len(), 1);
    let response = stuck.response().unwrap();
    assert_eq!(response.status, 503, "{response:?}");
}

#[test]
fn a_pod_that_is_not_ready_says_why_and_heals_without_a_restart() {
    if !is_root() {
        return;
    }
    let world = World::new("readiness");
    let foreign = Issuer::new().token("shop", "stolen", "stolen");
    let cases = [
        (PodSpec::new("no-token").token(""), "token"),
        (PodSpec::new("stolen").token(&foreign), "token"),
        (PodSpec::new("bare").without_redirect(), "redirect"),
    ];
    for (spec, word) in cases {
        let pod = world.pod_unready(spec);
        let response = until("the reason", || pod.readiness().filter(|response| response.text().contains(word)));
        assert_eq!(response.status, 503, "{}: {response:?}", pod.name);
        let (code, text) = pod.wait_command(1);
        assert_ne!(code, Some(0), "{}: {text}", pod.name);
        assert!(text.contains(word), "{}: {text}", pod.name);
        assert!(!text.contains(&foreign), "a token is in the answer");
        if word == "redirect" {
            pod.apply_redirect()
        } else {
            pod.set_token(&pod.own_token())
        }
        pod.wait_ready();
        let (code, text) = pod.wait_command(1);
        assert_eq!(code, Some(0), "{}: {text}", pod.name);
        assert!(pod.proxy(Process::is_running));
        assert!(!pod.proxy(|proxy| proxy.err.all().join("\n")).contains(&foreign), "a token is in the log");
    }
}
