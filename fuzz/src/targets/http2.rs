//! Frames and header lists of HTTP/2.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use weir_proxy::http::{
    Asked, Limits, RequestHead,
    h1::RequestDecoder,
    h2::{List, Receiver, Session},
};

use super::cuts;
use crate::{Shape, Target, magnitude};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Settings that say nothing.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

const WORDS: &[&[u8]] = &[
    b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41",
    b"\x00\x00\x04\x00\x01\x00\x00\x00\x01body",
    b"\x00\x00\x04\x00\x09\x00\x00\x00\x01\x01bo\x00",
    b"\x00\x00\x00\x04\x01\x00\x00\x00\x00",
    b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x07",
    b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
    b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x00\x07",
    b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",
    b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
    b"\x00\x00\x02\x09\x04\x00\x00\x00\x01\x82\x84",
    b"\x88",
    b"\xbe",
    b"\x3f\xe1\x1f",
    b"\x40\x01a\x01b",
    b"\x0f\x0d\x013",
    b"\x7f\xff\xff",
];

pub(super) const HTTP2_SERVER: Target = Target {
    name: "http2_server",
    holds: "a client's frames are the same requests, the same bodies and the same answers however they are cut",
    max_len: 40 * 1024,
    words: &[WORDS],
    seeds: client_seeds,
    run: server,
};

pub(super) const HTTP2_CLIENT: Target = Target {
    name: "http2_client",
    holds: "a server's frames are the same answers however they are cut",
    max_len: 40 * 1024,
    words: &[WORDS],
    seeds: server_seeds,
    run: client,
};

pub(super) const HTTP2_HEAD: Target = Target {
    name: "http2_head",
    holds: "a list of headers that is taken for a request is one that HTTP/1.1 reads alike, and comes back when it is sent on",
    max_len: 8 * 1024,
    words: &[&[
        b"GET",
        b"POST",
        b"/",
        b"/a/../b",
        b"%2e",
        b"shop",
        b"host",
        b"cookie",
        b"content-length",
        b"\n",
        b"te",
        b"trailers",
    ]],
    seeds: heads,
    run: head,
};

struct Lines(Vec<(Vec<u8>, Vec<u8>)>);

impl List for Lines {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.iter().for_each(|(name, value)| line(name, value));
    }
}

fn said(session: &Session) -> BytesMut {
    session.write(|out| (out.len(), out.split()))
}

fn body(from: &mut Receiver) -> String {
    let cx = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    let end = loop {
        match from.poll_data(&cx) {
            Poll::Ready(Ok(Some(data))) => all.extend_from_slice(&data),
            Poll::Ready(Ok(None)) => break format!("trailers {:?}", from.trailers().map(|trailers| trailers.len())),
            Poll::Ready(Err(error)) => break error.to_string(),
            Poll::Pending => break "pending".into(),
        }
    };
    format!(
        "{} bytes, {:?}, {end}",
        all.len(),
        all.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(*byte))
    )
}

fn told(head: &RequestHead) -> String {
    let headers: Vec<_> = head.headers().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    format!("{:?} {:?} {:?} {headers:?}", head.method(), head.path_and_query(), head.authority())
}

/// Feeds parts until the connection ends: why it did, and what is told of it.
fn feed(session: &Session, parts: &[&[u8]]) -> (Option<String>, BytesMut) {
    let mut rest = BytesMut::new();
    for part in parts {
        rest.extend_from_slice(part);
        if let Err(error) = session.read(&mut rest) {
            return (Some(error.to_string()), said(session));
        }
        assert!(rest.len() < 9 + 16 * 1024, "more than a frame is kept: {}", rest.len());
    }
    (None, said(session))
}

fn server(bytes: &[u8]) -> Shape {
    let told: Vec<_> = cuts(bytes)
        .into_iter()
        .map(|parts| {
            let session = Session::server(Limits::default());
            feed(&session, &[PREFACE, SETTINGS]);
            let (end, out) = feed(&session, &parts);
            let mut requests = Vec::new();
            while let Some(mut arrived) = session.arrived() {
                let head = arrived.head.as_ref().map(told).map_err(|refused| refused.status);
                requests.push((head, body(&mut arrived.body)));
                assert!(requests.len() <= 100);
            }
            (end, out, requests)
        })
        .collect();
    for other in &told {
        assert_eq!(other, &told[0], "cut in another way");
    }
    let (end, out, requests) = &told[0];
    Shape::of((
        end.clone(),
        out.get(3).copied(),
        magnitude(out.len()),
        requests.len(),
        requests.first().map(|first| first.0.is_ok()),
    ))
}

fn client(bytes: &[u8]) -> Shape {
    let told: Vec<_> = cuts(bytes)
        .into_iter()
        .map(|parts| {
            let cx = Context::from_waker(Waker::noop());
            let (requests, session) = Session::client();
            let mut calls: Vec<_> = [Asked::Other, Asked::Head]
                .into_iter()
                .map(|asked| {
                    requests
                        .send(&request("/"), asked, false)
                        .unwrap_or_else(|error| panic!("it has just begun: {error}"))
                })
                .collect();
            let (end, out) = feed(&session, &parts);
            let answers: Vec<_> = calls
                .iter_mut()
                .map(|(answer, up)| {
                    let interims = std::iter::from_fn(|| answer.interim()).count();
                    let head = match answer.poll_head(&cx) {
                        Poll::Ready(Ok(head)) => format!("{} {}", head.status(), head.headers().count()),
                        Poll::Ready(Err(error)) => error.to_string(),
                        Poll::Pending => "pending".into(),
                    };
                    (interims, head, body(answer), up.poll_reset(&cx).is_ready())
                })
                .collect();
            (end, out, answers, requests.is_open(), requests.takes())
        })
        .collect();
    for other in &told {
        assert_eq!(other, &told[0], "cut in another way");
    }
    let (end, out, answers, open, _) = &told[0];
    Shape::of((end.clone(), magnitude(out.len()), answers[0].1.clone(), answers[1].3, *open))
}

