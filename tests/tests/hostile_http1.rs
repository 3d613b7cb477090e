//! Hostile peers that speak HTTP/1.1, on either side of the proxies: each gets its due, and nobody else notices.
//!
//! While one attacks, two well-behaved neighbours (one in the same pod, one outside) ask on steadily.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt},
};
use serde_json::json;
use weir_tests::{
    App, Client, Flow, Pod, PodSpec, World, at,
    calm::{MORE_MEMORY, Neighbour, calm},
    is_root, until,
};

/// Many connections have two ends in this process.
fn many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// A client and a server in the mesh, a stranger outside; port 80 leads to a good application, port 81 to a bad one.
struct Shop {
    client: Pod,
    stranger: Pod,
    server: Pod,
    good: SocketAddr,
    bad: SocketAddr,
    app: App,
    _bad_app: App,
    /// Requests that the bad application does not answer.
    asked_in_vain: Arc<AtomicUsize>,
    /// Those of them whose connection came to an end.
    given_up: Arc<AtomicUsize>,
    _world: World,
}

impl Shop {
    fn new(name: &str, spec: impl Fn(PodSpec) -> PodSpec) -> Self {
        many_files();
        let world = World::new(name);
        let server = world.pod_unready(spec(PodSpec::new("server").port("http", 8080).port("http-bad", 8081)));
        let app = App::http(&server.netns, 8080, |request, stream| {
            let body = format!("{}\n{}", request.body.len(), request.head);
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            Ok(Flow::Keep)
        });
        let (asked_in_vain, given_up) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counters = (asked_in_vain.clone(), given_up.clone());
        let bad_app = App::raw(&server.netns, 8081, move |stream| misbehave(stream, &counters.0, &counters.1));
        let ports = [("http", 80, 8080), ("http-bad", 81, 8081)];
        let ip = world.service("server", 10, &json!({"app": "server"}), &ports);
        let client = world.pod(spec(PodSpec::new("client")));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        server.wait_ready();
        until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
        Self {
            client,
            stranger,
            server,
            good: at(ip, 80),
            bad: at(ip, 81),
            app,
            _bad_app: bad_app,
            asked_in_vain,
            given_up,
            _world: world,
        }
    }

