//! Heads: read, refused, rewritten.

use bytes::BytesMut;

use super::*;
use crate::http::{Asked, Edit, Edits, Framing, Limits, Name, Refused, RequestHead, ResponseHead, Value, Version};

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, Refused> {
    RequestDecoder::new().decode(&mut BytesMut::from(bytes), &Limits::default())
}

fn accepted(bytes: &[u8]) -> RequestHead {
    request(bytes).unwrap_or_else(|refused| panic!("{refused}: {}", bytes.escape_ascii())).expect("a whole head")
}

fn response(bytes: &[u8], asked: Asked) -> Result<Option<ResponseHead>, Refused> {
    ResponseDecoder::new().decode(&mut BytesMut::from(bytes), asked, &Limits::default())
}

fn answered(bytes: &[u8]) -> ResponseHead {
    response(bytes, Asked::Other).expect("accepted").expect("a whole head")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn forwarded(bytes: &[u8], edits: &[&Edits]) -> String {
    let head = accepted(bytes);
    let mut out = BytesMut::new();
    write_request(&mut out, &head, edits, &ForwardRequest::unchanged(&head));
    text(&out)
}

fn passed_back(bytes: &[u8], asked: Asked, client: Version, edits: &[&Edits]) -> String {
    let head = response(bytes, asked).expect("accepted").expect("a whole head");
    let mut out = BytesMut::new();
    write_response(&mut out, &head, edits, &ForwardResponse::new(&head, client, true));
    text(&out)
}

fn edits<const N: usize>(edits: [Edit; N]) -> Edits {
    edits.into_iter().collect()
}

fn set(name: &'static str, value: &'static str) -> Edit {
    Edit::Set(Name::from_static(name), Value::from_static(value))
}

fn add(name: &'static str, value: &'static str) -> Edit {
    Edit::Add(Name::from_static(name), Value::from_static(value))
}

fn remove(name: &'static str) -> Edit {
    Edit::Remove(Name::from_static(name))
}

#[test]
fn a_request_is_read() {
    let mut buffer = BytesMut::from(
        &b"\r\nPOST /a%2fb/../c?x=1&y HTTP/1.1\r\nHost: catalog:80\r\nX-A: 1\r\nContent-Length: 4\r\nx-a:  2 \r\n\r\nbody"[..],
    );
    let head = RequestDecoder::new().decode(&mut buffer, &Limits::default()).expect("accepted").expect("whole");
    assert_eq!(&buffer[..], b"body");
    assert_eq!((head.method(), head.path(), head.query()), (&b"POST"[..], &b"/c"[..], Some(&b"x=1&y"[..])));
    assert_eq!((head.target(), head.authority()), (&b"/a%2fb/../c?x=1&y"[..], &b"catalog:80"[..]));
    assert_eq!((head.version(), head.framing(), head.keep_alive()), (Version::Http11, Framing::Length(4), true));
    assert_eq!(head.header("X-a").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(head.headers().count(), 4);
    assert_eq!((head.upgrade(), head.expect_continue(), head.asked()), (None, false, Asked::Other));
}

#[test]
fn forms_of_the_target() {
    for (line, path, query, authority) in [
        ("GET / HTTP/1.1", "/", None, "h"),
        ("GET /? HTTP/1.1", "/", Some(""), "h"),
        ("GET /a?b?c/../d HTTP/1.1", "/a", Some("b?c/../d"), "h"),
        ("OPTIONS * HTTP/1.1", "*", None, "h"),
        ("GET http://other:81/a HTTP/1.1", "/a", None, "other:81"),
        ("GET HTTP://other HTTP/1.1", "/", None, "other"),
        ("GET https://other?q HTTP/1.1", "/", Some("q"), "other"),
        ("OPTIONS http://other HTTP/1.1", "*", None, "other"),
        ("CONNECT other:443 HTTP/1.1", "", None, "other:443"),
    ] {
        let head = accepted(format!("{line}\r\nHost: h\r\n\r\n").as_bytes());
        assert_eq!(text(head.path()), path, "{line}");
        assert_eq!(head.query().map(text).as_deref(), query, "{line}");
        assert_eq!(text(head.authority()), authority, "{line}");
    }
}

#[test]
fn what_is_forwarded() {
    for (received, sent) in [
        // nothing to change: byte for byte
        ("GET /a?b HTTP/1.1\r\nHost: h\r\nX-Y:z  \r\n\r\n", "GET /a?b HTTP/1.1\r\nHost: h\r\nX-Y:z  \r\n\r\n"),
        (
            "POST / HTTP/1.1\r\nhost:h\r\ncontent-length:3\r\n\r\n",
            "POST / HTTP/1.1\r\nhost:h\r\ncontent-length:3\r\n\r\n",
        ),
        // the path is normal, the version ours
        ("GET //a/./b?c HTTP/1.0\r\nHost: h\r\n\r\n", "GET /a/b?c HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("GET /a HTTP/1.0\r\n\r\n", "GET /a HTTP/1.1\r\nhost: \r\n\r\n"),
        ("GET /a HTTP/1.0\r\nHost:\r\n\r\n", "GET /a HTTP/1.1\r\nhost: \r\n\r\n"),
        ("POST /a HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\n\r\n", "POST /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        // an absolute target overrides Host
        (
            "GET http://x:1/a HTTP/1.1\r\nA: b\r\nHost: h\r\nC: d\r\n\r\n",
            "GET /a HTTP/1.1\r\nhost: x:1\r\nA: b\r\nC: d\r\n\r\n",
        ),
        ("GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("OPTIONS http://x HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"),
        // hop-by-hop headers and what Connection nominates
        (
            "GET / HTTP/1.1\r\nConnection: close, X-Hop\r\nHost: h\r\nx-hop: 1\r\nA: b\r\nKeep-Alive: 5\r\nProxy-Connection: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: host, authorization, x-forwarded-for, b3\r\nAuthorization: a\r\nX-Forwarded-For: c\r\nb3: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: a\r\nX-Forwarded-For: c\r\nb3: 0\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nTE: gzip, Trailers\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nte: trailers\r\nconnection: te\r\n\r\n",
        ),
        ("GET / HTTP/1.1\r\nHost: h\r\nTE: gzip\r\nConnection: TE\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        // upgrades; never to h2c
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        ("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        // framing
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 007\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 7\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n",
        ),
        ("CONNECT x:443 HTTP/1.0\r\nHost: h\r\n\r\n", "CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n"),
    ] {
        assert_eq!(forwarded(received.as_bytes(), &[]), sent, "{received}");
    }
}

#[test]
fn the_caller_may_change_target_host_and_framing() {
    let head = accepted(b"POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX: y\r\n\r\n");
    let mut out = BytesMut::new();
    let how = ForwardRequest {
        framing: Framing::Chunked,
        upgrade: false,
        path_and_query: Some(b"/c?d"),
        authority: Some(b"other"),
    };
    write_request(&mut out, &head, &[], &how);
    assert_eq!(text(&out), "POST /c?d HTTP/1.1\r\nhost: other\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n");
    let how = ForwardRequest { path_and_query: None, ..how };
    out.clear();
    write_request(&mut out, &head, &[], &how);
    assert_eq!(text(&out), "POST /a?b HTTP/1.1\r\nhost: other\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n");
}

#[test]
fn headers_are_edited() {
    const RECEIVED: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nB: c\r\nx-a: 2\t\r\nX-Empty:\r\n\r\n";
    for (list, sent) in [
        (edits([set("x-a", "3")]), "Host: h\r\nB: c\r\nX-Empty:\r\nx-a: 3\r\n"),
        (edits([set("x-new", "3")]), "Host: h\r\nX-A: 1\r\nB: c\r\nx-a: 2\t\r\nX-Empty:\r\nx-new: 3\r\n"),
        (edits([add("x-a", "3"), add("x-a", "4")]), "Host: h\r\nX-A: 1\r\nB: c\r\nx-a: 2,3,4\r\nX-Empty:\r\n"),
        (
            edits([add("x-new", "3"), add("x-new", "4")]),
            "Host: h\r\nX-A: 1\r\nB: c\r\nx-a: 2\t\r\nX-Empty:\r\nx-new: 3,4\r\n",
        ),
        (edits([add("x-empty", "3")]), "Host: h\r\nX-A: 1\r\nB: c\r\nx-a: 2\t\r\nX-Empty:3\r\n"),
        (edits([remove("x-a")]), "Host: h\r\nB: c\r\nX-Empty:\r\n"),
        (edits([remove("x-a"), remove("b"), add("x-a", "5")]), "Host: h\r\nX-Empty:\r\nx-a: 5\r\n"),
        (edits([remove("x-nowhere")]), "Host: h\r\nX-A: 1\r\nB: c\r\nx-a: 2\t\r\nX-Empty:\r\n"),
    ] {
        assert_eq!(forwarded(RECEIVED, &[&list]), format!("GET / HTTP/1.1\r\n{sent}\r\n"), "{list:?}");
    }
    let (one, two) = (edits([set("x-a", "3"), remove("b")]), edits([add("x-a", "4"), set("b", "d")]));
    assert_eq!(forwarded(RECEIVED, &[&one, &two]), "GET / HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nx-a: 3,4\r\nb: d\r\n\r\n");
    let nominated = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x-a\r\nX-A: 1\r\n\r\n";
    assert_eq!(forwarded(nominated, &[&edits([add("x-a", "2")])]), "GET / HTTP/1.1\r\nHost: h\r\nx-a: 2\r\n\r\n");
    let cookies = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        passed_back(
            cookies,
            Asked::Other,
            Version::Http11,
            &[&edits([add("set-cookie", "b=2"), add("set-cookie", "c=3")])]
        ),
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\nset-cookie: b=2\r\nset-cookie: c=3\r\n\r\n"
    );
}

#[test]
fn keep_alive_follows_version_and_wish() {
    for (version, header, keep) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: a, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = accepted(format!("GET / HTTP/{version}\r\nHost: h\r\n{header}\r\n").as_bytes());
        assert_eq!(head.keep_alive(), keep, "{version} {header}");
        let head = answered(format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{header}\r\n").as_bytes());
        assert_eq!(head.keep_alive(), keep, "{version} {header}");
    }
}

#[test]
fn responses_are_read() {
    use Framing::{Chunked, Length, None, UntilClose};
    for (head, asked, framing, keep) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Asked::Other, Length(5), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Asked::Head, None, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Asked::Other, Chunked, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Asked::Head, None, true),
        ("HTTP/1.1 200 OK\r\nA: b", Asked::Other, UntilClose, false),
        ("HTTP/1.1 200 OK\r\nA: b", Asked::Head, None, true),
        ("HTTP/1.0 200 OK\r\nA: b", Asked::Other, UntilClose, false),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5", Asked::Other, None, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", Asked::Other, None, true),
        ("HTTP/1.1 100 Continue\r\nA: b", Asked::Other, None, true),
        ("HTTP/1.1 103 Early Hints\r\nLink: b", Asked::Other, None, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Asked::Connect, None, true),
        ("HTTP/1.1 407 No\r\nContent-Length: 5", Asked::Connect, Length(5), true),
        ("HTTP/1.1 200\r\nContent-Length: 0", Asked::Other, Length(0), true),
    ] {
        let read = response(format!("{head}\r\n\r\n").as_bytes(), asked).expect("accepted").expect("whole");
        assert_eq!((read.framing(), read.keep_alive()), (framing, keep), "{head} {asked:?}");
    }
    let head = answered(b"HTTP/1.1 404 Not F\xf6und, really\r\nA: b\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((head.status(), head.reason()), (404, &b"Not F\xf6und, really"[..]));
    assert!(!head.is_interim() && answered(b"HTTP/1.1 103 \r\n\r\n").is_interim());
    let head = answered(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    assert_eq!((head.upgrade(), head.is_interim()), (Some(&b"websocket"[..]), false));
}

#[test]
fn what_is_passed_back() {
    use Asked::{Head, Other};
    use Version::{Http10, Http11};
    for (received, asked, client, sent) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b",
            Other,
            Http11,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n",
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5", Other, Http11, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5",
            Other,
            Http10,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nconnection: keep-alive\r\n",
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Other, Http10, "HTTP/1.1 200 OK\r\nconnection: close\r\n"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
            Head,
            Http10,
            "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n",
        ),
        ("HTTP/1.1 200 OK\r\nA: b", Other, Http11, "HTTP/1.1 200 OK\r\nA: b\r\nconnection: close\r\n"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close",
            Head,
            Http11,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        ),
        ("HTTP/1.1 204 No\r\nContent-Length: 5\r\nA: b", Other, Http11, "HTTP/1.1 204 No\r\nA: b\r\n"),
        (
            "HTTP/1.1 304 No\r\nContent-Length: 5\r\nA: b",
            Other,
            Http11,
            "HTTP/1.1 304 No\r\nContent-Length: 5\r\nA: b\r\n",
        ),
        ("HTTP/1.1 100 Continue\r\nA: b", Other, Http11, "HTTP/1.1 100 Continue\r\nA: b\r\n"),
        (
            "HTTP/1.1 101 Sw\r\nUpgrade: websocket\r\nConnection: upgrade",
            Other,
            Http11,
            "HTTP/1.1 101 Sw\r\nupgrade: websocket\r\nconnection: upgrade\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, x\r\nX: y",
            Other,
            Http11,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        ),
    ] {
        assert_eq!(
            passed_back(format!("{received}\r\n\r\n").as_bytes(), asked, client, &[]),
            format!("{sent}\r\n"),
            "{received}"
        );
    }
}

#[test]
fn responses_that_are_refused() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n",
        "HTTP/1.1 099 No\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
    ] {
        let refused = response(head.as_bytes(), Asked::Other).expect_err(head);
        assert_eq!(refused.status, 502, "{head}");
    }
}

