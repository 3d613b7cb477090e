//! HTTP/1.1 heads and bodies, as streams.

use bytes::{Buf, BytesMut};
use weir_proxy::http::{
    Asked, Framing, Limits, Refused, RequestHead, ResponseHead, Version,
    h1::{
        BodyScanner, ForwardRequest, ForwardResponse, RequestDecoder, ResponseDecoder, write_request, write_response,
    },
};

use super::cuts;
use crate::{Shape, Target, corpus, magnitude, none};

/// Words of framing, and of those who attack it.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\0",
    b": ",
    b":",
    b",",
    b";",
    b"GET / HTTP/1.1\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"CONNECT a:80 HTTP/1.1\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"Host: a\r\n",
    b"Host:",
    b"Content-Length: 5\r\n",
    b"Content-Length:",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:",
    b"chunked",
    b"identity",
    b"gzip, ",
    b"Connection: keep-alive\r\n",
    b"Connection: close, ",
    b"Connection: host, x-a\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Upgrade: h2c",
    b"TE: trailers\r\n",
    b"Trailer: x\r\n",
    b"http://b:81/",
    b"/%2e%2e/",
    b"?q=",
    b"#",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5;x=y\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"X_under: a\r\n",
    b" folded\r\n",
    b"\xff",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 304\r\n",
];

pub(super) const REQUEST: Target = Target {
    name: "http1_request",
    holds: "a stream of requests reads the same however it is cut, frames as its text says, and goes out as the same request",
    max_len: 4096,
    words: &[WORDS],
    seeds: requests,
    run: request,
};

pub(super) const RESPONSE: Target = Target {
    name: "http1_response",
    holds: "a stream of responses reads the same however it is cut, frames as its text says, and goes out as the same response",
    max_len: 4096,
    words: &[WORDS],
    seeds: responses,
    run: response,
};

pub(super) const CHUNKS: Target = Target {
    name: "http1_chunks",
    holds: "a chunked body has the payload and the end that a plain reader of RFC 9112 finds, however it is cut",
    max_len: 2048,
    words: &[&[
        b"\r\n",
        b"\n",
        b"\r",
        b"0\r\n\r\n",
        b"1\r\na\r\n",
        b"5\r\nhello\r\n",
        b"a",
        b"A",
        b";",
        b";x=y",
        b";x=\"\\\"\"",
        b"0x5\r\n",
        b"+5\r\n",
        b"-1\r\n",
        b" 5\r\n",
        b"5 \r\n",
        b"ffffffffffffffff\r\n",
        b"10000000000000000\r\n",
        b"00000005\r\n",
        b"T: u\r\n",
        b"Content-Length: 5\r\n",
        b"x-weir-a: b\r\n",
        b"0\r\nT: u\r\n\r\n",
        b" f\r\n",
        b"\0",
        b"\xff",
    ]],
    seeds: none,
    run: chunks,
};

/// The corpus of the proxy's own tests, which say of each line what becomes of it.
fn lines(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let inputs = lines.filter_map(|line| corpus::unescape(line.splitn(3, ' ').nth(2)?).ok());
    inputs.filter(|input| input.len() <= 2048).collect()
}

fn requests() -> Vec<Vec<u8>> {
    lines(include_str!("../../../proxy/fuzz-corpus/requests.txt"))
}

fn responses() -> Vec<Vec<u8>> {
    lines(include_str!("../../../proxy/fuzz-corpus/responses.txt"))
}

/// Most messages of a stream that are followed.
const MESSAGES: usize = 8;

/// Why a stream is read no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    /// Between two messages.
    Clean,
    /// In a head.
    InHead,
    /// In a body.
    InBody,
    /// Behind a request or response that ends the connection or makes it a tunnel.
    Last,
    /// Refused.
    Refused(u16, &'static str),
}

/// What is compared of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    head: String,
    payload: Vec<u8>,
}

fn request(bytes: &[u8]) -> Shape {
    let (messages, end) = however_cut(bytes, |pieces, check| {
        let mut decoder = RequestDecoder::new();
        let mut buffer = BytesMut::new();
        read(pieces, |part| {
            buffer.extend_from_slice(part);
            let Some(head) = decoder.decode(&mut buffer, &Limits::default())? else {
                return Ok(Step::More(decoder.has_begun()));
            };
            if check {
                check_request(&head);
            }
            let last = head.is_connect() || head.upgrade().is_some() || !head.keep_alive();
            Ok(Step::Head { text: show_request(&head), framing: head.framing(), last, rest: buffer.split() })
        })
    });
    Shape::of((messages.len(), end, messages.iter().map(|one| magnitude(one.payload.len())).max()))
}