    /// Through both proxies, and through the server's alone; to the good application.
    fn ways(&self) -> [(&'static str, &Pod, SocketAddr); 2] {
        [("through both", &self.client, self.good), ("from outside", &self.stranger, at(self.server.ip, 8080))]
    }

    /// The same to the bad one.
    fn bad_ways(&self) -> [(&'static str, &Pod, SocketAddr); 2] {
        [("through both", &self.client, self.bad), ("from outside", &self.stranger, at(self.server.ip, 8081))]
    }

    /// Attacks, while others are to notice nothing.
    fn calm(&self, what: &str, attack: impl FnOnce()) {
        let neighbours = self.ways().map(|(way, from, to)| Neighbour::http1(way, &from.netns, to));
        calm(what, &[&self.client, &self.server], &neighbours, MORE_MEMORY, attack);
    }
}

/// An application that does to its callers what its path says.
fn misbehave(mut stream: TcpStream, asked_in_vain: &AtomicUsize, given_up: &AtomicUsize) {
    let mut client = Client::new(stream.try_clone().unwrap());
    let Ok(head) = client.head() else { return };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let megabyte = "x".repeat(1 << 20);
    let answer = match path.as_str() {
        "/never" => {
            asked_in_vain.fetch_add(1, Relaxed);
            let _ = client.rest();
            given_up.fetch_add(1, Relaxed);
            return;
        }
        "/gone" => return,
        "/early" => "HTTP/1.1 413 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno".to_owned(),
        "/partial" => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this".to_owned(),
        "/partial-chunk" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n64\r\nonly this".to_owned(),
        "/partial-head" => "HTTP/1.1 200 OK\r\ncontent-le".to_owned(),
        "/huge-head" => format!("HTTP/1.1 200 OK\r\nx: {megabyte}\r\n\r\n"),
        "/huge-trailers" => {
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: {megabyte}\r\n\r\n")
        }
        "/endless-hints" => "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(20_000),
        "/no-http" => "SSH-2.0-OpenSSH\r\n".to_owned(),
        "/two-lengths" => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!".to_owned(),
        "/injected" => "HTTP/1.1 200 OK\r\nx: a\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "/more" => {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil".to_owned()
        }
        other => panic!("{other}"),
    };
    let _ = stream.write_all(answer.as_bytes());
    if path == "/early" || path == "/more" {
        // Not the end of the connection, but its answer, is what counts.
        let _ = client.rest();
    }
}

#[test]
fn slow_heads_and_bodies_hold_up_nobody() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("slow", |spec| spec);
    for (what, begin) in [
        ("slow heads", "GET /slow HTTP/1.1\r\nhost: x\r\nx: "),
        ("slow bodies", "POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"),
        ("slow chunk sizes", "POST /slow HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;"),
    ] {
        shop.calm(what, || {
            let mut all: Vec<Client> =
                shop.ways().iter().flat_map(|(_, from, to)| (0..150).map(|_| from.connect(*to))).collect();
            all.iter_mut().for_each(|one| one.send(begin.as_bytes()).unwrap());
            for _ in 0..15 {
                all.iter_mut().for_each(|one| one.send(b"a").unwrap());
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }
    assert!(
        shop.app.requests.lock().unwrap().iter().all(|request| request.path != "/slow"),
        "half a request was whole"
    );
}

#[test]
fn chunks_of_one_byte_arrive_and_hold_up_nobody() {
    if !is_root() {
        return;
    }
    const CHUNKS: usize = 100_000;
    let shop = Shop::new("chunks", |spec| spec);
    shop.calm("chunks of one byte", || {
        std::thread::scope(|scope| {
            for (way, from, to) in shop.ways() {
                for _ in 0..2 {
                    let mut connection = from.connect(to);
                    scope.spawn(move || {
                        connection
                            .send(b"POST /chunks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
                            .unwrap();
                        let part = b"1\r\na\r\n".repeat(100);
                        (0..CHUNKS / 100).for_each(|_| connection.send(&part).unwrap());
                        connection.send(b"0\r\n\r\n").unwrap();
                        let response = connection.response().unwrap_or_else(|error| panic!("{way}: {error}"));
                        assert!(response.text().starts_with(&format!("{CHUNKS}\n")), "{way}: {}", response.head);
                    });
                }
            }
        });
    });
}

#[test]
fn thousands_of_idle_connections_hold_up_nobody() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("idle-many", |spec| spec);
    shop.calm("idle connections", || {
        let mut all: Vec<Client> =
            shop.ways().iter().flat_map(|(_, from, to)| (0..1000).map(|_| from.connect(*to))).collect();
        // Half of them have asked before, the others never say a word.
        for one in all.iter_mut().step_by(2) {
            assert_eq!(one.get("/once").status, 200);
        }
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(all[0].get("/again").status, 200);
    });
    for pod in [&shop.client, &shop.server] {
        until("all are closed", || (pod.metric("process_open_fds", &[]) < 200.0).then_some(()));
    }
}

#[test]
fn oversized_heads_are_refused_and_hold_up_nobody() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("huge", |spec| spec);
    let megabyte = "a".repeat(1 << 20);
    let lines: String = (0..5000).map(|n| format!("x-{n}: y\r\n")).collect();
    let cases = [
        ("one header", format!("GET /huge HTTP/1.1\r\nhost: x\r\nx: {megabyte}\r\n\r\n"), 431),
        ("many headers", format!("GET /huge HTTP/1.1\r\nhost: x\r\n{lines}\r\n"), 431),
        ("one name", format!("GET /huge HTTP/1.1\r\nhost: x\r\n{megabyte}: y\r\n\r\n"), 431),
        ("a target", format!("GET /huge{megabyte} HTTP/1.1\r\nhost: x\r\n\r\n"), 414),
        ("a method", format!("{megabyte} /huge HTTP/1.1\r\nhost: x\r\n\r\n"), 414),
        ("a query", format!("GET /huge?{megabyte} HTTP/1.1\r\nhost: x\r\n\r\n"), 414),
        ("a host", format!("GET /huge HTTP/1.1\r\nhost: {megabyte}\r\n\r\n"), 431),
    ];
    shop.calm("oversized heads", || {
        for (what, request, status) in &cases {
            for (way, from, to) in shop.ways() {
                for _ in 0..5 {
                    let mut connection = from.connect(to);
                    // Refused before the last byte is sent.
                    let _ = connection.send(request.as_bytes());
                    let response = connection.response().unwrap_or_else(|error| panic!("{what}, {way}: {error}"));
                    assert_eq!(
                        (response.status, response.closes()),
                        (*status, true),
                        "{what}, {way}: {}",
                        response.head
                    );
                }
            }
        }
    });
    assert!(shop.app.requests.lock().unwrap().iter().all(|request| request.path == "/steady"));
}

#[test]
fn upstreams_that_misbehave_cost_their_callers_an_answer_and_nobody_else() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("upstreams", |spec| spec);
    shop.calm("bad upstreams", || {
        for (way, from, to) in shop.bad_ways() {
            for path in ["/gone", "/partial-head", "/huge-head", "/no-http", "/two-lengths", "/injected"] {
                for method in ["GET", "POST"] {
                    let mut connection = from.connect(to);
                    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
                    let response = connection.ask(&request).unwrap_or_else(|error| panic!("{path}, {way}: {error}"));
                    // The server's proxy says 502 or 503; nothing of the malformed head is in it.
                    assert!(matches!(response.status, 502 | 503), "{path}, {way}: {response:?}");
                    assert_eq!(response.header("set-cookie"), None, "{path}, {way}");
                }
            }
            for path in ["/partial", "/partial-chunk", "/huge-trailers"] {
                let answer = from.connect(to).try_get(path);
                assert!(!matches!(&answer, Ok(response) if response.status == 200), "{path}, {way}: it looked whole");
            }
            // Interim answers without end: an end of the connection, or an answer of the proxy's own.
            let mut connection = from.connect(to);
            connection.send(b"GET /endless-hints HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let last = loop {
                match connection.response() {
                    Ok(response) if response.status == 103 => {}
                    other => break other.map(|response| response.status),
                }
            };
            assert!(!matches!(last, Ok(200)), "{way}: {last:?}");
            // An answer before the body is read, and more than one answer to a request.
            let mut connection = from.connect(to);
            connection.send(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n").unwrap();
            let part = vec![b'x'; 64 * 1024];
            while connection.send(&part).is_ok() {}
            let mut connection = from.connect(to);
            let response = connection.get("/more");
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{way}");
            connection.patience(Duration::from_millis(300));
            match connection.response() {
                Ok(response) => panic!("{way}: an answer that nobody asked for: {response:?}"),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                    ),
                    "{way}: {error}"
                ),
            }
            // Never answered: when the caller is gone for good, the application hears of it. One that has only ended its side would
            // be waited for.
            let before = shop.given_up.load(Relaxed);
            let mut waiting: Vec<Client> = (0..50).map(|_| from.connect(to)).collect();
            waiting.iter_mut().for_each(|one| one.send(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").unwrap());
            until("they are on their way", || (shop.asked_in_vain.load(Relaxed) >= before + 50).then_some(()));
            for one in waiting {
                let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&one.stream, sockopt::Linger, &abort).unwrap();
            }
            until("the application is left alone", || (shop.given_up.load(Relaxed) >= before + 50).then_some(()));
        }
    });
    for pod in [&shop.client, &shop.server] {
        until("all are closed", || (pod.metric("process_open_fds", &[]) < 120.0).then_some(()));
    }
}

/// `docs/traffic.md`: as the client wrote it, `x-request-id` added where there is none, and nothing else. Only what sidecars tell their
/// applications of a caller does not arrive from one that has proved nothing; the mesh's own marker never does.
#[test]
fn headers_arrive_as_they_were_written_but_for_claims_of_strangers() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("spoofed", |spec| spec);
    let long = format!("x-envoy-{}: a", "a".repeat(300));
    let claims = [
        "X-Forwarded-Client-Cert: By=spiffe://a;URI=spiffe://b",
        "x-envoy-external-address: 10.0.0.1",
        "X-Envoy-Original-Path: /admin",
        "x-envoy-decorator-operation: x",
        "x-forwarded-client-cert: Hash=2",
        "x_forwarded_client_cert: Hash=3",
        "X_ENVOY-internal: true",
        &long,
    ];
    let others = [
        "x-request-id: 1",
        "X-Forwarded-For: 10.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: admin",
        "Forwarded: for=10.0.0.1",
        "x-forwarded-client-certs: a",
        "x-envoy: a",
        "X_Under_Score: a",
        "x-under-score: b",
        "X-MiXeD-CaSe: c",
        "!#$%&'*+-.^_`|~: d",
        "x-empty:",
    ];
    // One in turn.
    let mut sent: Vec<&str> = others.to_vec();
    claims.iter().enumerate().for_each(|(index, claim)| sent.insert(2 * index, claim));
    for (way, from, to) in shop.ways() {
        let mut connection = from.connect(to);
        let lines = |lines: &[&str]| {
            ["GET /a HTTP/1.1", "Host: x"].iter().chain(lines).copied().collect::<Vec<_>>().join("\r\n")
        };
        let response = connection.ask(&format!("{}\r\nX-Weir-Fault: not-delivered\r\n\r\n", lines(&sent))).unwrap();
        let head = shop.app.last().unwrap().head;
        assert_eq!(head, lines(if from.name == "client" { &sent } else { &others }), "{way}");
        assert_eq!(response.status, 200);
        // What would break out of a header, or be two names at once, is refused.
        for bad in [
            "x: a\r\n\tb",
            "x: a\rb",
            "x: a\nb: c",
            "x\u{e4}: a",
            "x y: a",
            "(x): a",
            "x: \u{7f}",
            "\"x\": a",
            "x\r\n: a",
        ] {
            let mut connection = from.connect(to);
            let response = connection.ask(&format!("GET /bad HTTP/1.1\r\nHost: x\r\n{bad}\r\n\r\n")).unwrap();
            assert_eq!((response.status, response.closes()), (400, true), "{way}: {bad:?}");
        }
    }
    // Nothing of it changes who the caller is for the proxies.
    let line = shop.server.logged("the stranger", |line| line["path"] == "/a" && line["peer_identity"].is_null());
    assert_eq!(line["response_code"], 200);
    let line = shop.server.logged("the client", |line| line["path"] == "/a" && !line["peer_identity"].is_null());
    assert_eq!(line["peer_identity"], shop.client.identity().as_str());
    assert!(shop.app.requests.lock().unwrap().iter().all(|request| request.path != "/bad"));
}

