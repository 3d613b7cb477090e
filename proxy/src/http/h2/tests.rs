//! Two sessions that speak with each other, and one that hears what none would say.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::{frame::*, *};
use crate::http::{Asked, Edits, Limits, Name, RequestHead, Value};

/// A list of headers as they are written here.
struct Lines(Vec<(String, String)>);

impl List for Lines {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.iter().for_each(|(name, value)| line(name.as_bytes(), value.as_bytes()));
    }
}

fn lines(all: &[(&str, &str)]) -> Lines {
    Lines(all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn post(path: &str) -> Lines {
    lines(&[(":method", "POST"), (":scheme", "http"), (":authority", "shop"), (":path", path), ("x-a", "1")])
}

/// What a session has to say.
fn said(session: &Session) -> BytesMut {
    session.write(|out| (out.len(), out.split()))
}

/// Carries bytes both ways until neither has anything to say; `cut` at a time.
fn talk(client: &Session, server: &Session, cut: usize) {
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    loop {
        let (up, down) = (said(client), said(server));
        if up.is_empty() && down.is_empty() {
            return;
        }
        for (bytes, rest, to) in [(up, &mut to_server, server), (down, &mut to_client, client)] {
            for part in bytes.chunks(cut) {
                rest.extend_from_slice(part);
                to.read(rest).unwrap();
            }
            assert!(rest.is_empty(), "{rest:?}");
        }
    }
}

fn now<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it is not there"),
    }
}

/// All data that has come.
fn data(from: &mut Receiver) -> (usize, bool) {
    let cx = Context::from_waker(Waker::noop());
    let mut all = 0;
    loop {
        match from.poll_data(&cx) {
            Poll::Ready(Ok(Some(chunk))) => all += chunk.len(),
            Poll::Ready(Ok(None)) => return (all, true),
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => return (all, false),
        }
    }
}

#[test]
fn a_request_and_its_answer_however_they_are_cut() {
    let cx = Context::from_waker(Waker::noop());
    for cut in [1, 2, 3, 8, 9, 10, 17, 100, 1 << 20] {
        let (server, (requests, client)) = (Session::server(Limits::default()), Session::client());
        let long = "v".repeat(40_000);
        let mut head = post("/a/../b?c");
        head.0.push(("x-long".into(), long.clone()));
        let (mut answer, mut up) = requests.send(&head, Asked::Other, false).unwrap();
        let mut body = Bytes::from(vec![b'x'; 10_000]);
        assert!(now(up.poll_send(&cx, &mut body, true)).is_ok() && body.is_empty());
        talk(&client, &server, cut);
        let mut arrived = server.arrived().unwrap();
        assert!(server.arrived().is_none());
        let head = arrived.head.unwrap();
        assert_eq!((head.method(), head.path(), head.query()), (&b"POST"[..], &b"/b"[..], Some(&b"c"[..])));
        assert_eq!(head.header("x-long").next(), Some(long.as_bytes()));
        assert_eq!(data(&mut arrived.body), (10_000, true));
        let mut edits = Edits::new();
        edits.add(Name::from_static("x-a"), Value::from_static("2"));
        edits.set(Name::from_static("x-b"), Value::from_static("3"));
        edits.add(Name::from_static("set-cookie"), Value::from_static("4"));
        // As the request would go on.
        let (again, next) = Session::client();
        let third = Session::server(Limits::default());
        let _halves = again.send(&ForwardRequest::unchanged(&head, &[&edits]), Asked::Other, true).unwrap();
        talk(&next, &third, cut);
        let on = third.arrived().unwrap().head.unwrap();
        let of = |name| on.header(name).map(String::from_utf8_lossy).collect::<Vec<_>>();
        assert_eq!((of("x-a"), of("x-b"), of("set-cookie")), (vec!["1,2".into()], vec!["3".into()], vec!["4".into()]));
        assert_eq!((on.authority(), on.path(), of("host")), (&b"shop"[..], &b"/b"[..], vec!["shop".into()]));

        arrived.reply.send(&lines(&[(":status", "103"), ("link", "x")]), false).unwrap();
        arrived.reply.send(&lines(&[(":status", "200"), ("content-length", "5")]), false).unwrap();
        now(arrived.reply.poll_send(&cx, &mut Bytes::from_static(b"hello"), false)).unwrap();
        arrived.reply.send(&lines(&[("grpc-status", "0")]), true).unwrap();
        talk(&client, &server, cut);
        assert_eq!(answer.interim().map(|head| head.status()), Some(103));
        let head = now(answer.poll_head(&cx)).unwrap();
        assert_eq!((head.status(), head.header("content-length").next()), (200, Some(&b"5"[..])));
        assert!(!answer.is_at_end());
        assert_eq!(data(&mut answer), (5, true));
        assert_eq!(answer.trailers().unwrap().header("grpc-status").next(), Some(&b"0"[..]));
        drop((answer, up, arrived.body, arrived.reply));
        assert!(server.is_idle() && client.is_idle());
        assert!(said(&server).is_empty() && said(&client).is_empty(), "nothing is reset that has ended");
    }
}

