//! Applications that misbehave in HTTP/2: their callers get a clear answer, nothing is left over, and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use weir_tests::{
    App, Pod, PodSpec, World, at,
    calm::{MORE_MEMORY, Neighbour, calm},
    frames::*,
    http2::{self, H2App, H2Client, Reply, grpc, whole},
    is_root, until,
};

/// What an application does when the first request of a connection has come.
type Deed = fn(&mut Peer) -> std::io::Result<()>;

/// How a call is expected to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Answered by the proxy, with `grpc-status`.
    Status(u8),
    /// Begun, and cut by a reset: it must not look whole.
    Cut,
    /// Answered by the application, with `grpc-status`.
    Answered(u8),
}

const OPEN: u8 = END_HEADERS;
const WHOLE: u8 = END_HEADERS | END_STREAM;

fn head() -> Vec<u8> {
    block(&[(":status", "200"), ("content-type", "application/grpc")])
}

/// An answer's list of headers in as many frames as it needs.
fn list(stream: u32, fields: &[u8], last: u8) -> Vec<u8> {
    let mut chunks = fields.chunks(16_384).peekable();
    let (mut out, mut kind) = (Vec::new(), HEADERS);
    while let Some(chunk) = chunks.next() {
        let end = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frame(kind, end | if kind == HEADERS { last } else { 0 }, stream, chunk));
        kind = CONTINUATION;
    }
    out
}