/// The input's lines as a list of headers.
fn head(bytes: &[u8]) -> Shape {
    let names: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];
    let mut values = bytes.split(|byte| *byte == b'\n');
    let mut list: Vec<_> = names.iter().map(|name| (name.to_vec(), values.next().unwrap_or(b"x").to_vec())).collect();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        list.push((name.to_vec(), value.to_vec()));
    }
    let list = Lines(list);
    let Some(one) = through(&list) else { return Shape::of("nothing") };
    let head = match one {
        Ok(head) => head,
        Err(status) => return Shape::of(status),
    };
    // The same in HTTP/1.1.
    let of = |name: &[u8]| {
        list.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let target = if head.is_connect() { of(b":authority") } else { of(b":path") };
    let mut text = [&of(b":method")[..], b" ", &target, b" HTTP/1.1\r\n"].concat();
    for (name, value) in head.headers() {
        text.extend([name, b": ", value, b"\r\n"].concat());
    }
    text.extend(b"\r\n");
    let read = RequestDecoder::new().decode(&mut BytesMut::from(&text[..]), &Limits::default());
    let read = read.ok().flatten().unwrap_or_else(|| panic!("no request in HTTP/1.1: {:?}", Bytes::from(text)));
    assert_eq!(told(&read), told(&head));
    // And what goes on is the same request.
    let on = weir_proxy::http::h2::ForwardRequest::unchanged(&head, &[]);
    let again = through(&on).and_then(Result::ok).unwrap_or_else(|| panic!("{} does not come through", told(&head)));
    // A wish for trailers goes on once, as it is usually written.
    let sorted = |head: &RequestHead| {
        let one = |(name, value): (&[u8], &[u8])| {
            (name.to_vec(), if name == b"te" { value.to_ascii_lowercase() } else { value.to_vec() })
        };
        let mut all: Vec<_> = head.headers().map(one).collect();
        all.sort();
        all.dedup_by(|one, other| one == other && one.0 == b"te");
        (head.method().to_vec(), head.path().to_vec(), head.query().map(<[u8]>::to_vec), head.authority().to_vec(), all)
    };
    assert_eq!(sorted(&again), sorted(&head));
    Shape::of((
        head.is_connect(),
        head.query().is_some(),
        head.path() == of(b":path"),
        magnitude(head.headers().count()),
    ))
}

/// A list from one session to another: the request that it is, or the status that it gets; none where its stream is ended.
fn through(list: &impl List) -> Option<Result<RequestHead, u16>> {
    let (requests, client) = Session::client();
    let _halves = requests.send(list, Asked::Other, false).ok()?;
    let server = Session::server(Limits::default());
    let mut bytes = said(&client);
    server.read(&mut bytes).ok()?;
    Some(server.arrived()?.head.map_err(|refused| refused.status))
}

fn request(path: &str) -> Lines {
    let all = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "shop"),
        (":path", path),
        ("x-a", "1"),
        ("te", "trailers"),
    ];
    Lines(all.map(|(name, value)| (name.into(), value.into())).into())
}

fn client_seeds() -> Vec<Vec<u8>> {
    let (requests, session) = Session::client();
    said(&session);
    let cx = Context::from_waker(Waker::noop());
    let mut seeds = Vec::new();
    for length in [0, 1, 5000] {
        let Ok((answer, mut up)) = requests.send(&request("/a?b"), Asked::Other, false) else { continue };
        let _ = up.poll_send(&cx, &mut Bytes::from(vec![b'x'; length]), length > 1);
        let _ = up.send(&Lines(vec![(b"x-t".to_vec(), b"1".to_vec())]), true);
        seeds.push(said(&session).to_vec());
        drop((answer, up));
        seeds.push(said(&session).to_vec());
    }
    seeds.push(seeds.concat());
    seeds
}

fn server_seeds() -> Vec<Vec<u8>> {
    let (requests, client) = Session::client();
    let _calls: Vec<_> = (0..2).map(|_| requests.send(&request("/"), Asked::Other, false)).collect();
    let server = Session::server(Limits::default());
    let _ = server.read(&mut said(&client));
    let mut seeds = vec![said(&server).to_vec()];
    let cx = Context::from_waker(Waker::noop());
    while let Some(mut arrived) = server.arrived() {
        let line = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let _ = arrived.reply.send(&Lines(vec![line(":status", "103"), line("link", "x")]), false);
        let _ = arrived.reply.send(&Lines(vec![line(":status", "200"), line("content-length", "5")]), false);
        let _ = arrived.reply.poll_send(&cx, &mut Bytes::from_static(b"hello"), false);
        let _ = arrived.reply.send(&Lines(vec![line("grpc-status", "0")]), true);
        seeds.push(said(&server).to_vec());
    }
    server.leave();
    seeds.push(said(&server).to_vec());
    seeds.push(seeds.concat());
    seeds
}

fn heads() -> Vec<Vec<u8>> {
    [
        "GET\nhttp\nshop:80\n/a/../b?c=d\nx-a\n1\ncookie\na=1\ncookie\nb=2",
        "POST\nhttps\nshop\n/\ncontent-length\n3\nte\ntrailers\nexpect\n100-continue",
        "OPTIONS\nhttp\nshop\n*",
        "GET\nhttp\nshop\n/%2e%2e/x\nhost\nSHOP",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
