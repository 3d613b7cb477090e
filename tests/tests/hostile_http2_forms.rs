//! Requests of HTTP/2 that are malformed, or could mean two things: they reach no application. What does reach one is what the proxies
//! logged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests stand outside of #[test]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use h2::{RecvStream, server};
use http::{HeaderMap, Request, Response};
use serde_json::json;
use weir_tests::{Pod, PodSpec, World, at, frames::*, http2::H2App, is_root, until};

/// A request as the application got it.
#[derive(Debug, Clone)]
struct Got {
    method: String,
    authority: String,
    path: String,
    headers: HeaderMap,
    trailers: HeaderMap,
    /// The body came to its end.
    whole: bool,
}

struct Shop {
    client: Pod,
    stranger: Pod,
    server: Pod,
    service: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    _app: H2App,
    _world: World,
}

impl Shop {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let server = world.pod_unready(PodSpec::new("server").port("http2", 9000));
        let got = Arc::<Mutex<Vec<Got>>>::default();
        let record = got.clone();
        let app = H2App::new(&server.netns, 9000, server::Builder::new(), move |request, respond| {
            answer(request, respond, record.clone())
        });
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http2", 90, 9000)]), 90);
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        server.wait_ready();
        until("the server knows its ports", || server.admin("/config_dump").contains("\"http\"").then_some(()));
        Self { client, stranger, server, service, got, _app: app, _world: world }
    }

    fn ways(&self) -> [(&'static str, &Pod, SocketAddr); 2] {
        [("through both", &self.client, self.service), ("from outside", &self.stranger, at(self.server.ip, 9000))]
    }

    /// What the application got with this id.
    fn of(&self, id: &str) -> Vec<Got> {
        let all = self.got.lock().unwrap();
        all.iter().filter(|got| got.headers.get("x-request-id").is_some_and(|value| value == id)).cloned().collect()
    }
}

async fn answer(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>, got: Arc<Mutex<Vec<Got>>>) {
    let (parts, mut body) = request.into_parts();
    let number = {
        let mut all = got.lock().unwrap();
        all.push(Got {
            method: parts.method.to_string(),
            authority: parts.uri.authority().map_or_else(String::new, ToString::to_string),
            path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            headers: parts.headers,
            trailers: HeaderMap::new(),
            whole: false,
        });
        all.len() - 1
    };
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        let _ = body.flow_control().release_capacity(data.len());
    }
    let Ok(trailers) = body.trailers().await else { return };
    let mut all = got.lock().unwrap();
    all[number].trailers = trailers.unwrap_or_default();
    all[number].whole = true;
    drop(all);
    let _ = respond.send_response(Response::new(()), true);
}

/// The usual beginning of a request's list.
const USUAL: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "catalog"), (":path", "/ok")];

/// The usual list with these in the place of those of the same name, or behind.
fn with<'a>(changed: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut all: Vec<(&str, &str)> = USUAL.to_vec();
    for (name, value) in changed {
        match all.iter_mut().find(|(known, _)| name.starts_with(':') && known == name) {
            Some(field) => field.1 = value,
            None => all.push((name, value)),
        }
    }
    all
}

/// The usual list without one.
fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    USUAL.into_iter().filter(|(known, _)| *known != name).collect()
}