#[test]
fn windows_hold_and_streams_take_turns() {
    let cx = Context::from_waker(Waker::noop());
    let (server, (requests, client)) = (Session::server(Limits::default()), Session::client());
    let mut calls: Vec<_> = (0..3).map(|_| requests.send(&post("/"), Asked::Other, false).unwrap()).collect();
    talk(&client, &server, 1 << 20);
    let mut arrived: Vec<_> = std::iter::from_fn(|| server.arrived()).collect();
    let mut sent = [0_usize; 3];
    for _ in 0..1000 {
        for (at, (_, up)) in calls.iter_mut().enumerate() {
            let mut piece = Bytes::from(vec![b'x'; 1 << 20]);
            let before = piece.len();
            let _ = up.poll_send(&cx, &mut piece, false);
            sent[at] += before - piece.len();
        }
        talk(&client, &server, 1 << 20);
    }
    // Nobody reads: a stream's window each, no more.
    assert_eq!(sent, [STREAM_WINDOW as usize; 3]);
    // One that is read goes on, and the others are where they were.
    let mut read = 0;
    for _ in 0..1000 {
        read += data(&mut arrived[1].body).0;
        talk(&client, &server, 1 << 20);
        let mut piece = Bytes::from(vec![b'x'; 1 << 20]);
        let _ = calls[1].1.poll_send(&cx, &mut piece, false);
        talk(&client, &server, 1 << 20);
    }
    assert!(read > 10 << 20, "{read}");
    // Without room each waits for its turn, and has it.
    let mut full = Vec::new();
    for (_, up) in &mut calls {
        let mut piece = Bytes::from(vec![b'x'; 1 << 20]);
        while up.poll_send(&cx, &mut piece, false).is_ready() {}
        full.push((1 << 20) - piece.len());
    }
    assert!(full[1] >= 64 * 1024 && full[0] == 0, "{full:?}");
}

#[test]
fn what_is_dropped_is_reset_and_gives_its_window_back() {
    let cx = Context::from_waker(Waker::noop());
    let (server, (requests, client)) = (Session::server(Limits::default()), Session::client());
    for _ in 0..500 {
        let (answer, mut up) = requests.send(&post("/"), Asked::Other, false).unwrap();
        let mut piece = Bytes::from(vec![b'x'; 60_000]);
        while up.poll_send(&cx, &mut piece, false).is_ready() && !piece.is_empty() {
            talk(&client, &server, 1 << 20);
        }
        talk(&client, &server, 1 << 20);
        assert!(piece.is_empty(), "the connection's window is never used up: {}", piece.len());
        drop(server.arrived().unwrap());
        talk(&client, &server, 1 << 20);
        assert!(up.poll_reset(&cx).is_ready());
        drop((answer, up));
        talk(&client, &server, 1 << 20);
        assert!(server.is_idle() && client.is_idle());
    }
}

#[test]
fn a_server_that_leaves_says_so_and_a_client_that_has_none_left_too() {
    let cx = Context::from_waker(Waker::noop());
    let (server, (requests, client)) = (Session::server(Limits::default()), Session::client());
    let (mut answer, _up) = requests.send(&post("/"), Asked::Other, true).unwrap();
    talk(&client, &server, 1 << 20);
    let mut arrived = server.arrived().unwrap();
    server.leave();
    talk(&client, &server, 1 << 20);
    assert!(!requests.is_open() && !server.has_left());
    assert!(requests.send(&post("/"), Asked::Other, true).is_err_and(|error| error.is_unprocessed()));
    arrived.reply.send(&lines(&[(":status", "204")]), true).unwrap();
    drop(arrived);
    talk(&client, &server, 1 << 20);
    assert_eq!(now(answer.poll_head(&cx)).unwrap().status(), 204);
    assert!(server.has_left());
}

