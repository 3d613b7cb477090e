//! The same bytes read by our codec and by hyper's, and the saved corpus.
#![allow(dead_code, unreachable_pub, clippy::expect_used, reason = "test code; each file uses its part of it")]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_proxy::http::{
    Asked, Limits, Refused, RequestHead,
    h1::{BodyScanner, ForwardRequest, RequestDecoder, ResponseDecoder, write_request},
};

/// A request as a reader of the stream understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// What a reader made of a stream: whole messages, then why it stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<T> {
    pub messages: Vec<T>,
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The stream ended between two messages.
    Clean,
    /// It ended within a message.
    Incomplete,
    /// Our codec refused what came next.
    Refused(u16, &'static str),
    /// hyper did.
    RefusedByHyper,
}

impl End {
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Refused(..) | Self::RefusedByHyper)
    }
}

fn lower(name: &[u8]) -> String {
    String::from_utf8_lossy(name).to_ascii_lowercase()
}

/// Our codec, given the stream in `pieces`. `each` sees every head and its raw body.
pub fn read_requests_with(pieces: &[&[u8]], mut each: impl FnMut(&RequestHead, &[u8])) -> Reading<Request> {
    let (mut decoder, mut buffer) = (RequestDecoder::new(), BytesMut::new());
    let mut pieces = pieces.iter();
    let mut messages = vec![];
    let mut current: Option<(RequestHead, BodyScanner, Vec<u8>, Vec<u8>)> = None;
    loop {
        match current.take() {
            None => match decoder.decode(&mut buffer, &Limits::default()) {
                Err(refused) => return Reading { messages, end: End::Refused(refused.status, refused.reason) },
                Ok(Some(head)) => {
                    let scanner = BodyScanner::new(head.framing());
                    current = Some((head, scanner, vec![], vec![]));
                    continue;
                }
                Ok(None) => {}
            },
            Some((head, mut scanner, mut raw, mut body)) => {
                while !buffer.is_empty() && !scanner.is_done() {
                    match scanner.piece(&buffer) {
                        Err(refused) => return Reading { messages, end: End::Refused(refused.status, refused.reason) },
                        Ok(piece) => {
                            let bytes = buffer.split_to(piece.len);
                            raw.extend_from_slice(&bytes);
                            if piece.is_payload {
                                body.extend_from_slice(&bytes);
                            }
                        }
                    }
                }
                if scanner.is_done() {
                    each(&head, &raw);
                    messages.push(Request {
                        method: String::from_utf8_lossy(head.method()).into_owned(),
                        target: String::from_utf8_lossy(head.target()).into_owned(),
                        headers: head.headers().map(|(name, value)| (lower(name), value.to_vec())).collect(),
                        body,
                    });
                    if head.keep_alive() && head.upgrade().is_none() && !head.is_connect() {
                        continue;
                    }
                    return Reading { messages, end: End::Clean };
                }
                current = Some((head, scanner, raw, body));
            }
        }
        match pieces.next() {
            Some(piece) => buffer.extend_from_slice(piece),
            None => {
                let open = current.is_some() || decoder.has_begun() || !buffer.is_empty();
                return Reading { messages, end: if open { End::Incomplete } else { End::Clean } };
            }
        }
    }
}

/// Our codec's reading of requests.
pub fn read_requests(pieces: &[&[u8]]) -> Reading<Request> {
    read_requests_with(pieces, |_, _| {})
}

