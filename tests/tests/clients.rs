//! Clients that nobody here wrote, through both proxies and through the server's alone: h2load, wrk, and curl with its switches. nginx is
//! the application.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    thread,
};

use serde_json::json;
use weir_tests::{App, Client, Curl, Netns, Pod, PodSpec, Process, World, at, is_root, nginx, tool, until};

/// Ports of the server: HTTP/1.1 and HTTP/2, each declared and not; nginx with one kind of port speaks one of them.
const PORTS: [(&str, u16, u16); 4] = [("http", 80, 8080), ("http2", 90, 9000), ("", 81, 8081), ("", 91, 9001)];

/// `/who` says what of a request has arrived; `/up` counts a body, which is passed to another server as soon as all of it is there.
const SERVERS: &str = r#"
    client_max_body_size 64m;
    server {
        listen 8080; listen 8081; listen 9000 http2; listen 9001 http2;
        root ROOT;
        location = /who {
            return 200 "$server_protocol $request_method upgrade=$http_upgrade settings=$http_http2_settings expect=$http_expect\n";
        }
        location = /up { proxy_http_version 1.1; proxy_pass http://127.0.0.1:18080; }
    }
    server { listen 127.0.0.1:18080; location / { return 200 "$request_method $http_content_length\n"; } }"#;

struct Shop {
    client: Pod,
    stranger: Pod,
    server: Pod,
    services: Vec<SocketAddr>,
    _nginx: Process,
    world: World,
}

impl Shop {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let spec = PORTS.iter().fold(PodSpec::new("server"), |spec, (name, _, port)| spec.port(name, *port));
        let server = world.pod_unready(spec);
        let nginx = nginx::start(&server.netns, &world.path("nginx"), SERVERS, 8080);
        // Two ports without a name are no valid Service: one Service for each.
        let services = (10..).zip(PORTS).map(|(last, port)| {
            at(world.service(&format!("server-{last}"), last, &json!({"app": "server"}), &[port]), port.1)
        });
        let services = services.collect();
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        server.wait_ready();
        until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
        Self { client, stranger, server, services, _nginx: nginx, world }
    }

    /// Who calls, and where, for the ports at these places of [`PORTS`].
    fn ways(&self, places: &[usize]) -> Vec<(&Pod, SocketAddr)> {
        let inside = places.iter().map(|&place| (&self.client, self.services[place]));
        inside.chain(places.iter().map(|&place| (&self.stranger, at(self.server.ip, PORTS[place].2)))).collect()
    }

    fn file(&self, len: usize) -> PathBuf {
        let path = self.world.path("upload");
        fs::write(&path, vec![b'x'; len]).unwrap();
        path
    }

    /// Requests that the server's proxy has taken from the client's and from the stranger.
    fn counted(&self) -> [f64; 2] {
        ["mutual_tls", "none"].map(|security| {
            let labels = [("reporter", "destination"), ("connection_security_policy", security)];
            self.server.metric("istio_requests_total", &labels)
        })
    }
}

/// Runs a program to its end, and gives what it printed.
fn run(from: &Netns, program: &str, words: &[&str]) -> String {
    let mut command = from.command("timeout");
    let output = command.args(["--signal=KILL", "120", program]).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {words:?}: {text}");
    text
}

/// Requests of each run of h2load. nginx ends a connection after 1,000.
const REQUESTS: &str = "3000";

#[test]
fn h2load_gets_every_answer() {
    if !is_root() || tool::debian("h2load").is_none() {
        return;
    }
    let shop = Shop::new("h2load");
    let upload = shop.file(20_000).display().to_string();
    let before = shop.counted();
    let mut asked = 0.0;
    let runs: [(&[usize], &[&str], &str); 4] = [
        (&[1, 3], &["-c", "20", "-m", "50"], "/"),
        (&[1, 3], &["-c", "8", "-m", "10", "-d", &upload], "/up"),
        (&[0, 2], &["--h1", "-c", "20"], "/"),
        (&[0, 2], &["--h1", "-c", "8", "-m", "4", "-d", &upload], "/up"),
    ];
    for (places, words, path) in runs {
        for (from, to) in shop.ways(places) {
            let url = format!("http://{to}{path}");
            let said = run(&from.netns, "h2load", &[words, &["-n", REQUESTS, "-t", "2", &url]].concat());
            let all = format!(
                "requests: {REQUESTS} total, {REQUESTS} started, {REQUESTS} done, {REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout"
            );
            assert!(said.contains(&all), "{words:?} {to}: {said}");
            assert!(said.contains(&format!("status codes: {REQUESTS} 2xx")), "{words:?} {to}: {said}");
        }
        asked += 2.0 * 3000.0;
    }
    let counted = shop.counted();
    assert_eq!([counted[0] - before[0], counted[1] - before[1]], [asked; 2], "by mutual TLS, and from outside");
    // What was sent again because nginx ends its connections is no failure, and is counted.
    println!("sent again by the client's proxy: {}", shop.client.metric("weir_retries_total", &[]));
}

