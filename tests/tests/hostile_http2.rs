//! Hostile callers that speak HTTP/2: applications against their own proxy, and strangers against a pod's; each gets its due, and nobody
//! else notices.
//!
//! While one attacks, two well-behaved neighbours (one in the same pod, one outside) call on steadily.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server};
use http::{Request, Response};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use weir_tests::{
    Pod, PodSpec, World, at,
    calm::{MORE_MEMORY, Neighbour, calm},
    frames::*,
    http2::{H2App, send},
    is_root, until,
};

/// What `/large` answers with.
const LARGE: usize = 4 << 20;

/// A client and a server in the mesh, and a stranger outside.
struct Shop {
    client: Pod,
    stranger: Pod,
    server: Pod,
    service: SocketAddr,
    /// Calls of `/large` that have begun.
    large: Arc<AtomicUsize>,
    /// Longest request that came to its end, in bytes.
    longest: Arc<AtomicUsize>,
    app: H2App,
    _world: World,
}

impl Shop {
    fn new(name: &str) -> Self {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap(); // many connections have two ends in this process
        let world = World::new(name);
        let server = world.pod_unready(PodSpec::new("server").port("grpc", 9000));
        let (large, longest) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counters = (large.clone(), longest.clone());
        // What the application itself takes must not be what is full.
        let settings = server::Builder::new().initial_connection_window_size(64 << 20).clone();
        let body = Bytes::from(vec![b'x'; LARGE]);
        let app = H2App::new(&server.netns, 9000, settings, move |request, respond| {
            answer(request, respond, body.clone(), counters.0.clone(), counters.1.clone())
        });
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("grpc", 90, 9000)]), 90);
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        server.wait_ready();
        until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
        Self { client, stranger, server, service, large, longest, app, _world: world }
    }

    /// From where, to where, and whose proxy is the first to see it.
    fn ways(&self) -> [(&'static str, &Pod, SocketAddr, &Pod); 2] {
        [
            ("through both", &self.client, self.service, &self.client),
            ("from outside", &self.stranger, at(self.server.ip, 9000), &self.server),
        ]
    }

    fn calm(&self, what: &str, more: usize, attack: impl FnOnce()) {
        let neighbours = self.ways().map(|(way, from, to, _)| Neighbour::http2(way, &from.netns, to));
        calm(what, &[&self.client, &self.server], &neighbours, more, attack);
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    megabytes: Bytes,
    large: Arc<AtomicUsize>,
    longest: Arc<AtomicUsize>,
) {
    let (parts, mut body) = request.into_parts();
    let head = Response::builder().header("content-type", "application/grpc");
    if parts.uri.path() == "/deaf" {
        // Takes what fits into the window, and waits.
        tokio::time::sleep(Duration::from_secs(60)).await;
        return;
    }
    if parts.uri.path() == "/large" {
        large.fetch_add(1, Relaxed);
        let Ok(mut out) = respond.send_response(head.body(()).unwrap(), false) else { return };
        let _ = send(&mut out, megabytes, true).await;
        return;
    }
    let mut count = 0;
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        count += data.len();
    }
    longest.fetch_max(count, Relaxed);
    let _ = respond.send_response(head.header("grpc-status", "0").body(()).unwrap(), true);
}

/// Sends what `part` makes until the other side has had enough; what it answers is read and thrown away meanwhile. The code of its
/// GOAWAY, where one is read before the end. Panics where `most` parts do not bring the end.
fn flood(peer: Peer, most: u32, mut part: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let mut writer = peer.stream.try_clone().unwrap();
    let mut reader = peer;
    reader.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let reading = std::thread::spawn(move || reader.end());
    for number in 0..most / 50 {
        let bytes: Vec<u8> = (number * 50..(number + 1) * 50).flat_map(&mut part).collect();
        if std::io::Write::write_all(&mut writer, &bytes).is_err() {
            break;
        }
    }
    let code = reading.join().unwrap();
    until("the connection has ended", || std::io::Write::write_all(&mut writer, &settings(&[])).is_err().then_some(()));
    code
}

