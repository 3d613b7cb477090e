//! Memory taken from the allocator for one request on its way through the codec and the routes.
#![allow(clippy::expect_used, reason = "test code")]

mod counting;

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use counting::ALLOCATIONS;
use weir_proxy::{
    http::{
        Asked, Edits, Limits, Name, RequestHead, Value,
        h1::{
            BodyScanner, ForwardRequest, ForwardResponse, RequestDecoder, ResponseDecoder, write_request,
            write_response,
        },
        h2::{Arrived, ForwardRequest as ForwardHttp2, List, Session},
    },
    route::{Action, ActionSpec, HeaderSpec, MatchSpec, PathSpec, RouteSpec, RouteTable, TargetSpec, TextSpec},
};

const REQUEST: &[u8] = b"POST /items/42?full=1 HTTP/1.1\r\nHost: catalog.shop.svc.cluster.local\r\nUser-Agent: curl/8.14.1\r\n\
    Accept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nContent-Type: application/json\r\nX-Request-Id: 0f3b7c2e-6b1d-4a55\r\n\
    Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Canary: yes\r\nConnection: keep-alive\r\n\
    Content-Length: 11\r\n\r\n{\"a\": true}";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n\
    Content-Length: 5\r\nConnection: keep-alive\r\nETag: \"5f\"\r\n\r\nhello";
const ROUNDS: usize = 1_000;

fn table() -> RouteTable<()> {
    let target = |name: &str, weight| TargetSpec {
        name: name.into(),
        weight,
        cluster: (),
        request_edits: Edits::new(),
        response_edits: Edits::new(),
    };
    let mut edits = Edits::new();
    edits.set(Name::from_static("x-weir-route"), Value::from_static("canary"));
    edits.remove(Name::from_static("accept-encoding"));
    edits.add(Name::from_static("accept"), Value::from_static("text/html"));
    let routes = (0..20).map(|at| RouteSpec {
        name: at.to_string(),
        object: None,
        matches: MatchSpec {
            path: if at == 19 { PathSpec::Prefix("/items".into()) } else { PathSpec::Exact(format!("/other/{at}")) },
            headers: vec![HeaderSpec { name: "x-canary".into(), value: TextSpec::Exact("yes".into()) }],
            ..MatchSpec::default()
        },
        action: ActionSpec::Forward(vec![target("v1", 90), target("v2", 10)]),
        request_edits: edits.clone(),
        response_edits: Edits::new(),
        policy: None,
    });
    RouteTable::new(routes.collect(), None).expect("it compiles")
}

/// A request and its response through parse, routing, edits and writing: no allocation once the buffers have their size.
#[test]
fn a_request_allocates_nothing() {
    let table = table();
    let mut request_decoder = RequestDecoder::new();
    let mut response_decoder = ResponseDecoder::new();
    let (mut downstream, mut upstream) = (BytesMut::with_capacity(16 * 1024), BytesMut::with_capacity(16 * 1024));
    let mut out = BytesMut::with_capacity(16 * 1024);
    let mut round = || {
        downstream.extend_from_slice(REQUEST);
        let head = request_decoder.decode(&mut downstream, &Limits::default()).expect("accepted").expect("whole");
        let route = table.find(&head).expect("the last route");
        let Action::Forward(split) = route.action() else { panic!("it forwards") };
        let target = split.pick();
        out.clear();
        let edits = [route.request_edits(), target.request_edits()];
        write_request(&mut out, &head, &edits, &ForwardRequest::unchanged(&head));
        let scanned = BodyScanner::new(head.framing()).scan(&downstream).expect("a body");
        assert!(scanned.done);
        out.extend_from_slice(&downstream.split_to(scanned.len));
        let version = head.version();
        drop(head);

        upstream.extend_from_slice(RESPONSE);
        let head =
            response_decoder.decode(&mut upstream, Asked::Other, &Limits::default()).expect("accepted").expect("whole");
        write_response(&mut out, &head, &[route.response_edits()], &ForwardResponse::new(&head, version, true));
        let scanned = BodyScanner::new(head.framing()).scan(&upstream).expect("a body");
        out.extend_from_slice(&upstream.split_to(scanned.len));
    };
    (0..100).for_each(|_| round());
    let before = ALLOCATIONS.get();
    (0..ROUNDS).for_each(|_| round());
    let allocations = ALLOCATIONS.get() - before;
    println!("{allocations} allocations for {ROUNDS} requests and responses");
    assert_eq!(allocations, 0);
}

/// A call of gRPC from bytes to its head, from there to the next hop, and its answer back.
#[test]
fn a_call_of_http2_allocates_a_few_times() {
    let cx = Context::from_waker(Waker::noop());
    let carry = |from: &Session, to: &Session| {
        let mut bytes = from.write(|out| (out.len(), out.split()));
        to.read(&mut bytes).expect("accepted");
    };
    let (requests, client) = Session::client();
    let server = Session::server(Limits::default());
    let mut edits = Edits::new();
    edits.set(Name::from_static("x-weir-route"), Value::from_static("canary"));
    let call = || {
        let (mut answer, mut up) = requests.send(&Call, Asked::Other, false).expect("a stream");
        assert!(up.poll_send(&cx, &mut Bytes::from_static(&[7; 100]), true).is_ready());
        carry(&client, &server);
        let Arrived { head, mut body, mut reply } = server.arrived().expect("a request");
        let head = head.expect("accepted");
        assert!(matches!(body.poll_data(&cx), Poll::Ready(Ok(Some(data))) if data.len() == 100));
        reply.send(&Echo(&head), false).expect("an answer");
        assert!(reply.poll_send(&cx, &mut Bytes::from_static(&[7; 100]), true).is_ready());
        carry(&server, &client);
        assert!(matches!(answer.poll_head(&cx), Poll::Ready(Ok(head)) if head.status() == 200));
        drop((body, reply));
        let edits = [&edits];
        let on = ForwardHttp2::unchanged(&head, &edits);
        assert_eq!(on.head.headers().count(), 7);
    };
    (0..100).for_each(|_| call());
    let before = ALLOCATIONS.get();
    (0..ROUNDS).for_each(|_| call());
    let each = (ALLOCATIONS.get() - before) / ROUNDS;
    println!("{each} allocations for each call, on both sides of a connection");
    assert!(each <= 14, "{each}");
}

struct Call;

impl List for Call {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":method", b"POST");
        line(b":scheme", b"http");
        line(b":authority", b"catalog.shop.svc.cluster.local");
        line(b":path", b"/shop.Catalog/Get");
        line(b"content-type", b"application/grpc");
        line(b"te", b"trailers");
        line(b"user-agent", b"grpc-go/1.76.0");
        line(b"grpc-timeout", b"1S");
        line(b"x-request-id", b"0f3b7c2e-6b1d-4a55");
        line(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    }
}

/// An answer with the headers of a request.
struct Echo<'a>(&'a RequestHead);

impl List for Echo<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":status", b"200");
        self.0.headers().filter(|(name, _)| *name != b"te").for_each(|(name, value)| line(name, value));
    }
}

/// A connection's first request on a fresh buffer: sharing the buffer is the one allocation.
#[test]
fn a_fresh_buffer_costs_one() {
    let mut out = BytesMut::with_capacity(4096);
    let mut buffer = BytesMut::with_capacity(4096);
    buffer.extend_from_slice(REQUEST);
    let before = ALLOCATIONS.get();
    let head = RequestDecoder::new().decode(&mut buffer, &Limits::default()).expect("accepted").expect("whole");
    write_request(&mut out, &head, &[], &ForwardRequest::unchanged(&head));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