/// What would be sent on for each request of a stream: head and body.
pub fn forward(stream: &[u8]) -> (Reading<Request>, Vec<Vec<u8>>) {
    let mut sent = vec![];
    let reading = read_requests_with(&[stream], |head, raw| {
        let mut out = BytesMut::new();
        let authority = head.authority().is_empty().then_some(&b"unknown"[..]);
        write_request(&mut out, head, &[], &ForwardRequest { authority, ..ForwardRequest::unchanged(head) });
        out.extend_from_slice(raw);
        sent.push(out.to_vec());
    });
    (reading, sent)
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// hyper's server reading the same stream.
pub async fn hyper_requests(stream: &[u8]) -> Reading<Request> {
    let seen = Arc::new(Mutex::new((Vec::new(), false)));
    let (mut near, far) = tokio::io::duplex(1 << 20);
    near.write_all(stream).await.expect("the pipe takes it");
    near.shutdown().await.expect("it closes");
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            match body.collect().await {
                Ok(body) => seen.lock().expect("not poisoned").0.push(Request {
                    method: head.method.to_string(),
                    target: head.uri.to_string(),
                    headers: head.headers.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect(),
                    body: body.to_bytes().to_vec(),
                }),
                Err(_) => seen.lock().expect("not poisoned").1 = true,
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let result =
        hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(TokioIo::new(far), service).await;
    let (messages, body_failed) = std::mem::take(&mut *seen.lock().expect("not poisoned"));
    let end = match result {
        Err(error) if error.is_incomplete_message() => End::Incomplete,
        Err(_) => End::RefusedByHyper,
        Ok(()) if body_failed => End::RefusedByHyper,
        Ok(()) => End::Clean,
    };
    Reading { messages, end }
}

/// A response as a reader understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// Our codec's reading of the first response that is not interim; the stream ends after `pieces`.
pub fn read_response(pieces: &[&[u8]], asked: Asked) -> Reading<Response> {
    let (mut decoder, mut buffer) = (ResponseDecoder::new(), BytesMut::new());
    let mut pieces = pieces.iter();
    let done = |response| Reading { messages: vec![response], end: End::Clean };
    let mut current: Option<(Response, BodyScanner)> = None;
    loop {
        if current.is_none() {
            match decoder.decode(&mut buffer, asked, &Limits::default()) {
                Err(refused) => return Reading { messages: vec![], end: End::Refused(refused.status, refused.reason) },
                Ok(Some(head)) if head.is_interim() => continue,
                Ok(Some(head)) => {
                    let headers = head.headers().map(|(name, value)| (lower(name), value.to_vec())).collect();
                    let response = Response { status: head.status(), headers, body: vec![] };
                    current = Some((response, BodyScanner::new(head.framing())));
                }
                Ok(None) => {}
            }
        }
        if let Some((response, scanner)) = &mut current {
            while !buffer.is_empty() && !scanner.is_done() {
                match scanner.piece(&buffer).map_err(Refused::as_bad_gateway) {
                    Err(refused) => {
                        return Reading { messages: vec![], end: End::Refused(refused.status, refused.reason) };
                    }
                    Ok(piece) => {
                        let bytes = buffer.split_to(piece.len);
                        if piece.is_payload {
                            response.body.extend_from_slice(&bytes);
                        }
                    }
                }
            }
            if scanner.is_done() {
                return done(response.clone());
            }
        }
        match (pieces.next(), current.take()) {
            (Some(piece), unfinished) => {
                buffer.extend_from_slice(piece);
                current = unfinished;
            }
            (None, Some((response, scanner))) if scanner.may_end() => return done(response),
            (None, _) => return Reading { messages: vec![], end: End::Incomplete },
        }
    }
}

/// hyper's client reading the same stream as the answer to `method`.
pub async fn hyper_response(stream: &[u8], method: hyper::Method) -> Reading<Response> {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(far)).await.expect("a connection");
    let connection = async { connection.await.is_ok() };
    let exchange = async {
        let request = hyper::Request::builder().method(method).uri("/").header("host", "a").body(Empty::<Bytes>::new());
        let response =
            sender.send_request(request.expect("a request")).await.map_err(|error| error.is_incomplete_message())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|_| false)?;
        drop(sender);
        Ok::<_, bool>(Response {
            status: head.status.as_u16(),
            headers: head.headers.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect(),
            body: body.to_bytes().to_vec(),
        })
    };
    let server = async {
        let mut request = [0; 64];
        let _ = near.read(&mut request).await;
        near.write_all(stream).await.expect("the pipe takes it");
        drop(near);
    };
    match tokio::join!(exchange, connection, server).0 {
        Ok(response) => Reading { messages: vec![response], end: End::Clean },
        Err(true) => Reading { messages: vec![], end: End::Incomplete },
        Err(false) => Reading { messages: vec![], end: End::RefusedByHyper },
    }
}

/// One line of the saved corpus.
#[derive(Debug)]
pub struct Case {
    pub line: usize,
    /// Our verdict: `ok` or a status.
    pub ours: String,
    /// hyper's: `ok`, `no`, or `=` if it is the same as ours.
    pub hyper: String,
    pub bytes: Vec<u8>,
}

/// Reads `proxy/fuzz-corpus/NAME`: `VERDICT HYPER BYTES`, the bytes with `\r`, `\n`, `\t`, `\\`, `\xNN` and `\*N{text}` (N times).
pub fn corpus(name: &str) -> Vec<Case> {
    let path = format!("fuzz-corpus/{name}");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            let mut columns = line.splitn(3, ' ');
            let mut column = || columns.next().unwrap_or_else(|| panic!("{path}:{}: three columns", at + 1));
            Case { line: at + 1, ours: column().to_owned(), hyper: column().to_owned(), bytes: unescape(column()) }
        })
        .collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = vec![];
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let (kind, tail) = rest.split_first().expect("something is escaped");
        rest = tail;
        match kind {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'\\' => out.push(b'\\'),
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).expect("two digits");
                out.push(u8::from_str_radix(digits, 16).expect("hexadecimal"));
                rest = &rest[2..];
            }
            b'*' => {
                let open = rest.iter().position(|byte| *byte == b'{').expect("a brace");
                let close = rest.iter().position(|byte| *byte == b'}').expect("a brace");
                let times: usize = std::str::from_utf8(&rest[..open]).expect("digits").parse().expect("a number");
                let inner = unescape(std::str::from_utf8(&rest[open + 1..close]).expect("text"));
                out.extend(inner.repeat(times));
                rest = &rest[close + 1..];
            }
            other => panic!("unknown escape {:?}", char::from(*other)),
        }
    }
    out
}