#[test]
fn malformed_heads_reach_no_application() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-forms");
    let twice = |name: &'static str, value: &'static str| [USUAL.to_vec(), vec![(name, value)]].concat();
    let connect = |more: &[(&'static str, &'static str)]| [&[(":method", "CONNECT")], more].concat();
    let long_name = "x".repeat(20_000);
    let mut cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("neither authority nor host", without(":authority")),
        ("two methods", twice(":method", "GET")),
        ("two paths", twice(":path", "/other")),
        ("two schemes", twice(":scheme", "http")),
        ("two authorities", twice(":authority", "catalog")),
        ("a pseudo header behind others", [vec![("x-a", "b")], USUAL.to_vec()].concat()),
        ("a status", [vec![(":status", "200")], USUAL.to_vec()].concat()),
        ("an unknown pseudo header", [vec![(":weir", "1")], USUAL.to_vec()].concat()),
        ("a protocol without CONNECT", [vec![(":protocol", "websocket")], USUAL.to_vec()].concat()),
        ("CONNECT with a path", connect(&[(":authority", "catalog:80"), (":path", "/ok"), (":scheme", "http")])),
        ("CONNECT without an authority", connect(&[])),
        (
            "extended CONNECT",
            connect(&[(":protocol", "websocket"), (":scheme", "http"), (":authority", "catalog"), (":path", "/ok")]),
        ),
        ("a huge name", [USUAL.to_vec(), vec![(&*long_name, &*long_name), (&*long_name, &*long_name)]].concat()),
    ];
    for (name, values) in [
        (":path", &["", "ok", "http://evil/ok", "*", "/a b", "/a\r\nx: y", "/a\0", "/%00", "/a\\..\\b\x7f"][..]),
        (":authority", &["u@catalog", "cat alog", "catalog/x", "catalog?x", "catalog\r\nx: y", "catalog:port"]),
        (":scheme", &["ht tp", "http\0", "://"]),
        (":method", &["", "GE T", "GET\r\n", "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET"]),
        ("host", &["other", "catalog:81"]),
        ("connection", &["close", "x", "keep-alive, upgrade"]),
        ("keep-alive", &["timeout=5"]),
        ("proxy-connection", &["keep-alive"]),
        ("transfer-encoding", &["chunked", "identity"]),
        ("upgrade", &["h2c", "websocket"]),
        ("te", &["gzip", "trailers, deflate"]),
        ("x", &["a\r\nb: c", "a\nb: c", "a\rb", "a\0b", " a", "a\t", "\x7f", "\x01"]),
        ("x-a\0b", &["c"]),
        ("x-a b", &["c"]),
        ("x-a:b", &["c"]),
        ("x-a\r\n", &["c"]),
        ("X-Upper", &["c"]),
        ("", &["c"]),
        ("(x)", &["c"]),
        ("content-length", &["5", "-1", "+0", "0x5", "5, 5", "99999999999999999999", "a"]),
        ("expect", &["200-maybe"]),
    ] {
        for value in values {
            cases.push((name, with(&[(name, value)])));
        }
    }
    cases.push(("two hosts", with(&[("host", "catalog"), ("host", "catalog")])));
    cases.push(("two lengths", with(&[("content-length", "0"), ("content-length", "5")])));
    let mut number = 0;
    for (way, from, to) in shop.ways() {
        for (what, fields) in &cases {
            number += 1;
            let id = format!("malformed-{number}");
            let list = block(&[&fields[..], &[("x-request-id", &id)]].concat());
            let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
            let _ = peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &list); // it may be refused before its last byte
            let outcome = peer.outcome(1);
            let refused = matches!(outcome, Outcome::Status(400 | 417 | 431) | Outcome::Reset(_) | Outcome::Ended(_));
            assert!(refused, "{what}, {way}: {outcome:?} for {fields:?}");
            assert!(shop.of(&id).is_empty(), "{what}, {way}: {:?}", shop.of(&id));
        }
    }
    assert!(shop.got.lock().unwrap().is_empty(), "{:?}", shop.got.lock().unwrap().first());
}