#[test]
fn a_connection_that_is_gone_ends_its_streams() {
    let cx = Context::from_waker(Waker::noop());
    let (requests, client) = Session::client();
    let (mut answer, mut up) = requests.send(&post("/"), Asked::Other, false).unwrap();
    assert!(answer.poll_head(&cx).is_pending());
    drop(client);
    assert!(matches!(answer.poll_head(&cx), Poll::Ready(Err(Error::Io(_)))));
    assert!(up.poll_reset(&cx).is_ready() && !requests.is_open());
}

/// Frames of a client, behind a preface and settings.
fn server_hears(frames: &[u8]) -> (Session, Result<(), Error>) {
    let server = Session::server(Limits::default());
    let mut bytes = BytesMut::from(PREFACE);
    put_settings(&mut bytes, &[]);
    server.read(&mut bytes).unwrap();
    let mut bytes = BytesMut::from(frames);
    let heard = server.read(&mut bytes);
    (server, heard)
}

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut all = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    all.extend([kind, flags]);
    all.extend(stream.to_be_bytes());
    all.extend(payload);
    all
}

/// A GET of `/` at `a`, and other headers.
fn get(more: &[u8]) -> Vec<u8> {
    [b"\x82\x86\x84\x01\x01a".as_slice(), more].concat()
}