/// Each deed has a port of its own, counted from 9100.
const DEEDS: &[(&str, Deed, Want)] = &[
    ("goes away at once", |peer| peer.send(GOAWAY, 0, 0, &[0; 8]), Want::Status(14)),
    ("goes away with an error", |peer| peer.send(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]), Want::Status(14)),
    ("closes without a word", |_| Ok(()), Want::Status(14)),
    ("refuses every stream", |peer| peer.send(RST_STREAM, 0, 1, &[0, 0, 0, 7]), Want::Status(14)),
    ("resets every stream", |peer| peer.send(RST_STREAM, 0, 1, &[0, 0, 0, 2]), Want::Status(14)),
    ("sends garbage", |peer| peer.write(&b"SSH-2.0-OpenSSH\r\n".repeat(100)), Want::Status(14)),
    ("answers in HTTP/1.1", |peer| peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Want::Status(14)),
    ("sends a frame that is too long", |peer| peer.write(&frame(DATA, 0, 1, &[0; 20_000])), Want::Status(14)),
    ("data before the head", |peer| peer.send(DATA, END_STREAM, 1, b"evil"), Want::Status(14)),
    ("no status", |peer| peer.send(HEADERS, WHOLE, 1, &block(&[("x", "y")])), Want::Status(14)),
    ("a status that is none", |peer| peer.send(HEADERS, WHOLE, 1, &block(&[(":status", "20x")])), Want::Status(14)),
    (
        "an upper-case header",
        |peer| peer.send(HEADERS, WHOLE, 1, &block(&[(":status", "200"), ("X-Upper", "y")])),
        Want::Status(14),
    ),
    (
        "a line break in a header",
        |peer| peer.send(HEADERS, WHOLE, 1, &block(&[(":status", "200"), ("x", "a\r\nset-cookie: b")])),
        Want::Status(14),
    ),
    (
        "a connection header",
        |peer| peer.send(HEADERS, WHOLE, 1, &block(&[(":status", "200"), ("transfer-encoding", "chunked")])),
        Want::Status(14),
    ),
    (
        "huge headers",
        |peer| {
            let megabyte = "x".repeat(1 << 20);
            peer.write(&list(1, &[head(), block(&[("x", &megabyte)])].concat(), 0))
        },
        Want::Status(14),
    ),
    (
        "a bomb of headers",
        |peer| {
            let bomb = [head(), kept("x", &"y".repeat(3900)), vec![0xbe; 10_000]].concat();
            peer.write(&list(1, &bomb, 0))
        },
        Want::Status(14),
    ),
    (
        "huge trailers",
        |peer| {
            let megabyte = "x".repeat(1 << 20);
            let trailers = list(1, &block(&[("grpc-status", "0"), ("x", &megabyte)]), END_STREAM);
            peer.write(&[frame(HEADERS, OPEN, 1, &head()), trailers].concat())
        },
        Want::Cut,
    ),
    (
        "half of an answer and a reset",
        |peer| {
            peer.write(&[frame(HEADERS, OPEN, 1, &head()), frame(DATA, 0, 1, b"half")].concat())?;
            peer.send(RST_STREAM, 0, 1, &[0, 0, 0, 2])
        },
        Want::Cut,
    ),
    (
        "half of an answer and the end",
        |peer| peer.write(&[frame(HEADERS, OPEN, 1, &head()), frame(DATA, 0, 1, b"half")].concat()),
        Want::Cut,
    ),
    (
        "more than it announced",
        |peer| {
            let head = block(&[(":status", "200"), ("content-length", "3")]);
            peer.write(&[frame(HEADERS, OPEN, 1, &head), frame(DATA, END_STREAM, 1, b"12345")].concat())
        },
        Want::Cut,
    ),
    (
        "a window that overflows",
        |peer| {
            peer.send(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())?;
            peer.send(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())
        },
        Want::Status(14),
    ),
    (
        "a stream's window that overflows",
        |peer| peer.send(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes()),
        Want::Status(14),
    ),
    (
        "a push that nobody wants",
        |peer| peer.send(PUSH_PROMISE, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], &get("/pushed")].concat()),
        Want::Status(14),
    ),
    (
        "interim answers without end",
        |peer| {
            let hint = frame(HEADERS, OPEN, 1, &block(&[(":status", "103"), ("link", "</a>")]));
            (0..2000).try_for_each(|_| peer.write(&hint.repeat(50)))
        },
        Want::Status(14),
    ),
    (
        "pings without end",
        |peer| (0..2000).try_for_each(|_| peer.write(&frame(PING, 0, 0, &[0; 8]).repeat(50))),
        Want::Status(14),
    ),
    (
        "settings without end",
        |peer| (0..2000).try_for_each(|_| peer.write(&settings(&[]).repeat(50))),
        Want::Status(14),
    ),
    (
        "answers before the request has ended",
        |peer| {
            let end = block(&[(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")]);
            peer.send(HEADERS, WHOLE, 1, &end)?;
            peer.send(RST_STREAM, 0, 1, &[0; 4])
        },
        Want::Answered(5),
    ),
];

const FIRST: u16 = 9100;

fn port(number: usize) -> u16 {
    FIRST + u16::try_from(number).unwrap()
}

/// Serves connections by a deed: it is done once for each, as the answer to its first request.
fn serve(stream: TcpStream, deed: Deed, done: &AtomicUsize) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok();
    let Ok(mut peer) = Peer::server(stream, &[]) else { return };
    if peer.take_of(HEADERS).is_ok() {
        let _ = deed(&mut peer);
        done.fetch_add(1, Relaxed);
        // What was written arrives before the end does.
        let _ = peer.stream.shutdown(std::net::Shutdown::Write);
        while peer.take().is_ok() {}
    }
}

struct Shop {
    client: Pod,
    stranger: Pod,
    server: Pod,
    ip: std::net::Ipv4Addr,
    done: Arc<AtomicUsize>,
    _apps: Vec<App>,
    _good: H2App,
    _world: World,
}

impl Shop {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let names: Vec<String> = (0..DEEDS.len() + 2).map(|number| format!("grpc-{number}")).collect();
        let mut spec = PodSpec::new("server").port("grpc", 9000);
        let mut ports = vec![("grpc", 9000, 9000)];
        for (number, name) in names.iter().enumerate() {
            spec = spec.port(name, port(number));
            ports.push((name, port(number), port(number)));
        }
        let server = world.pod_unready(spec);
        let done = Arc::<AtomicUsize>::default();
        let mut apps: Vec<App> = (0..)
            .zip(DEEDS)
            .map(|(number, (_, deed, _))| {
                let done = done.clone();
                App::raw(&server.netns, port(number), move |stream| serve(stream, *deed, &done))
            })
            .collect();
        // Two that are no answer to a request: none is taken, and none is answered.
        apps.push(App::raw(&server.netns, port(DEEDS.len()), |stream| {
            if let Ok(mut peer) = Peer::server(stream, &[(MAX_STREAMS, 0)]) {
                while peer.take().is_ok() {}
            }
        }));
        apps.push(App::raw(&server.netns, port(DEEDS.len() + 1), |stream| {
            if let Ok(mut peer) = Peer::server(stream, &[]) {
                while peer.take().is_ok() {}
            }
        }));
        let good = H2App::echo(&server.netns, 9000, "server");
        let ip = world.service("server", 10, &json!({"app": "server"}), &ports);
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        server.wait_ready();
        until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
        Self { client, stranger, server, ip, done, _apps: apps, _good: good, _world: world }
    }

    fn ways(&self, port: u16) -> [(&'static str, &Pod, SocketAddr); 2] {
        [("through both", &self.client, at(self.ip, port)), ("from outside", &self.stranger, at(self.server.ip, port))]
    }

    fn calm(&self, what: &str, attack: impl FnOnce()) {
        let neighbours = self.ways(9000).map(|(way, from, to)| Neighbour::http2(way, &from.netns, to));
        calm(what, &[&self.client, &self.server], &neighbours, MORE_MEMORY, attack);
    }

    /// Nothing is open any more but what is kept for the neighbours and the control plane.
    fn nothing_is_left(&self) {
        for pod in [&self.client, &self.server] {
            until("all are closed", || (pod.metric("process_open_fds", &[]) < 80.0).then_some(()));
        }
    }
}

/// One call on a connection of its own, with a body whose end is to come where `open`.
async fn call(from: &Pod, to: SocketAddr, id: &str, headers: &[(&str, &str)]) -> Result<Reply, h2::Error> {
    let mut caller = H2Client::connect(&from.netns, to).await?;
    let headers = [&[("x-request-id", id)], headers].concat();
    let (response, mut out) = caller.begin(grpc("/call", &headers), false).await?;
    let _ = out.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), true);
    tokio::time::timeout(Duration::from_secs(60), whole(response)).await.expect("an answer in time")
}