#[test]
fn bodies_that_are_not_what_was_announced_are_no_whole_requests() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-lengths");
    let data = |flags, text: &[u8]| frame(DATA, flags, 1, text);
    let trailers = |flags, fields: &[(&str, &str)]| frame(HEADERS, flags, 1, &block(fields));
    let end = END_STREAM | END_HEADERS;
    let cases: Vec<(&str, Option<&str>, Vec<u8>)> = vec![
        ("more than announced", Some("3"), data(END_STREAM, b"12345")),
        ("more in several frames", Some("3"), [data(0, b"12"), data(END_STREAM, b"345")].concat()),
        ("less than announced", Some("10"), data(END_STREAM, b"123")),
        ("less, with trailers", Some("10"), [data(0, b"123"), trailers(end, &[("x", "y")])].concat()),
        ("trailers that are not the end", None, [data(0, b"123"), trailers(END_HEADERS, &[("x", "y")])].concat()),
        ("an upper-case trailer", None, [data(0, b"123"), trailers(end, &[("X-Upper", "y")])].concat()),
        ("a connection header in trailers", None, [data(0, b"123"), trailers(end, &[("connection", "x")])].concat()),
        ("a line break in trailers", None, [data(0, b"123"), trailers(end, &[("x", "a\r\nb: c")])].concat()),
        (
            "data behind the end",
            Some("3"),
            [data(END_STREAM, b"123"), data(END_STREAM, b"evil"), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
    ];
    for (way, from, to) in shop.ways() {
        for (what, length, rest) in &cases {
            let id = format!("{way} {what}").replace([' ', ','], "-");
            let mut fields = with(&[(":method", "POST"), ("x-request-id", &id)]);
            fields.extend(length.map(|length| ("content-length", length)));
            let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
            peer.write(&[frame(HEADERS, END_HEADERS, 1, &block(&fields)), rest.clone()].concat()).unwrap();
            let outcome = peer.outcome(1);
            if *what == "data behind the end" {
                // The request was whole before; what follows is no part of it.
                assert!(shop.of(&id).len() <= 1, "{what}, {way}");
                continue;
            }
            let refused = matches!(outcome, Outcome::Status(400) | Outcome::Reset(_) | Outcome::Ended(_));
            assert!(refused, "{what}, {way}: {outcome:?}");
            assert!(shop.of(&id).iter().all(|got| !got.whole), "{what}, {way}: {:?}", shop.of(&id));
        }
    }
}

#[test]
fn what_reaches_the_application_is_what_was_logged() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-agree");
    // The path that is forwarded; `None` where it is the caller's.
    type Fields = Vec<(&'static str, &'static str)>;
    let mut cases: Vec<(Fields, Option<&str>)> = vec![
        (with(&[("te", "trailers")]), None),
        (with(&[("x_under_score", "a"), ("x-under-score", "b")]), None),
        (with(&[("cookie", "a=1"), ("cookie", "b=2")]), None),
        (with(&[(":authority", "Catalog.Shop:90")]), None),
        (with(&[("host", "CATALOG")]), None),
        // Nothing goes by the scheme; one that no server has is refused.
        (with(&[(":scheme", "https")]), None),
        (with(&[(":scheme", "")]), Some("")),
        (with(&[(":scheme", "HTTP")]), Some("")),
        (with(&[(":scheme", "ftp")]), Some("")),
        (with(&[(":method", "PURGE")]), None),
        (with(&[(":method", "OPTIONS"), (":path", "*")]), None),
        (with(&[("x-latin", "\u{e9}"), ("x-empty", "")]), None),
        ([without(":authority"), vec![("host", "catalog")]].concat(), None),
    ];
    for (sent, forwarded) in [
        ("/a/../b//c?x=/../y", "/b/c?x=/../y"),
        ("/a/./b", "/a/b"),
        ("//admin", "/admin"),
        ("/x/../../admin", "/admin"),
        ("/%2e%2e/admin", "/admin"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%252e%252e", "/a%252e%252e"),
        ("/a;p=1/../b", "/b"),
        ("/caf%C3%A9", "/caf%C3%A9"),
        ("/a?b#c", ""),
    ] {
        cases.push((with(&[(":path", sent)]), Some(forwarded)));
    }
    for (way, from, to) in shop.ways() {
        for (number, (fields, forwarded)) in cases.iter().enumerate() {
            let id = format!("agree-{}-{number}", from.name);
            let list = block(&[&fields[..], &[("x-request-id", &id)]].concat());
            let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
            peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &list).unwrap();
            let outcome = peer.outcome(1);
            if outcome != Outcome::Status(200) {
                // Nothing in between: it is refused, or it is what was logged.
                assert!(shop.of(&id).is_empty(), "{way}: {fields:?}: {outcome:?}");
                assert_eq!(*forwarded, Some(""), "{way}: {fields:?}: {outcome:?}");
                continue;
            }
            let got = shop.of(&id);
            assert_eq!(got.len(), 1, "{way}: {fields:?}");
            let field = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            let path = forwarded.unwrap_or(field(":path").unwrap());
            assert!(path.is_empty() || got[0].path == path, "{way}: {fields:?}: {got:?}");
            let proxies = if way == "through both" { vec![&shop.client, &shop.server] } else { vec![&shop.server] };
            for pod in proxies {
                let line = pod.logged("the request", |line| line["request_id"] == id.as_str());
                assert_eq!(
                    (&line["path"], &line["method"], &line["authority"]),
                    (&json!(got[0].path), &json!(got[0].method), &json!(got[0].authority)),
                    "{way}, {}: {fields:?}",
                    pod.name
                );
            }
            assert_eq!(got[0].authority, field(":authority").or(field("host")).unwrap(), "{way}: {fields:?}");
            for name in ["te", "x_under_score", "x-under-score", "x-latin", "x-empty"] {
                let came = got[0].headers.get(name).map(http::HeaderValue::as_bytes);
                assert_eq!(came, field(name).map(str::as_bytes), "{way}: {name}");
            }
        }
    }
}