#[test]
fn wrk_gets_every_answer_on_kept_connections_and_pipelined() {
    if !is_root() || tool::debian("wrk").is_none() {
        return;
    }
    let shop = Shop::new("wrk");
    let script = shop.world.path("pipeline.lua");
    let four = "init = function(args)
        local all = {}
        for n = 1, 4 do all[n] = wrk.format(nil, '/?' .. n) end
        pipelined = table.concat(all)
    end
    request = function() return pipelined end\n";
    fs::write(&script, four).unwrap();
    let script = script.display().to_string();
    for (from, to) in shop.ways(&[0, 2]) {
        for script in [&[][..], &["-s", &script]] {
            let url = format!("http://{to}/");
            let said = run(&from.netns, "wrk", &[&["-t", "2", "-c", "16", "-d", "1s"], script, &[&url]].concat());
            let requests = said.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse::<u64>().ok());
            assert!(requests.is_some_and(|requests| requests > 100), "{script:?} {to}: {said}");
            assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{script:?} {to}: {said}");
        }
    }
}

#[test]
fn curl_is_answered_in_every_version_it_asks_for() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("curl");
    let upload = shop.file(300_000);
    let upload = upload.display().to_string();
    // The version that is asked for: what it is answered in, and what the application hears.
    let versions: [(&[usize], &str, &str, &str); 4] = [
        (&[0, 2], "--http1.0", "1.1", "HTTP/1.1"),
        (&[0, 2], "--http1.1", "1.1", "HTTP/1.1"),
        (&[0, 2], "--http2", "1.1", "HTTP/1.1"),
        (&[1, 3], "--http2-prior-knowledge", "2", "HTTP/2.0"),
    ];
    for (places, switch, answered, heard) in versions {
        for (from, to) in shop.ways(places) {
            let call = |words: &[&str], path: &str, input: &[u8]| {
                let url = format!("http://{to}{path}");
                let curl = Curl::call(&from.netns, &[&[switch], words, &[&url]].concat(), input);
                assert_eq!((curl.code, curl.version()), (Some(0), answered), "{switch} {words:?} {url}: {curl:?}");
                curl
            };
            // The wish to go on in HTTP/2 is dropped, and so is what belongs to it.
            let who = call(&[], "/who", b"");
            assert_eq!((who.status(), who.out.trim()), (200, &*format!("{heard} GET upgrade= settings= expect=")));
            let head = call(&["--head"], "/", b"");
            assert!(head.status() == 200 && head.out.to_lowercase().contains("content-length: 1024\r\n"), "{head:?}");
            let part = call(&["--range", "1000-", "--dump-header", "-"], "/", b"");
            assert!(part.status() == 206 && part.out.ends_with(&format!("\r\n\r\n{}", "x".repeat(24))), "{part:?}");
            assert!(part.out.to_lowercase().contains("content-range: bytes 1000-1023/1024\r\n"), "{part:?}");
            let file = call(&["--upload-file", &upload], "/up", b"");
            assert_eq!((file.status(), file.out.trim()), (200, "PUT 300000"));
            // HTTP/1.0 has no chunks, and knows nothing of an expectation; nginx answers to one in HTTP/1.1 only.
            if switch != "--http1.0" {
                let stream = call(&["--upload-file", "-"], "/up", &vec![b'x'; 200_000]);
                assert_eq!((stream.status(), stream.out.trim()), (200, "PUT 200000"));
            }
            if switch == "--http1.1" {
                let waits = ["--header", "Expect: 100-continue", "--expect100-timeout", "30", "--data-binary"];
                let waited = call(&[&waits[..], &[&format!("@{upload}")]].concat(), "/up", b"");
                assert_eq!((waited.status(), waited.out.trim()), (200, "POST 300000"));
                assert!(waited.seconds() < 20.0, "the interim answer did not come: {waited:?}");
            }
        }
    }
    // Many at once. In HTTP/2 without TLS this curl can not ask twice on a connection, with or without proxies; h2load can.
    for (from, to) in shop.ways(&[0]) {
        let many = [
            "--http1.1",
            "--parallel",
            "--parallel-max",
            "20",
            "--write-out",
            "%{http_code}\n",
            "--output",
            "/dev/null",
        ];
        let curl = Curl::call(&from.netns, &[&many[..], &[&format!("http://{to}/?[1-100]")]].concat(), b"");
        assert_eq!((curl.code, curl.out.matches("200\n").count()), (Some(0), 100), "{curl:?}");
    }
}

