//! HTTP between an application and another, through both proxies: what is refused, and what arrives as it was sent.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::json;
use weir_tests::{App, Client, Flow, Pod, PodSpec, World, app::Request, at, is_root, until};

/// A client, a server, and a stranger outside of the mesh; the Service's port is declared as HTTP.
struct Pair {
    client: Pod,
    stranger: Pod,
    server: Pod,
    app: App,
    service: SocketAddr,
    _world: World,
}

impl Pair {
    fn new(name: &str, answer: impl Fn(&Request, &mut TcpStream) -> io::Result<Flow> + Send + Sync + 'static) -> Self {
        Self::with(name, |server| App::http(&server.netns, 8080, answer))
    }

    fn with(name: &str, app: impl FnOnce(&Pod) -> App) -> Self {
        let world = World::new(name);
        let server = world.pod(PodSpec::new("server").port("http", 8080));
        let app = app(&server);
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        until("the server knows its port", || server.admin("/config_dump").contains("\"http\"").then_some(()));
        Self { client, stranger, server, app, service, _world: world }
    }

    /// A connection of the client through both proxies, and one of the stranger through the server's alone.
    fn ways(&self) -> [(&'static str, Client); 2] {
        [
            ("through both", self.client.connect(self.service)),
            ("from outside", self.stranger.connect(at(self.server.ip, 8080))),
        ]
    }

    fn received(&self) -> String {
        String::from_utf8_lossy(&self.app.bytes.lock().unwrap()).into_owned()
    }
}

fn ok(stream: &mut TcpStream, body: &str) -> io::Result<Flow> {
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    Ok(Flow::Keep)
}

#[test]
fn ambiguous_and_oversized_requests_end_at_the_first_proxy() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("strict", |_, stream| ok(stream, ""));
    let long = "a".repeat(70_000);
    let megabyte = "a".repeat(1_000_000);
    let many: String = (0..200).map(|n| format!("x-{n}: evil\r\n")).collect();
    let cases: Vec<(&str, String, u16)> = vec![
        (
            "both lengths",
            "POST /evil HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        (
            "two lengths",
            "POST /evil HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nevil".into(),
            400,
        ),
        ("a length with a sign", "POST /evil HTTP/1.1\r\nhost: x\r\ncontent-length: +4\r\n\r\nevil".into(), 400),
        ("bare line feeds", "GET /evil HTTP/1.1\nhost: x\n\n".into(), 400),
        ("a bare line feed in a header", "GET /evil HTTP/1.1\r\nhost: x\r\na: b\nc: evil\r\n\r\n".into(), 400),
        ("a space before the colon", "GET /evil HTTP/1.1\r\nhost: x\r\ncontent-length : 4\r\n\r\nevil".into(), 400),
        ("a folded header", "GET /evil HTTP/1.1\r\nhost: x\r\na: b\r\n evil: c\r\n\r\n".into(), 400),
        ("no host", "GET /evil HTTP/1.1\r\n\r\n".into(), 400),
        ("two hosts", "GET /evil HTTP/1.1\r\nhost: x\r\nhost: evil\r\n\r\n".into(), 400),
        ("a null byte", "GET /evil HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n".into(), 400),
        ("no HTTP", "GET /evil HTTP/1.1 and more\r\nhost: x\r\n\r\n".into(), 400),
        (
            "another coding",
            "POST /evil HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        (
            "a chunk that is none",
            "POST /evil HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nevil\r\n".into(),
            400,
        ),
        ("a long header", format!("GET /evil HTTP/1.1\r\nhost: x\r\na: {long}\r\n\r\n"), 431),
        ("a megabyte of header", format!("GET /evil HTTP/1.1\r\nhost: x\r\na: {megabyte}\r\n\r\n"), 431),
        ("many headers", format!("GET /evil HTTP/1.1\r\nhost: x\r\n{many}\r\n"), 431),
        ("a long target", format!("GET /evil{} HTTP/1.1\r\nhost: x\r\n\r\n", &long[..20_000]), 414),
    ];
    for (what, request, status) in &cases {
        for (way, mut connection) in pair.ways() {
            let more = format!("{request}GET /evil-too HTTP/1.1\r\nhost: x\r\n\r\n");
            // The proxy may have answered and closed before the last byte was sent.
            let _ = connection.send(more.as_bytes());
            let response = connection.response().unwrap_or_else(|error| panic!("{what}, {way}: {error}"));
            // A coding that is not known is 501 in RFC 9112; all else is as listed.
            assert!(
                response.status == *status || *what == "another coding" && response.status == 501,
                "{what}, {way}: {response:?}"
            );
            assert!(response.closes(), "{what}, {way}: {response:?}");
            assert!(connection.is_closed(), "{what}, {way}: another answer came");
        }
    }
    assert!(!pair.received().contains("evil"), "{}", pair.received());
    // A chunk that turns bad behind a good one: what was good is on its way already, but the application never sees an end.
    for (way, mut connection) in pair.ways() {
        connection.send(b"POST /begun HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\ngood\r\n").unwrap();
        until("the first chunk arrives", || pair.received().contains("good").then_some(()));
        connection.send(b"2\nevil\r\n0\r\n\r\n").unwrap();
        let response = connection.response().unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!((response.status, response.closes()), (400, true), "{way}: {response:?}");
        pair.app.bytes.lock().unwrap().clear();
    }
    assert!(!pair.app.requests.lock().unwrap().iter().any(|request| request.path != "/ok"), "a request was completed");
    assert!(!pair.received().contains("evil"), "{}", pair.received());
    for (_, mut connection) in pair.ways() {
        assert_eq!(connection.get("/ok").status, 200);
    }
    let labels: &[(&str, &str)] = &[("response_code", "400"), ("response_flags", "DPE")];
    assert!(pair.client.metric("istio_requests_total", labels) >= 10.0);
    pair.client.logged("why", |line| line["response_code"] == 400 && !line["reason"].is_null());
}