fn response(bytes: &[u8]) -> Shape {
    let (asked, bytes) = match bytes.split_first() {
        Some((b'h', rest)) => (Asked::Head, rest),
        Some((b'c', rest)) => (Asked::Connect, rest),
        Some((b'o', rest)) => (Asked::Other, rest),
        _ => (Asked::Other, bytes),
    };
    let (messages, end) = however_cut(bytes, |pieces, check| {
        let mut decoder = ResponseDecoder::new();
        let mut buffer = BytesMut::new();
        read(pieces, |part| {
            buffer.extend_from_slice(part);
            let Some(head) = decoder.decode(&mut buffer, asked, &Limits::default())? else {
                return Ok(Step::More(decoder.has_begun()));
            };
            if check {
                check_response(&head, asked);
            }
            let tunnel = head.status() == 101 || (asked == Asked::Connect && matches!(head.status(), 200..300));
            let last = tunnel || (!head.keep_alive() && !head.is_interim());
            Ok(Step::Head { text: show_response(&head), framing: head.framing(), last, rest: buffer.split() })
        })
    });
    Shape::of((
        asked_number(asked),
        messages.len(),
        end,
        messages.first().map(|one| one.head.get(..1).map(str::to_owned)),
    ))
}

/// What is read of the bytes, which must be the same however they are cut; `check` is asked for once.
fn however_cut(bytes: &[u8], mut read: impl FnMut(&[&[u8]], bool) -> (Vec<Message>, End)) -> (Vec<Message>, End) {
    let mut whole = None;
    for pieces in cuts(bytes) {
        let read = read(&pieces, whole.is_none());
        match &whole {
            None => whole = Some(read),
            Some(whole) => assert_eq!(&read, whole, "cut in {} pieces", pieces.len()),
        }
    }
    whole.unwrap_or((Vec::new(), End::Clean))
}

fn asked_number(asked: Asked) -> u8 {
    match asked {
        Asked::Head => 0,
        Asked::Connect => 1,
        Asked::Other => 2,
    }
}

/// What the next bytes came to.
enum Step {
    /// More bytes are needed; whether a head has begun.
    More(bool),
    /// A head, what it says, and the bytes behind it.
    Head { text: String, framing: Framing, last: bool, rest: BytesMut },
}

/// Reads messages from a stream that arrives in pieces. `decode` gets the next bytes.
fn read(pieces: &[&[u8]], mut decode: impl FnMut(&[u8]) -> Result<Step, Refused>) -> (Vec<Message>, End) {
    let mut messages: Vec<Message> = Vec::new();
    let mut body: Option<BodyScanner> = None;
    let mut last = false;
    let mut end = End::Clean;
    for piece in pieces {
        let mut rest = BytesMut::from(*piece);
        loop {
            if let (Some(scanner), Some(message)) = (&mut body, messages.last_mut()) {
                while !rest.is_empty() && !scanner.is_done() {
                    match scanner.piece(&rest) {
                        Ok(piece) => {
                            assert!(piece.len > 0 && piece.len <= rest.len(), "{piece:?} of {}", rest.len());
                            if piece.is_payload {
                                message.payload.extend_from_slice(&rest[..piece.len]);
                            }
                            rest.advance(piece.len);
                        }
                        Err(refused) => return (messages, End::Refused(refused.status, refused.reason)),
                    }
                }
                if !scanner.is_done() {
                    end = if scanner.may_end() { End::Last } else { End::InBody };
                    break;
                }
                body = None;
                if last || messages.len() >= MESSAGES {
                    return (messages, End::Last);
                }
            }
            match decode(&rest) {
                Err(refused) => return (messages, End::Refused(refused.status, refused.reason)),
                Ok(Step::More(begun)) => {
                    end = if begun { End::InHead } else { End::Clean };
                    break;
                }
                Ok(Step::Head { text, framing, last: is_last, rest: behind }) => {
                    messages.push(Message { head: text, payload: Vec::new() });
                    last = is_last;
                    body = Some(BodyScanner::new(framing));
                    rest = behind;
                }
            }
        }
    }
    (messages, end)
}

fn show_request(head: &RequestHead) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let headers: Vec<String> = head.headers().map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
    format!(
        "{} {} {} {:?} {} {:?} {:?} {} {} {:?} {headers:?}",
        text(head.method()),
        text(head.target()),
        text(head.path()),
        head.query().map(text),
        text(head.authority()),
        head.version(),
        head.framing(),
        head.keep_alive(),
        head.expect_continue(),
        head.upgrade().map(text),
    )
}