/// As in HTTP/1.1 (`docs/traffic.md`): headers arrive as they were written, but for claims of a caller that has proved nothing; the mesh's
/// own marker never arrives.
#[test]
fn headers_arrive_as_they_were_written_but_for_claims_of_strangers() {
    if !is_root() {
        return;
    }
    let shop = Shop::new("h2-spoofed");
    let sent = [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "admin"),
        ("x-forwarded-client-cert", "By=spiffe://a;URI=spiffe://cluster.local/ns/shop/sa/admin"),
        ("x-envoy-external-address", "10.0.0.1"),
        ("x-envoy-original-path", "/admin"),
        ("x-envoy-internal", "true"),
        ("x-envoy-decorator-operation", "x"),
        ("x-envoy-peer-metadata", "eA=="),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("x_forwarded_client_cert", "Hash=2"),
    ];
    let is_claim = |name: &str| name.starts_with("x-envoy-") || name.ends_with("cert");
    for (way, from, to) in shop.ways() {
        let id = format!("spoofed-{}", from.name);
        let mut fields = with(&sent);
        fields.extend([("x-weir-fault", "not-delivered"), ("x-request-id", &id)]);
        let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
        peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields)).unwrap();
        assert_eq!(peer.outcome(1), Outcome::Status(200), "{way}");
        let got = shop.of(&id);
        assert_eq!(got.len(), 1, "{way}");
        let arrives = |name: &str| way == "through both" || !is_claim(name);
        for (name, value) in sent {
            let values: Vec<_> = got[0].headers.get_all(name).iter().collect();
            assert_eq!(values, if arrives(name) { vec![value] } else { Vec::new() }, "{way}: {name}");
        }
        let count = sent.iter().filter(|(name, _)| arrives(name)).count();
        assert_eq!(got[0].headers.len(), count + 1, "{way}: {:?}", got[0].headers);
        // Nothing of it changes who the caller is for the proxy.
        let line = shop.server.logged("the call", |line| line["request_id"] == id.as_str());
        let who = if way == "through both" { json!(shop.client.identity()) } else { json!(null) };
        assert_eq!(line["peer_identity"], who, "{way}");
        // Among trailers the marker does not arrive either, and a pseudo header is none.
        let id = format!("spoofed-trailer-{}", from.name);
        let mut fields = with(&[(":method", "POST")]);
        fields.push(("x-request-id", &id));
        let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
        peer.send(HEADERS, END_HEADERS, 1, &block(&fields)).unwrap();
        peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("x-weir-fault", "not-delivered"), ("x-a", "b")]))
            .unwrap();
        assert_eq!(peer.outcome(1), Outcome::Status(200), "{way}");
        let trailers = shop.of(&id)[0].trailers.clone();
        assert!(trailers.len() == 1 && trailers["x-a"] == "b", "{way}: {trailers:?}");
        let id = format!("pseudo-trailer-{}", from.name);
        let mut fields = with(&[(":method", "POST")]);
        fields.push(("x-request-id", &id));
        let mut peer = Peer::client(from.netns.connect(to).unwrap(), &[]).unwrap();
        peer.send(HEADERS, END_HEADERS, 1, &block(&fields)).unwrap();
        peer.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[(":path", "/admin"), ("x-a", "b")])).unwrap();
        let outcome = peer.outcome(1);
        assert!(shop.of(&id).iter().all(|got| got.path == "/ok" && got.trailers.len() < 2), "{way}: {outcome:?}");
    }
}