#[test]
fn a_client_that_sends_its_head_byte_by_byte_is_told_after_ten_seconds() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("slow", |_, stream| ok(stream, ""));
    std::thread::scope(|scope| {
        for (way, mut connection) in pair.ways() {
            scope.spawn(move || {
                let start = Instant::now();
                connection.patience(Duration::from_millis(200));
                connection.send(b"GET / HTTP/1.1\r\nhost: x\r\na: ").unwrap();
                let response = loop {
                    let _ = connection.send(b"b");
                    match connection.response() {
                        Ok(response) => break response,
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{way}: {error}"),
                    }
                    assert!(start.elapsed() < Duration::from_secs(20), "{way}: still waiting");
                };
                assert_eq!((response.status, response.closes()), (408, true), "{way}: {response:?}");
                assert!(start.elapsed() > Duration::from_secs(9), "{way}: {:?}", start.elapsed());
            });
        }
        // Meanwhile everybody else is served.
        for (_, mut connection) in pair.ways() {
            assert_eq!(connection.get("/").status, 200);
        }
    });
    assert_eq!(pair.app.count(), 2);
}

#[test]
fn every_form_of_a_message_arrives_as_it_was_sent() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("forms", |request, stream| {
        let body = format!("{} {} {}", request.method(), request.path, request.body.len());
        match request.path.as_str() {
            "/204" => stream.write_all(b"HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n")?,
            "/304" => stream.write_all(b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 77\r\n\r\n")?,
            "/chunked" => stream.write_all(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nx-sum: 11\r\n\r\n",
            )?,
            "/close" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")?;
                return Ok(Flow::Close);
            }
            "/old" => {
                stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold")?;
                return Ok(Flow::Close);
            }
            "/head" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")?,
            "/hints" => {
                stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")?;
                return ok(stream, "after hints");
            }
            "/folded" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd")?;
                return Ok(Flow::Close);
            }
            _ => return ok(stream, &body),
        }
        Ok(Flow::Keep)
    });
    for (way, mut connection) in pair.ways() {
        let app = &pair.app;
        // Three requests in one packet, answered in their order.
        connection
            .send(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nPOST /2 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        for want in ["GET /1 0", "POST /2 3", "GET /3 0"] {
            assert_eq!(connection.response().unwrap().text(), want, "{way}");
        }
        let response = connection.ask("HEAD /head HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!((response.status, response.header("content-length")), (200, Some("1000")), "{way}");
        for status in [204, 304] {
            assert_eq!(connection.get(&format!("/{status}")).status, status, "{way}");
        }
        let response = connection.get("/chunked");
        assert_eq!((response.text().as_str(), response.trailers.trim()), ("hello world", "x-sum: 11"), "{way}");
        let chunked = "POST /up HTTP/1.1\r\nhost: x\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n\
                       3\r\nabc\r\n2\r\nde\r\n0\r\nx-checked: yes\r\n\r\n";
        assert_eq!(connection.ask(chunked).unwrap().text(), "POST /up 5", "{way}");
        assert_eq!(app.last().unwrap().trailers.trim(), "x-checked: yes", "{way}");
        let response = connection.ask("GET /hints HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!((response.status, response.header("link")), (103, Some("</a>")), "{way}: {response:?}");
        assert_eq!(response.text(), "", "{way}");
        assert_eq!(connection.response().unwrap().text(), "after hints", "{way}");
        assert_eq!(connection.get("/last").text(), "GET /last 0", "{way}");
    }
    for (path, text) in [("/close", "until the end"), ("/old", "old")] {
        for (way, mut connection) in pair.ways() {
            let response = connection.get(path);
            assert_eq!((response.status, response.text().as_str()), (200, text), "{way}");
        }
    }
    for (way, mut connection) in pair.ways() {
        // An ambiguous answer is as bad as an ambiguous request.
        assert_eq!(connection.get("/folded").status, 502, "{way}");
    }
    for (way, mut connection) in pair.ways() {
        connection.send(b"GET /chunked HTTP/1.0\r\n\r\n").unwrap();
        let response = connection.response().unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!((response.status, response.text().as_str()), (200, "hello world"), "{way}: {response:?}");
        assert_eq!(response.header("transfer-encoding"), None, "{way}: HTTP/1.0 knows no chunks");
        assert!(connection.is_closed(), "{way}");
    }
    for (way, mut connection) in pair.ways() {
        let response = connection.ask("GET /kept HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "GET /kept 0"), "{way}: {response:?}");
        assert!(!response.closes(), "{way}");
        assert_eq!(connection.ask("GET /again HTTP/1.0\r\n\r\n").unwrap().status, 200, "{way}");
    }
}

#[test]
fn upgrades_early_answers_and_uploads_with_expectation() {
    if !is_root() {
        return;
    }
    let pair = Pair::with("streams", |server| {
        App::raw(&server.netns, 8080, |mut stream| {
            let mut client = Client::new(stream.try_clone().unwrap());
            let Ok(head) = client.head() else { return };
            if head.contains("/upgrade") {
                let _ = stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\nhi ");
                while let Ok(byte) = client.exactly(1) {
                    let _ = stream.write_all(&byte);
                }
                let _ = stream.write_all(b" bye");
            } else if head.contains("/early") {
                // Nothing of the body is read.
                let _ =
                    stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!");
                std::thread::sleep(Duration::from_millis(300));
            } else if head.contains("/half") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this");
            }
        })
    });
    for (way, mut connection) in pair.ways() {
        connection.send(b"GET /upgrade HTTP/1.1\r\nhost: x\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n").unwrap();
        let head = connection.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: echo"), "{way}: {head}");
        assert_eq!(connection.exactly(3).unwrap(), b"hi ", "{way}");
        for word in [&b"one"[..], b"two", &[0, 255, 13, 10]] {
            connection.send(word).unwrap();
            assert_eq!(connection.exactly(word.len()).unwrap(), word, "{way}");
        }
        connection.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(connection.rest().unwrap(), b" bye", "{way}: the other direction went on");
    }
    for (way, mut connection) in pair.ways() {
        connection.send(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n").unwrap();
        let mut sender = connection.stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            let part = vec![b'x'; 64 * 1024];
            while sender.write_all(&part).is_ok() {}
        });
        let response = connection.response().unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!((response.status, response.text().as_str()), (413, "no!"), "{way}");
        drop(connection);
        sending.join().unwrap();
    }
    for (way, mut connection) in pair.ways() {
        connection.send(b"GET /half HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let answer = connection.response();
        assert!(answer.is_err(), "{way}: a cut answer looked whole: {answer:?}");
    }
}

#[test]
fn curl_uploads_with_an_expectation() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("expect", |request, stream| ok(stream, &request.body.len().to_string()));
    let url = format!("http://{}/up", pair.service);
    let file = std::env::temp_dir().join(format!("weir-upload-{}", std::process::id()));
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let output = pair
        .client
        .netns
        .command("curl")
        .args([
            "-sS",
            "--max-time",
            "20",
            "-H",
            "Expect: 100-continue",
            "--expect100-timeout",
            "15",
            "-w",
            " %{http_code} %{time_total}",
        ])
        .args(["-T", file.to_str().unwrap(), &url])
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("3000000 200 "), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let seconds: f64 = text.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(seconds < 10.0, "the interim answer did not come: {seconds} s");
    assert!(pair.received().contains("xpect: 100-continue"));
}

#[test]
fn request_ids_are_made_once_and_trace_headers_pass_unchanged() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("ids", |request, stream| ok(stream, &request.head));
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n\
                 b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1\r\nx-b3-traceid: 80f198ee56343ba8\r\n";
    let mut connection = pair.client.connect(pair.service);
    let sent = connection.ask(&format!("GET /made HTTP/1.1\r\nhost: x\r\n{trace}\r\n")).unwrap().text();
    assert!(sent.contains(trace.trim_end()), "{sent}");
    let id = weir_tests::http::header(&sent, "x-request-id").unwrap().to_owned();
    assert_eq!(sent.matches("x-request-id").count(), 1, "{sent}");
    for pod in [&pair.client, &pair.server] {
        let line = pod.logged("the request", |line| line["path"] == "/made");
        assert_eq!(line["request_id"], id.as_str(), "{line}");
        assert_eq!(line["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "{line}");
    }
    let sent = connection.ask("GET /given HTTP/1.1\r\nhost: x\r\nX-Request-Id: mine\r\n\r\n").unwrap().text();
    assert_eq!(weir_tests::http::header(&sent, "x-request-id"), Some("mine"), "{sent}");
    for pod in [&pair.client, &pair.server] {
        assert_eq!(pod.logged("the request", |line| line["path"] == "/given")["request_id"], "mine");
    }
    // Hop-by-hop headers end at each hop, and nobody adds what nobody asked for.
    let sent = connection
        .ask("GET /hop HTTP/1.1\r\nhost: x\r\nconnection: x-mine\r\nx-mine: 1\r\nkeep-alive: 5\r\n\r\n")
        .unwrap()
        .text();
    assert!(!sent.contains("x-mine") && !sent.contains("keep-alive"), "{sent}");
    let mut bytes = [0; 1];
    connection.patience(Duration::from_millis(50));
    assert!(connection.stream.read(&mut bytes).is_err(), "something came behind the answer");
}
