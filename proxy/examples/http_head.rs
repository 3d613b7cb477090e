//! Nanoseconds for a typical request of ten headers through the codec: `cargo run --release -p weir-proxy --example http_head`.

use std::{hint::black_box, time::Instant};

use bytes::BytesMut;
use weir_proxy::http::{
    Asked, Edits, Limits, Name, Value,
    h1::{ForwardRequest, ForwardResponse, RequestDecoder, ResponseDecoder, write_request, write_response},
};

const REQUEST: &[u8] = b"GET /items/42?full=1 HTTP/1.1\r\nHost: catalog.shop.svc.cluster.local\r\nUser-Agent: curl/8.14.1\r\n\
    Accept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nContent-Type: application/json\r\nX-Request-Id: 0f3b7c2e-6b1d-4a55\r\n\
    Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Canary: yes\r\nConnection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\nContent-Type: text/html\r\n\
    Content-Length: 1024\r\nConnection: keep-alive\r\nETag: \"5f\"\r\nAccept-Ranges: bytes\r\n\r\n";
const ROUNDS: u32 = 200_000;

fn measure(name: &str, mut round: impl FnMut()) {
    let best = (0..10).map(|_| {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| round());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
    });
    println!("{name:<44} {:>6.0} ns", best.fold(f64::INFINITY, f64::min));
}

fn main() {
    let limits = Limits::default();
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    let mut out = BytesMut::with_capacity(16 * 1024);
    let mut edits = Edits::new();
    edits.set(Name::from_static("x-request-id"), Value::from_static("7c1e1a0e-1c1f-4f0f-9d4e-3a8a6f0f2b10"));
    edits.remove(Name::from_static("x-canary"));

    let mut decoder = RequestDecoder::new();
    measure("copy of the bytes alone", || {
        buffer.extend_from_slice(black_box(REQUEST));
        black_box(buffer.split_to(REQUEST.len()).freeze());
    });
    measure("httparse alone, to compare", || {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let _ = black_box(request.parse(black_box(REQUEST)));
    });
    measure("request: parse", || {
        buffer.extend_from_slice(black_box(REQUEST));
        let _ = black_box(decoder.decode(&mut buffer, &limits));
    });
    for (name, list) in [("request: parse and write", Edits::new()), ("request: parse, two edits, write", edits)] {
        measure(name, || {
            buffer.extend_from_slice(black_box(REQUEST));
            if let Ok(Some(head)) = decoder.decode(&mut buffer, &limits) {
                out.clear();
                write_request(&mut out, &head, &[&list], &ForwardRequest::unchanged(&head));
                black_box(&out);
            }
        });
    }
    let mut decoder = ResponseDecoder::new();
    measure("response: parse and write", || {
        buffer.extend_from_slice(black_box(RESPONSE));
        if let Ok(Some(head)) = decoder.decode(&mut buffer, Asked::Other, &limits) {
            out.clear();
            let how = ForwardResponse::new(&head, weir_proxy::http::Version::Http11, true);
            write_response(&mut out, &head, &[], &how);
            black_box(&out);
        }
    });
}
