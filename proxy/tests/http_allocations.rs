//! Memory taken from the allocator for one request on its way through the codec and the routes.
#![allow(clippy::expect_used, reason = "test code")]

mod counting;

use bytes::BytesMut;
use counting::ALLOCATIONS;
use weir_proxy::{
    http::{
        Asked, Edits, Limits, Name, Value,
        h1::{
            BodyScanner, ForwardRequest, ForwardResponse, RequestDecoder, ResponseDecoder, write_request,
            write_response,
        },
        h2,
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

/// The head of a gRPC call, from the `h2` crate's parts to the neutral head and back to a request with an id.
#[test]
fn a_request_of_http2_allocates_a_few_times() {
    let call = http::Request::post("http://catalog.shop.svc.cluster.local/shop.Catalog/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "grpc-go/1.76.0")
        .header("grpc-timeout", "1S")
        .header("x-request-id", "0f3b7c2e-6b1d-4a55")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let (parts, ()) = call.body(()).expect("a request").into_parts();
    let mut edits = Edits::new();
    edits.set(Name::from_static("x-weir-route"), Value::from_static("canary"));
    let mut all = vec![parts; ROUNDS];
    let before = ALLOCATIONS.get();
    for parts in &mut all {
        let head = h2::request(parts, false, &Limits::default()).expect("accepted");
        let on = h2::forwarded(parts, &head, &[&edits]).expect("a request");
        assert_eq!(on.headers().len(), 7);
    }
    let each = (ALLOCATIONS.get() - before) / ROUNDS;
    println!("{each} allocations for each request");
    assert!(each <= 7, "{each}");
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