fn show_response(head: &ResponseHead) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let headers: Vec<String> = head.headers().map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
    format!(
        "{} {} {:?} {:?} {} {:?} {headers:?}",
        head.status(),
        text(head.reason()),
        head.version(),
        head.framing(),
        head.keep_alive(),
        head.upgrade().map(text),
    )
}

/// Framing as a plain reader of the header lines finds it; `None` where a strict one would not take them.
fn plain_framing<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Framing> {
    let mut found = None;
    for (name, value) in headers {
        let framing = if name.eq_ignore_ascii_case(b"content-length") {
            let digits = std::str::from_utf8(value).ok()?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            Framing::Length(digits.parse().ok()?)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            Framing::Chunked
        } else {
            continue;
        };
        if found.replace(framing).is_some() {
            return None;
        }
    }
    Some(found.unwrap_or(Framing::None))
}

const FRAMING_AND_HOPS: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "expect",
    "trailer",
    "http2-settings",
];

/// Headers that one hop passes to the next: names that are none of the connection's, and values.
fn passed<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(Vec<u8>, Vec<u8>)> {
    headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
        .filter(|(name, _)| !FRAMING_AND_HOPS.iter().any(|own| own.as_bytes() == name))
        .collect()
}

/// Whether the first is the second with some left out.
fn is_part_of<T: PartialEq>(some: &[T], all: &[T]) -> bool {
    let mut rest = all.iter();
    some.iter().all(|one| rest.any(|other| other == one))
}

fn check_request(head: &RequestHead) {
    assert_eq!(plain_framing(head.headers()), Some(head.framing()), "framing");
    for (name, value) in head.headers() {
        assert!(
            !name.is_empty() && !name.iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':'),
            "a header name"
        );
        assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "a header value");
    }
    let mut out = BytesMut::new();
    let mut how = ForwardRequest::unchanged(head);
    if head.authority().is_empty() {
        how.authority = Some(b"a");
    }
    write_request(&mut out, head, &[], &how);
    let limits = Limits::default();
    if out.len() > usize::from(limits.max_head) {
        return;
    }
    let sent = out.clone();
    let again = RequestDecoder::new().decode(&mut out, &limits);
    let again = match again {
        Ok(Some(again)) => again,
        other => panic!("what goes out is {other:?}: {}", sent.escape_ascii()),
    };
    assert!(out.is_empty(), "more than one head goes out: {}", sent.escape_ascii());
    assert_eq!(again.version(), Version::Http11);
    assert_eq!(again.method(), head.method());
    assert_eq!((again.path(), again.query()), (head.path(), head.query()), "{}", sent.escape_ascii());
    assert_eq!(again.authority(), how.authority.unwrap_or(head.authority()));
    assert_eq!(again.framing(), head.framing());
    assert_eq!(again.upgrade(), head.upgrade());
    assert_eq!(again.expect_continue(), head.expect_continue());
    assert_eq!(again.header("host").count(), 1, "one Host goes out: {}", sent.escape_ascii());
    let (sent_on, received) = (passed(again.headers()), passed(head.headers()));
    assert!(is_part_of(&sent_on, &received), "{sent_on:?} of {received:?}");
    let mut twice = BytesMut::new();
    write_request(&mut twice, &again, &[], &ForwardRequest::unchanged(&again));
    assert_eq!(twice, sent, "the second hop changes it");
}

fn check_response(head: &ResponseHead, asked: Asked) {
    let plain = plain_framing(head.headers());
    let bodiless = matches!(head.status(), 100..200 | 204 | 304)
        || asked == Asked::Head
        || (asked == Asked::Connect && matches!(head.status(), 200..300));
    let expected = match plain {
        None => panic!("framing that a strict reader does not take"),
        Some(_) if bodiless => Framing::None,
        Some(Framing::None) => Framing::UntilClose,
        Some(framing) => framing,
    };
    assert_eq!(head.framing(), expected);
    for client in [Version::Http11, Version::Http10] {
        let how = ForwardResponse::new(head, client, head.keep_alive());
        let mut out = BytesMut::new();
        write_response(&mut out, head, &[], &how);
        let limits = Limits::default();
        if out.len() > usize::from(limits.max_head) {
            return;
        }
        let sent = out.clone();
        let again = match ResponseDecoder::new().decode(&mut out, asked, &limits) {
            Ok(Some(again)) => again,
            other => panic!("what goes out is {other:?}: {}", sent.escape_ascii()),
        };
        assert!(out.is_empty(), "more than one head goes out: {}", sent.escape_ascii());
        assert_eq!((again.status(), again.reason()), (head.status(), head.reason()), "{}", sent.escape_ascii());
        assert_eq!(again.framing(), how.framing, "{}", sent.escape_ascii());
        if !again.is_interim() && client == Version::Http11 {
            assert_eq!(again.keep_alive(), how.keep_alive, "{}", sent.escape_ascii());
        }
        let (sent_on, received) = (passed(again.headers()), passed(head.headers()));
        assert!(is_part_of(&sent_on, &received), "{sent_on:?} of {received:?}");
    }
}