#[test]
fn callers_of_an_application_that_misbehaves_get_a_clear_answer() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-bad-apps");
    shop.calm("applications that misbehave", || {
        for (number, (what, _, want)) in DEEDS.iter().enumerate() {
            let begun = std::time::Instant::now();
            for (way, from, to) in shop.ways(port(number)) {
                for again in 0..2 {
                    let id = format!("{}-{number}-{again}", from.name);
                    let got = http2::run(call(from, to, &id, &[]));
                    let logged = |pod: &Pod| pod.logged("the call", |line: &Value| line["request_id"] == id.as_str());
                    let line = logged(&shop.server);
                    match (want, &got) {
                        (Want::Status(status), Ok(reply)) => {
                            assert_eq!(reply.grpc(), Some(*status), "{what}, {way}: {reply:?}");
                            // Who failed is in the answer; why is in the log.
                            assert!(reply.header("grpc-message").is_some(), "{what}, {way}: {reply:?}");
                            assert_eq!(reply.header("set-cookie"), None, "{what}, {way}");
                            assert!(line["reason"].is_string(), "{what}, {way}: {line}");
                        }
                        (Want::Cut, Err(error)) => assert!(error.is_reset(), "{what}, {way}: {error}"),
                        // Its end was there before its beginning was sent on.
                        (Want::Cut, Ok(reply)) => assert_eq!(reply.grpc(), Some(14), "{what}, {way}: {reply:?}"),
                        (Want::Answered(status), Ok(reply)) => {
                            assert_eq!(reply.grpc(), Some(*status), "{what}, {way}: {reply:?}");
                        }
                        (want, got) => panic!("{what}, {way}: {got:?} instead of {want:?}"),
                    }
                    if !matches!(want, Want::Answered(_)) {
                        let flags = line["response_flags"].as_str().unwrap_or("-");
                        assert!(flags != "-", "{what}, {way}: {line}");
                        if way == "through both" {
                            // For the caller's proxy it may be an answer like others: the other one gave it.
                            assert_eq!(logged(&shop.client)["method"], "POST", "{what}");
                        }
                    }
                }
            }
            eprintln!("{what}: {:?}", begun.elapsed());
        }
    });
    assert!(shop.done.load(Relaxed) >= 4 * DEEDS.len());
    shop.nothing_is_left();
}

#[test]
fn an_application_that_takes_or_answers_nothing_is_left_at_the_caller_s_deadline() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-deaf-apps");
    shop.calm("applications that are deaf", || {
        for number in [DEEDS.len(), DEEDS.len() + 1] {
            for (way, from, to) in shop.ways(port(number)) {
                let calls = (0..30).map(|call_number| {
                    let id = format!("{}-{number}-{call_number}", from.name);
                    async move { call(from, to, &id, &[("grpc-timeout", "700m")]).await }
                });
                let replies: Vec<_> = http2::run(async {
                    let mut replies = Vec::new();
                    let calls: Vec<_> = calls.collect();
                    for reply in join(calls).await {
                        replies.push(reply);
                    }
                    replies
                });
                for reply in replies {
                    let status = reply.as_ref().ok().and_then(Reply::grpc);
                    assert!(matches!(status, Some(4 | 14)), "{number}, {way}: {reply:?}");
                }
            }
        }
    });
    shop.nothing_is_left();
}

/// All at the same time.
async fn join<F: Future>(calls: Vec<F>) -> Vec<F::Output> {
    let mut calls: Vec<_> = calls.into_iter().map(|call| (Box::pin(call), None)).collect();
    std::future::poll_fn(move |cx| {
        for (call, output) in &mut calls {
            if output.is_none()
                && let std::task::Poll::Ready(done) = call.as_mut().poll(cx)
            {
                *output = Some(done);
            }
        }
        if calls.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(calls.iter_mut().filter_map(|(_, output)| output.take()).collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}