#[test]
fn local_responses() {
    let mut out = BytesMut::new();
    let response = LocalResponse {
        status: 503,
        headers: &[("x-weir-reason", b"no endpoint"), ("bad name", b"x"), ("x-bad", b"a\r\nb: c")],
        body: b"no endpoint\n",
        keep_alive: false,
        client: Version::Http11,
        asked: Asked::Other,
    };
    write_local_response(&mut out, &response);
    let head = "HTTP/1.1 503 Service Unavailable\r\nx-weir-reason: no endpoint\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 12\r\n";
    assert_eq!(text(&out), format!("{head}connection: close\r\n\r\nno endpoint\n"));
    out.clear();
    write_local_response(&mut out, &LocalResponse { asked: Asked::Head, keep_alive: true, ..response });
    assert_eq!(text(&out), format!("{head}\r\n"));
}

#[test]
fn limits_are_held_whole_or_in_pieces() {
    let long = |target: usize, header: usize, headers: usize| {
        format!(
            "GET /{} HTTP/1.1\r\nHost: h\r\nX-Long: {}\r\n{}\r\n",
            "a".repeat(target),
            "b".repeat(header),
            "c: d\r\n".repeat(headers)
        )
        .into_bytes()
    };
    for (bytes, status) in [
        (long(16_383, 0, 0), 0),
        (long(16_384, 0, 0), 414),
        (long(16_500, 0, 0), 414),
        (long(70_000, 0, 0), 414),
        (long(0, 65_000, 0), 0),
        (long(0, 65_600, 0), 431),
        (long(0, 0, 98), 0),
        (long(0, 0, 99), 431),
        (long(0, 0, 9_000), 431),
    ] {
        let whole = request(&bytes).map(|head| head.is_some());
        assert_eq!(whole.map_or_else(|refused| refused.status, |_| 0), status, "{} bytes", bytes.len());
        for step in [1, 7, 4096] {
            let (mut decoder, mut buffer) = (RequestDecoder::new(), BytesMut::new());
            let mut pieces = bytes.chunks(step);
            let in_pieces = loop {
                buffer.extend_from_slice(pieces.next().unwrap_or_default());
                match decoder.decode(&mut buffer, &Limits::default()) {
                    Ok(None) => {}
                    other => break other.map(|head| head.is_some()),
                }
            };
            assert_eq!(in_pieces, whole, "{} bytes in pieces of {step}", bytes.len());
        }
    }
}

#[test]
fn chunk_sizes() {
    let mut out = BytesMut::new();
    for (len, text) in [(1, "1"), (9, "9"), (10, "a"), (255, "ff"), (256, "100"), (usize::MAX, "ffffffffffffffff")] {
        out.clear();
        write_chunk_size(&mut out, len);
        assert_eq!(out, format!("{text}\r\n").as_bytes());
    }
}

#[test]
fn heads_stay_small() {
    assert!(size_of::<RequestHead>() <= 448, "{}", size_of::<RequestHead>());
    assert!(size_of::<ResponseHead>() <= 368, "{}", size_of::<ResponseHead>());
}