#[test]
fn without_file_descriptors_what_is_there_is_served_on() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("no-files", |spec| spec.nofile(150));
    for (way, from, to) in shop.ways() {
        let victim = if way == "through both" { &shop.client } else { &shop.server };
        let complaints = || victim.log(&["no connection can be accepted"]).len();
        let mut kept = from.connect(to);
        assert_eq!(kept.get("/before").status, 200);
        let mut idle: Vec<TcpStream> = (0..300).filter_map(|_| from.netns.connect(to).ok()).collect();
        idle.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\n").unwrap());
        let start = Instant::now();
        until("it is full", || {
            assert_eq!(kept.get("/meanwhile").status, 200, "{way}");
            (complaints() > 0).then_some(())
        });
        for _ in 0..50 {
            assert_eq!(kept.get("/meanwhile").status, 200, "{way}: what it has is served no longer");
        }
        let most = 1 + usize::try_from(start.elapsed().as_secs() / 10).unwrap();
        assert!((1..=most).contains(&complaints()), "{way}: said {} times", complaints());
        drop(idle);
        until("it serves again", || {
            let mut connection = from.try_connect(to).ok()?;
            connection.patience(Duration::from_secs(1));
            connection.try_get("/after").ok().filter(|response| response.status == 200)
        });
    }
}