#[test]
fn what_the_protocol_forbids_ends_the_connection() {
    let ok = raw(1, 5, 1, &get(b""));
    for (what, reason, frames) in [
        ("data on no stream", Reason::PROTOCOL_ERROR, raw(0, 0, 0, b"x")),
        ("data on an idle stream", Reason::PROTOCOL_ERROR, raw(0, 0, 1, b"x")),
        ("padding longer than the frame", Reason::PROTOCOL_ERROR, raw(0, 8, 1, b"\x05x")),
        ("a frame of 16 KiB and a byte", Reason::FRAME_SIZE_ERROR, raw(0, 0, 1, &[0; 16_385])),
        ("settings on a stream", Reason::PROTOCOL_ERROR, raw(4, 0, 1, b"")),
        ("settings of five bytes", Reason::FRAME_SIZE_ERROR, raw(4, 0, 0, b"12345")),
        ("an acknowledgement with a payload", Reason::FRAME_SIZE_ERROR, raw(4, 1, 0, b"123456")),
        ("a window of 2 GiB", Reason::FLOW_CONTROL_ERROR, raw(4, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("frames of a byte", Reason::PROTOCOL_ERROR, raw(4, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("a ping of seven bytes", Reason::FRAME_SIZE_ERROR, raw(6, 0, 0, b"1234567")),
        ("a reset of an idle stream", Reason::PROTOCOL_ERROR, raw(3, 0, 1, &[0; 4])),
        ("an update of an idle stream", Reason::PROTOCOL_ERROR, raw(8, 0, 1, &[0, 0, 0, 1])),
        ("an update by nothing", Reason::PROTOCOL_ERROR, raw(8, 0, 0, &[0; 4])),
        ("an update too large", Reason::FLOW_CONTROL_ERROR, raw(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("a push", Reason::PROTOCOL_ERROR, raw(5, 4, 1, &[0; 4])),
        ("a continuation of nothing", Reason::PROTOCOL_ERROR, raw(9, 4, 1, b"")),
        ("a frame within a list", Reason::PROTOCOL_ERROR, [raw(1, 1, 1, b""), raw(6, 0, 0, &[0; 8])].concat()),
        ("a list within a list", Reason::PROTOCOL_ERROR, [raw(1, 1, 1, b""), raw(9, 4, 3, b"")].concat()),
        ("an even stream", Reason::PROTOCOL_ERROR, raw(1, 5, 2, &get(b""))),
        ("a bad list", Reason::COMPRESSION_ERROR, raw(1, 5, 1, b"\x80")),
        (
            "a stream behind later ones",
            Reason::STREAM_CLOSED,
            [raw(1, 5, 5, &get(b"")), raw(1, 5, 3, &get(b""))].concat(),
        ),
        ("pings without end", Reason::ENHANCE_YOUR_CALM, raw(6, 0, 0, &[0; 8]).repeat(3000)),
        (
            "lists without end",
            Reason::ENHANCE_YOUR_CALM,
            [raw(1, 1, 1, b""), raw(9, 0, 1, &[0; 16_000]).repeat(9)].concat(),
        ),
    ] {
        let (server, heard) = server_hears(&[ok.clone(), frames.clone()].concat());
        // Those that name stream 1 as idle come first.
        let (server, heard) = if heard.is_ok() { server_hears(&frames) } else { (server, heard) };
        assert_eq!(heard.as_ref().err().and_then(Error::reason), Some(reason), "{what}");
        let said = said(&server);
        let (_, last) = said.split_at(said.len() - 17);
        assert_eq!((last[3], &last[13..]), (7, &reason.0.to_be_bytes()[..]), "{what}: GOAWAY");
    }
    let server = Session::server(Limits::default());
    assert!(server.read(&mut BytesMut::from(&b"PRI * HTTP/2.1"[..])).is_err(), "no preface");
    let server = Session::server(Limits::default());
    assert!(server.read(&mut BytesMut::from(&[PREFACE, &raw(6, 0, 0, &[0; 8])].concat()[..])).is_err(), "no settings");
}

#[test]
fn what_is_wrong_with_a_stream_ends_it_alone() {
    for (what, reason, frames) in [
        ("a name in capitals", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x00\x01A\x01x"))),
        ("a line break", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x00\x01a\x03x\r\n"))),
        ("connection", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x00\x0aconnection\x01x"))),
        ("te", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x00\x02te\x04gzip"))),
        ("a pseudo header twice", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x82"))),
        ("a pseudo header of answers", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x88"))),
        ("a pseudo header behind others", Reason::PROTOCOL_ERROR, raw(1, 5, 1, b"\x82\x86\x90\x84\x01\x01a")),
        ("no path", Reason::PROTOCOL_ERROR, raw(1, 5, 1, b"\x82\x86\x01\x01a")),
        ("an empty path", Reason::PROTOCOL_ERROR, raw(1, 5, 1, b"\x82\x86\x04\x00")),
        ("an absolute path", Reason::PROTOCOL_ERROR, raw(1, 5, 1, b"\x82\x86\x04\x08http://b")),
        ("no body where one is said", Reason::PROTOCOL_ERROR, raw(1, 5, 1, &get(b"\x0f\x0d\x011"))),
        (
            "a body too long",
            Reason::PROTOCOL_ERROR,
            [raw(1, 4, 1, &get(b"\x0f\x0d\x011")), raw(0, 1, 1, b"22")].concat(),
        ),
        (
            "a body too short",
            Reason::PROTOCOL_ERROR,
            [raw(1, 4, 1, &get(b"\x0f\x0d\x013")), raw(0, 1, 1, b"22")].concat(),
        ),
        (
            "trailers that do not end",
            Reason::PROTOCOL_ERROR,
            [raw(1, 4, 1, &get(b"")), raw(1, 4, 1, b"\x00\x01a\x01b")].concat(),
        ),
        (
            "trailers with a pseudo header",
            Reason::PROTOCOL_ERROR,
            [raw(1, 4, 1, &get(b"")), raw(1, 5, 1, b"\x84")].concat(),
        ),
        ("data behind the end", Reason::STREAM_CLOSED, [raw(1, 5, 1, &get(b"")), raw(0, 0, 1, b"x")].concat()),
        (
            "a window overflown",
            Reason::FLOW_CONTROL_ERROR,
            [raw(1, 4, 1, &get(b"")), raw(0, 0, 1, &[0; 16_384]).repeat(9)].concat(),
        ),
        ("an update by nothing", Reason::PROTOCOL_ERROR, [raw(1, 4, 1, &get(b"")), raw(8, 0, 1, &[0; 4])].concat()),
        ("on itself", Reason::PROTOCOL_ERROR, raw(1, 0x25, 1, &[&[0, 0, 0, 1, 7][..], &get(b"")].concat())),
        ("a priority of four bytes", Reason::FRAME_SIZE_ERROR, raw(2, 0, 1, &[0; 4])),
    ] {
        let (server, heard) = server_hears(&frames);
        assert!(heard.is_ok(), "{what}: {heard:?}");
        let said = said(&server);
        let reset = [&[0, 0, 4, 3, 0, 0, 0, 0, 1][..], &reason.0.to_be_bytes()].concat();
        assert!(said.windows(13).any(|frame| frame == reset), "{what}: {said:?}");
        // The connection is as good as before.
        let mut next = BytesMut::from(&raw(1, 5, 3, &get(b""))[..]);
        server.read(&mut next).unwrap();
        assert!(std::iter::from_fn(|| server.arrived()).any(|arrived| arrived.head.is_ok()), "{what}");
    }
}

#[test]
fn what_is_a_request_but_none_that_is_served_is_answered() {
    let status = |block: &[u8]| {
        let (server, heard) = server_hears(&raw(1, 5, 1, block));
        heard.unwrap();
        server.arrived().unwrap().head.map(|_: RequestHead| ()).map_err(|refused| refused.status)
    };
    assert_eq!(status(&get(b"")), Ok(()));
    assert_eq!(status(&get(b"\x0f\x17\x01a")), Ok(()), "host, the same");
    assert_eq!(status(&get(b"\x0f\x17\x01b")), Err(400), "host, another");
    assert_eq!(status(&get(b"\x0f\x17\x01a\x0f\x17\x01a")), Err(400), "host, twice");
    assert_eq!(status(b"\x82\x86\x84"), Err(400), "no host");
    assert_eq!(status(&get(b"\x00\x01a\x02 b")), Err(400), "a space");
    assert_eq!(status(b"\x82\x86\x04\x04/%00\x01\x01a"), Err(400));
    assert_eq!(status(b"\x82\x06\x03ftp\x84\x01\x01a"), Err(400), "a scheme");
    assert_eq!(status(&get(&b"\x00\x01a\x01b".repeat(101))), Err(431));
}

#[test]
fn a_list_that_is_too_large_is_refused_and_followed() {
    // One entry of 4 kB, then an index of it again and again.
    let entry = [&[0x40, 1, b'a', 0x7f, 0x81, 0x1e][..], &[b'x'; 3968]].concat();
    for (times, want) in [(10, None), (17, Some(431)), (200, Some(431))] {
        let (server, heard) = server_hears(&raw(1, 5, 1, &[get(b""), entry.clone(), vec![0xbe; times]].concat()));
        heard.unwrap();
        assert_eq!(server.arrived().unwrap().head.err().map(|refused| refused.status), want, "{times}");
    }
    let (_, heard) = server_hears(&raw(1, 5, 1, &[get(b""), entry, vec![0xbe; 300]].concat()));
    assert_eq!(heard.err().and_then(|error| error.reason()), Some(Reason::ENHANCE_YOUR_CALM));
}

#[test]
fn who_resets_a_stream_and_goes_on_is_told() {
    let (server, heard) = server_hears(&raw(1, 4, 1, &get(b"")));
    heard.unwrap();
    let _held = server.arrived().unwrap();
    said(&server);
    for frame in [raw(0, 0, 1, b"x"), raw(1, 5, 1, b"\x00\x01a\x01b")] {
        let mut bytes = BytesMut::from(&[raw(3, 0, 1, &[0, 0, 0, 8]), frame].concat()[..]);
        server.read(&mut bytes).unwrap();
        assert_eq!(said(&server)[..], raw(3, 0, 1, &Reason::STREAM_CLOSED.0.to_be_bytes()));
    }
}

#[test]
fn requests_that_are_taken_back_at_once_reach_nobody() {
    let (server, heard) = server_hears(&[raw(1, 5, 1, &get(b"")), raw(3, 0, 1, &[0, 0, 0, 8])].concat());
    heard.unwrap();
    assert!(server.arrived().is_none() && server.is_idle());
}

#[test]
fn what_came_of_a_request_that_is_taken_back_does_not_use_up_the_window() {
    let (server, heard) = server_hears(&[]);
    heard.unwrap();
    said(&server);
    let mut more = 0;
    for number in 0..200 {
        let id = 2 * number + 1;
        let body = raw(0, 0, id, &[0; 16_384]).repeat(4);
        let mut bytes = BytesMut::from(&[raw(1, 4, id, &get(b"")), body, raw(3, 0, id, &[0, 0, 0, 8])].concat()[..]);
        server.read(&mut bytes).unwrap();
        assert!(server.arrived().is_none());
        let said = said(&server);
        more += said.chunks(13).filter(|frame| frame.starts_with(&[0, 0, 4, 8, 0, 0, 0, 0, 0])).count();
    }
    assert!(more >= 1, "12.5 MiB have come, and none of it is owed");
}

#[test]
fn more_streams_than_agreed_are_refused() {
    let all: Vec<u8> = (0..=STREAMS).flat_map(|n| raw(1, 5, 2 * n + 1, &get(b""))).collect();
    let (server, heard) = server_hears(&all);
    heard.unwrap();
    let arrived: Vec<_> = std::iter::from_fn(|| server.arrived()).collect();
    assert_eq!(arrived.len(), STREAMS as usize);
    let said = said(&server);
    assert_eq!(said[said.len() - 4..], Reason::REFUSED_STREAM.0.to_be_bytes());
}