/// What a chunked body comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    Whole { payload: Vec<u8>, len: usize },
    Cut { payload: Vec<u8> },
    Refused(&'static str),
}

fn scanned(pieces: &[&[u8]], by_piece: bool) -> Body {
    let mut scanner = BodyScanner::new(Framing::Chunked);
    let (mut payload, mut len) = (Vec::new(), 0);
    for bytes in pieces {
        let mut rest = *bytes;
        while !rest.is_empty() && !scanner.is_done() {
            if by_piece {
                match scanner.piece(rest) {
                    Err(refused) => return Body::Refused(refused.reason),
                    Ok(piece) => {
                        if piece.is_payload {
                            payload.extend_from_slice(&rest[..piece.len]);
                        }
                        len += piece.len;
                        rest = &rest[piece.len..];
                    }
                }
            } else {
                match scanner.scan(rest) {
                    Err(refused) => return Body::Refused(refused.reason),
                    Ok(scanned) => {
                        assert!(scanned.done || scanned.len == rest.len(), "a scanner that leaves bytes behind");
                        payload.resize(payload.len() + usize::try_from(scanned.payload).unwrap_or(0), b'?');
                        len += scanned.len;
                        rest = &rest[scanned.len..];
                    }
                }
            }
        }
    }
    if scanner.is_done() { Body::Whole { payload, len } } else { Body::Cut { payload } }
}

/// The same, line by line; `None` where the end is missing or it is malformed.
fn plain(mut bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, rest) = bytes.split_at(end);
        *bytes = &rest[2..];
        Some(line)
    }
    let all = bytes.len();
    let mut payload = Vec::new();
    loop {
        let head = line(&mut bytes)?;
        let digits = head.split(|byte| *byte == b';').next()?;
        if !head[digits.len()..].iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            return None;
        }
        if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        payload.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?;
        bytes = bytes.strip_prefix(b"\r\n")?;
    }
    loop {
        let trailer = line(&mut bytes)?;
        if trailer.is_empty() {
            return Some((payload, all - bytes.len()));
        }
        let colon = trailer.iter().position(|byte| *byte == b':')?;
        let (name, value) = trailer.split_at(colon);
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if name.is_empty()
            || !name.iter().all(token)
            || value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 127)
        {
            return None;
        }
    }
}

fn chunks(bytes: &[u8]) -> Shape {
    let ours = scanned(&[bytes], true);
    for pieces in cuts(bytes) {
        assert_eq!(scanned(&pieces, true), ours, "cut in {} pieces", pieces.len());
        let sizes = scanned(&pieces, false);
        let same = match (&sizes, &ours) {
            (Body::Whole { payload, len }, Body::Whole { payload: other, len: other_len }) => {
                payload.len() == other.len() && len == other_len
            }
            (Body::Cut { payload }, Body::Cut { payload: other }) => payload.len() == other.len(),
            (one, other) => one == other,
        };
        assert!(same, "scanned in {} pieces: {sizes:?} and not {ours:?}", pieces.len());
    }
    let plain = plain(bytes);
    match (&ours, plain) {
        (Body::Whole { payload, len }, Some((other, other_len))) => assert_eq!((payload, *len), (&other, other_len)),
        (Body::Whole { .. }, None) => panic!("taken, although a plain reader does not: {ours:?}"),
        (Body::Cut { .. }, Some(_)) => panic!("a plain reader finds an end"),
        (Body::Refused(reason), Some(_)) => assert!(
            [
                "chunk extensions are too long",
                "the trailers are too long",
                "too many trailers",
                "a trailer that only a head may have"
            ]
            .contains(reason),
            "refused, although a plain reader takes it: {reason}"
        ),
        (_, None) => {}
    }
    match ours {
        Body::Whole { payload, len } => Shape::of((0, magnitude(payload.len()), magnitude(len))),
        Body::Cut { payload } => Shape::of((1, magnitude(payload.len()))),
        Body::Refused(reason) => Shape::of((2, reason)),
    }
}