/// An application that answers as its path says, which nginx would not.
fn odd(netns: &Netns, mut stream: TcpStream) -> io::Result<()> {
    let mut client = Client::new(stream.try_clone()?);
    let head = client.head()?;
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    if head.starts_with("CONNECT ") {
        let mut there = netns.connect(target.parse().map_err(io::Error::other)?)?;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let (mut up_from, mut up_to) = (stream.try_clone()?, there.try_clone()?);
        let up = thread::spawn(move || {
            io::copy(&mut up_from, &mut up_to).ok();
            up_to.shutdown(std::net::Shutdown::Write).ok();
        });
        io::copy(&mut there, &mut stream)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        up.join().ok();
    } else if target.ends_with("/0.9") {
        stream.write_all(b"no head, and no version\n")?;
    } else if target.ends_with("/trailers") {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
        )?;
    } else {
        let host = head.lines().find(|line| line.to_lowercase().starts_with("host:")).unwrap_or_default();
        let body = format!("{target} {host}");
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

#[test]
fn curl_meets_trailers_tunnels_proxies_and_an_application_of_http_0_9() {
    if !is_root() {
        return;
    }
    let world = World::new("curl-odd");
    let server = world.pod_unready(PodSpec::new("server").port("http", 8080).port("http-web", 8081));
    let netns = server.netns.clone();
    let _app = App::raw(&server.netns, 8080, move |stream| {
        let _ = odd(&netns, stream);
    });
    let _web = App::echo(&server.netns, 8081, "web");
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    server.wait_ready();
    until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
    for (from, to) in [(&client, service), (&stranger, at(server.ip, 8080))] {
        let call = |words: &[&str]| Curl::call(&from.netns, words, b"");
        let url = |path: &str| format!("http://{to}{path}");
        // It would take such an answer; the proxy does not pass it on, for nobody could tell where it ends.
        let old = call(&["--http0.9", &url("/0.9")]);
        assert_eq!((old.code, old.status()), (Some(0), 502), "{old:?}");
        assert!(!old.out.contains("no version"), "{old:?}");
        let trailers = call(&["--header", "TE: trailers", "--dump-header", "-", &url("/trailers")]);
        assert!(trailers.status() == 200 && trailers.out.ends_with("\r\n\r\nokx-sum: 7\r\n"), "{trailers:?}");
        // The application is a proxy: called by its name for another, and as a tunnel to its neighbour.
        let proxied = call(&["--proxy", &url(""), "http://shop.test/a?b"]);
        assert_eq!((proxied.status(), &*proxied.out.to_lowercase()), (200, "/a?b host: shop.test"), "{proxied:?}");
        let tunnel = call(&["--proxytunnel", "--proxy", &url(""), "http://127.0.0.1:8081/through"]);
        assert_eq!(tunnel.status(), 200, "{tunnel:?}");
        assert!(tunnel.out.starts_with("GET /through HTTP/1.1"), "{tunnel:?}");
    }
    let line = server.logged("the tunnel", |line| line["method"] == "CONNECT" && !line["peer_identity"].is_null());
    assert_eq!(line["peer_identity"], client.identity().as_str(), "{line}");
}

/// Server-sent events: the next one is sent when the caller has the last one, for as long as the caller wants.
#[test]
fn every_event_of_a_long_stream_comes_when_it_is_sent() {
    if !is_root() {
        return;
    }
    const EVENTS: usize = 500;
    let world = World::new("events");
    let server = world.pod_unready(PodSpec::new("server").port("http", 8080));
    let (taken, next) = std::sync::mpsc::channel::<()>();
    let next = std::sync::Mutex::new(next);
    let _app = App::raw(&server.netns, 8080, move |mut stream| {
        let mut client = Client::new(stream.try_clone().unwrap());
        if client.head().is_err() {
            return;
        }
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head);
        let next = next.lock().unwrap();
        for number in 0..EVENTS {
            let event = format!("data: {number}\n\n");
            if write!(stream, "{:x}\r\n{event}\r\n", event.len()).is_err() || next.recv().is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
    let client = world.pod(PodSpec::new("client"));
    let stranger = world.pod(PodSpec::new("stranger").outside());
    server.wait_ready();
    until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
    for (from, to) in [(&client, service), (&stranger, at(server.ip, 8080))] {
        let mut caller = from.connect(to);
        caller.send(b"GET /events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n").unwrap();
        let head = caller.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        for number in 0..EVENTS {
            let event = format!("data: {number}\n\n");
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            let got =
                caller.exactly(chunk.len()).unwrap_or_else(|error| panic!("{} event {number}: {error}", from.name));
            assert_eq!(String::from_utf8_lossy(&got), chunk);
            taken.send(()).unwrap();
        }
        assert_eq!(caller.exactly(5).unwrap(), b"0\r\n\r\n");
    }
}