#[test]
fn floods_of_frames_end_the_connection_that_they_come_on_and_no_other() {
    if !is_root() {
        return;
    }
    const ENOUGH: u32 = 40_000;
    let shop = Shop::new("h2-floods");
    let opened = |id: u32| frame(HEADERS, END_STREAM | END_HEADERS, id, &get("/flood"));
    let unended = |id: u32| frame(HEADERS, END_HEADERS, id, &get("/flood"));
    let code = |code: u32| code.to_be_bytes();
    type Make<'a> = Box<dyn Fn(u32) -> Vec<u8> + 'a>;
    let floods: Vec<(&str, Make<'_>)> = vec![
        ("rapid reset", Box::new(|n| [opened(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, &code(8))].concat())),
        // The reset is the receiver's own, asked for by an error of the stream.
        ("resets by errors", Box::new(|n| [opened(2 * n + 1), frame(WINDOW_UPDATE, 0, 2 * n + 1, &code(0))].concat())),
        ("streams over the limit", Box::new(|n| unended(2 * n + 1))),
        ("ping", Box::new(|n| frame(PING, 0, 0, &[n.to_be_bytes(), [0; 4]].concat()))),
        ("settings", Box::new(|_| settings(&[]))),
        ("settings of windows", Box::new(|n| settings(&[(WINDOW_SIZE, n % 2 * 1000)]))),
        ("acknowledgements", Box::new(|_| frame(SETTINGS, ACK, 0, &[]))),
        ("window updates", Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &code(1)))),
        ("priorities", Box::new(|n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1]))),
        ("frames of no known type", Box::new(|_| frame(0xbe, 0, 0, b"?"))),
        ("empty data", Box::new(|n| [if n == 0 { unended(1) } else { Vec::new() }, frame(DATA, 0, 1, &[])].concat())),
        (
            "padded empty data",
            Box::new(|n| [if n == 0 { unended(1) } else { Vec::new() }, frame(DATA, 8, 1, &[0])].concat()),
        ),
        (
            "continuations",
            Box::new(|n| {
                if n == 0 {
                    frame(HEADERS, END_STREAM, 1, &get("/flood"))
                } else {
                    frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))
                }
            }),
        ),
        (
            "empty continuations",
            Box::new(|n| {
                if n == 0 { frame(HEADERS, END_STREAM, 1, &get("/flood")) } else { frame(CONTINUATION, 0, 1, &[]) }
            }),
        ),
        (
            "continuations of 16 kB",
            Box::new(|n| {
                if n == 0 {
                    frame(HEADERS, END_STREAM, 1, &get("/flood"))
                } else {
                    frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(16_000))]))
                }
            }),
        ),
    ];
    for (what, part) in &floods {
        let refused = |pod: &Pod| pod.metric("weir_connections_refused_total", &[]);
        let before = [&shop.client, &shop.server].map(refused);
        shop.calm(what, MORE_MEMORY, || {
            for (way, from, to, _) in shop.ways() {
                for _ in 0..3 {
                    let peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
                    let code = flood(peer, ENOUGH, part);
                    eprintln!("{what}, {way}: {code:?}");
                }
            }
        });
        for (pod, before) in [&shop.client, &shop.server].into_iter().zip(before) {
            let more = refused(pod) - before;
            assert!(more >= 3.0, "{what}: {} counts {more} ended connections", pod.name);
        }
    }
    for pod in [&shop.client, &shop.server] {
        until("all are closed", || (pod.metric("process_open_fds", &[]) < 90.0).then_some(()));
    }
}

#[test]
fn lists_of_headers_that_explode_are_refused() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-lists");
    let megabyte = "a".repeat(1 << 20);
    let head = get("/huge");
    let many: Vec<u8> = (0..5000).flat_map(|n| block(&[(&format!("x-{n}"), "y")])).collect();
    let bomb = [head.clone(), kept("x", &"y".repeat(3900)), vec![0xbe; 10_000]].concat();
    let cookies = [head.clone(), kept("cookie", "a=1"), vec![0xbe; 10_000]].concat();
    // Beyond the limit of headers but far below that of bytes.
    let lines: Vec<u8> = (0..120).flat_map(|n| block(&[(&format!("x-{n}"), "y")])).collect();
    let cases = [
        ("a bomb of one indexed header", bomb),
        ("a bomb of cookies", cookies),
        ("one header of a megabyte", [head.clone(), block(&[("x", &megabyte)])].concat()),
        ("one name of a megabyte", [head.clone(), block(&[(&megabyte, "y")])].concat()),
        ("a path of a megabyte", get(&format!("/{megabyte}"))),
        ("five thousand headers", [head.clone(), many].concat()),
        ("120 headers", [head.clone(), lines].concat()),
        ("a path of 17 kB", get(&format!("/{}", "a".repeat(17_000)))),
    ];
    shop.calm("exploding lists", MORE_MEMORY, || {
        for (what, list) in &cases {
            for (way, from, to, _) in shop.ways() {
                for _ in 0..5 {
                    let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
                    let mut chunks = list.chunks(16_384).peekable();
                    let mut kind = HEADERS;
                    while let Some(chunk) = chunks.next() {
                        let flags = if kind == HEADERS { END_STREAM } else { 0 };
                        let last = if chunks.peek().is_none() { END_HEADERS } else { 0 };
                        if peer.send(kind, flags | last, 1, chunk).is_err() {
                            break;
                        }
                        kind = CONTINUATION;
                    }
                    let outcome = peer.outcome(1);
                    let fine = matches!(outcome, Outcome::Status(431 | 414) | Outcome::Reset(_) | Outcome::Ended(_));
                    assert!(fine, "{what}, {way}: {outcome:?}");
                    if *what == "120 headers" || *what == "a path of 17 kB" {
                        // What is not far beyond the limits is answered, and costs the connection nothing.
                        assert!(matches!(outcome, Outcome::Status(_)), "{what}, {way}: {outcome:?}");
                    }
                }
            }
        }
    });
    for pod in [&shop.client, &shop.server] {
        assert!(pod.access_log().iter().all(|line| line["path"] != "/huge" || line["response_code"] != 200));
    }
}

#[test]
fn heads_that_never_end_are_not_waited_for() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-slow");
    shop.calm("slow heads", MORE_MEMORY, || {
        let mut all = Vec::new();
        for (way, from, to, _) in shop.ways() {
            for number in 0..60 {
                let stream = from.netns.connect(to).unwrap();
                // Half of a preface; half of a list of headers; half of a frame.
                let begin = match number % 3 {
                    0 => PREFACE[..10].to_vec(),
                    1 => [PREFACE, &settings(&[]), &frame(HEADERS, END_STREAM, 1, &get("/slow"))].concat(),
                    _ => {
                        let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/slow"));
                        [PREFACE, &settings(&[]), &whole[..20]].concat()
                    }
                };
                let mut client = weir_tests::Client::new(stream);
                client.send(&begin).unwrap();
                all.push((way, number % 3, client));
            }
        }
        // Each of them is ended, by whoever waits for it: not after an hour, as an idle connection.
        for (way, kind, client) in &mut all {
            client.patience(Duration::from_secs(30));
            let rest = client.rest();
            let ended = rest.as_ref().err().is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
            assert!(ended, "{way}, {kind}: {rest:?}");
        }
    });
    for pod in [&shop.client, &shop.server] {
        let slow = pod.metric("weir_connections_refused_total", &[("reason", "http2_head_slow")]);
        assert!(slow >= 40.0, "{}: {slow}", pod.name);
    }
}

#[test]
fn bodies_of_a_byte_a_frame_arrive_and_one_that_nobody_takes_costs_little() {
    if !is_root() {
        return;
    }
    const BYTES: usize = 60_000;
    let shop = Shop::new("h2-bytes");
    let byte = frame(DATA, 0, 1, b"x");
    shop.calm("frames of one byte", MORE_MEMORY, || {
        for (way, from, to, _) in shop.ways() {
            let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
            peer.send(HEADERS, END_HEADERS, 1, &get("/bytes")).unwrap();
            for _ in 0..BYTES / 100 {
                peer.write(&byte.repeat(100)).unwrap();
            }
            peer.send(DATA, END_STREAM, 1, &[]).unwrap();
            assert_eq!(peer.outcome(1), Outcome::Status(200), "{way}");
            assert_eq!(shop.longest.swap(0, Relaxed), BYTES, "{way}");
        }
    });
    let mut held = Vec::new();
    // A request that may have to be sent again is kept, and one that is not taken waits: by its bytes, not by its frames.
    shop.calm("frames of one byte for nobody", MORE_MEMORY, || {
        for (_, from, to, _) in shop.ways() {
            let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
            for stream in 0..20 {
                peer.send(HEADERS, END_HEADERS, 2 * stream + 1, &get("/deaf")).unwrap();
                let byte = frame(DATA, 0, 2 * stream + 1, b"x");
                for _ in 0..60 {
                    if peer.write(&byte.repeat(1000)).is_err() {
                        break;
                    }
                }
            }
            held.push(peer);
        }
    });
}

#[test]
fn callers_that_open_no_window_cost_a_window_for_each_stream() {
    if !is_root() {
        return;
    }
    const CONNECTIONS: usize = 2;
    let shop = Shop::new("h2-windows");
    // Each stream may have 128 KiB on its way at each proxy; a call of 4 MiB has 32 times as much.
    let allowed = 2 * CONNECTIONS * 100 * 160;
    let mut all = Vec::new();
    shop.calm("windows that stay shut", MORE_MEMORY + allowed, || {
        for (way, from, to, _) in shop.ways() {
            for _ in 0..CONNECTIONS {
                let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[(WINDOW_SIZE, 0)]).unwrap();
                for stream in 0..100 {
                    peer.send(HEADERS, END_STREAM | END_HEADERS, 2 * stream + 1, &get("/large")).unwrap();
                }
                assert_eq!(peer.outcome(199), Outcome::Status(200), "{way}");
                all.push(peer);
            }
        }
        until("all have begun", || (shop.large.load(Relaxed) >= 2 * CONNECTIONS * 100).then_some(()));
        let moved = || [&shop.client, &shop.server].map(|pod| pod.proxy(|proxy| proxy.resident()));
        let mut last = moved();
        until("nothing moves any more", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = moved();
            let still = now.iter().zip(last).all(|(now, last)| now.abs_diff(last) < 1 << 20);
            last = now;
            still.then_some(())
        });
    });
    let full = [&shop.client, &shop.server].map(|pod| pod.proxy(|proxy| proxy.resident()));
    drop(all);
    // What they held comes back.
    for (pod, full) in [&shop.client, &shop.server].into_iter().zip(full) {
        until("memory comes back", || (pod.proxy(|proxy| proxy.resident()) < full * 2 / 3).then_some(()));
    }
}

#[test]
fn thousands_of_idle_connections_cost_little() {
    if !is_root() {
        return;
    }
    const CONNECTIONS: usize = 1000;
    let shop = Shop::new("h2-idle");
    let mut all = Vec::new();
    shop.calm("idle connections", MORE_MEMORY + CONNECTIONS * 24, || {
        for (way, from, to, _) in shop.ways() {
            for number in 0..CONNECTIONS {
                let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
                if number % 2 == 0 {
                    peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &get("/once")).unwrap();
                    assert_eq!(peer.outcome(1), Outcome::Status(200), "{way}");
                } else {
                    peer.take_of(SETTINGS).unwrap();
                }
                all.push(peer);
            }
        }
        for peer in all.iter_mut().step_by(50) {
            peer.send(HEADERS, END_STREAM | END_HEADERS, 3, &get("/again")).unwrap();
            assert_eq!(peer.outcome(3), Outcome::Status(200));
        }
    });
    drop(all);
    for pod in [&shop.client, &shop.server] {
        until("all are closed", || (pod.metric("process_open_fds", &[]) < 90.0).then_some(()));
    }
    assert!(shop.app.requests.load(Relaxed) > CONNECTIONS);
}
