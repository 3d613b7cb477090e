//! Request heads.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};

use super::{framing, lines::Lines};
use crate::http::{
    Framing, Limits, Refused, RequestHead, Version, authority, chars,
    fields::{Fields, Known, Located, Span},
    head::{Path, Scheme},
    limits::{MAX_EMPTY_LINES, MAX_FIELDS, MAX_METHOD_AND_VERSION},
    path,
};

/// Takes request heads out of a connection's read buffer.
#[derive(Debug, Default)]
pub struct RequestDecoder {
    lines: Lines,
    empty_lines: u8,
}

impl RequestDecoder {
    /// A decoder for a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one head from the front of `buffer`, which must hold everything received since the last head and its body.
    /// `None`: read more and call again with the longer buffer. How the bytes were cut makes no difference, and each is read a
    /// bounded number of times.
    ///
    /// # Errors
    /// [`Refused`] with status 400, 414, 417, 431, 501 or 505: answer with it and close.
    pub fn decode(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Option<RequestHead>, Refused> {
        if !self.lines.has_begun() && !self.skip_empty_lines(buffer)? {
            return Ok(None);
        }
        // An ordinary head comes whole in one read: parsed at once. Only a head that is incomplete or wrong is searched for its
        // end first, so that the answer to it does not depend on how it was cut.
        if !self.lines.has_begun()
            && let Ok(Some(parsed)) = parse(buffer, limits)
        {
            return Ok(Some(self.take(parsed, buffer)));
        }
        let max_first_line = usize::from(limits.max_target).saturating_add(MAX_METHOD_AND_VERSION);
        if !self.lines.complete(buffer, usize::from(limits.max_head), max_first_line)? {
            return Ok(None);
        }
        match parse(buffer, limits)? {
            Some(parsed) => Ok(Some(self.take(parsed, buffer))),
            None => Err(Refused::bad_request("the request is malformed")),
        }
    }

    /// Whether a head has begun to arrive: end of stream is an error then, and not a quiet goodbye.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.lines.has_begun()
    }

    /// False if more bytes are needed to tell.
    fn skip_empty_lines(&mut self, buffer: &mut BytesMut) -> Result<bool, Refused> {
        loop {
            match buffer.get(..2).unwrap_or(buffer) {
                b"\r\n" if self.empty_lines == MAX_EMPTY_LINES => {
                    return Err(Refused::bad_request("too many empty lines before the request"));
                }
                b"\r\n" => {
                    buffer.advance(2);
                    self.empty_lines = self.empty_lines.saturating_add(1);
                }
                [] | b"\r" => return Ok(false),
                [first, ..] if chars::is_token(*first) => return Ok(true),
                _ => return Err(Refused::bad_request("this is not an HTTP request")),
            }
        }
    }

    fn take(&mut self, parsed: Parsed, buffer: &mut BytesMut) -> RequestHead {
        *self = Self::default();
        let bytes = buffer.split_to(parsed.len).freeze();
        parsed.into_head(bytes)
    }
}

/// A head's ranges while its bytes are still in the read buffer.
struct Parsed {
    len: usize,
    fields: Located,
    line: Line,
    version: Version,
    said: framing::Said,
    keep_alive: bool,
    expect_continue: bool,
    te_trailers: bool,
    upgrade: Option<Span>,
    authority: Option<Span>,
    host_stands: bool,
}

impl Parsed {
    fn into_head(self, bytes: Bytes) -> RequestHead {
        let line_stands =
            self.line.stands && self.version == Version::Http11 && matches!(self.line.path, Path::Received(_));
        RequestHead {
            fields: self.fields.into_fields(bytes),
            method: self.line.method,
            target: self.line.target,
            path: self.line.path,
            query: self.line.query,
            authority: self.authority,
            scheme: Scheme::Http,
            upgrade: self.upgrade,
            version: self.version,
            framing: self.said.framing.unwrap_or(Framing::None),
            keep_alive: self.keep_alive,
            expect_continue: self.expect_continue,
            te_trailers: self.te_trailers,
            host_stands: self.host_stands,
            line_stands,
            framing_stands: self.said.canonical,
        }
    }
}

fn parse(buffer: &[u8], limits: &Limits) -> Result<Option<Parsed>, Refused> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let headers = storage.get_mut(..limits.max_headers.min(MAX_FIELDS)).unwrap_or_default();
    let len = match request.parse_with_uninit_headers(buffer, headers) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(error, buffer)),
    };
    if len > usize::from(limits.max_head) {
        return Err(Refused { status: 431, reason: "the head is too long" });
    }
    let head = buffer.get(..len).unwrap_or(buffer);
    let version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let fields = Fields::locate(head, request.headers)?;
    let first_line = request
        .headers
        .first()
        .map_or(len.saturating_sub(2), |first| Span::of(head, first.name.as_bytes()).map_or(0, Span::start));
    let line =
        Line::read(head, request.method.unwrap_or_default(), request.path.unwrap_or_default(), first_line, limits)?;
    judge(head, fields, line, version).map(Some)
}

/// The head of a request that came as a list of headers: its text as it would be in HTTP/1.1, and where its lines are. What is a host, a
/// path or a header there is one here. `method` and `target` are the lengths of the text's first two words.
pub(in crate::http) fn of_lines(
    text: BytesMut,
    fields: Located,
    method: usize,
    target: usize,
    limits: &Limits,
) -> Result<RequestHead, Refused> {
    const TOO_LONG: Refused = Refused { status: 431, reason: "the head is too long" };
    if text.len() > usize::from(limits.max_head) {
        return Err(TOO_LONG);
    }
    if fields.len() > limits.max_headers {
        return Err(Refused { status: 431, reason: "too many headers" });
    }
    let word = |from: usize, len: usize| {
        let word = text.get(from..from.saturating_add(len)).and_then(|word| std::str::from_utf8(word).ok());
        word.ok_or(Refused::bad_request("the request is malformed"))
    };
    let (method, target) = (word(0, method)?, word(method.saturating_add(1), target)?);
    let first_line = fields.start().unwrap_or(text.len().saturating_sub(2));
    let line = Line::read(&text, method, target, first_line, limits)?;
    let parsed = judge(&text, fields, line, Version::Http11)?;
    Ok(parsed.into_head(text.freeze()))
}

/// What is demanded of a request whose lines were found.
fn judge(head: &[u8], mut fields: Located, line: Line, version: Version) -> Result<Parsed, Refused> {
    let host = fields.only(Known::Host, "several Host headers")?;
    if host.is_none() && version == Version::Http11 {
        return Err(Refused::bad_request("no Host header"));
    }
    // An empty host is syntax, but no http request can mean it (RFC 9110, 4.2.1); HTTP/1.0 did not know the header.
    let host = host.filter(|host| version == Version::Http11 || !host.get(head).is_empty());
    if let Some(host) = host {
        authority::split(host.get(head)).map_err(Refused::bad_request)?;
    }
    let authority = line.authority.or(host);
    let host_stands = match (host, authority) {
        (Some(host), Some(authority)) => host == authority || host.get(head) == authority.get(head),
        _ => false,
    };

    let said = framing::read(&fields, head, version)?;
    let is_connect = line.method.get(head) == b"CONNECT";
    if is_connect && !said.framing.is_none_or(Framing::is_empty) {
        return Err(Refused::bad_request("a CONNECT request with a body"));
    }
    let wishes = fields.connection(head)?;
    let keep_alive = if version == Version::Http10 { wishes.keep_alive } else { true } && !wishes.close;
    let expect_continue = match fields.only(Known::Expect, "several Expect headers")? {
        None => false,
        Some(_) if version == Version::Http10 => false,
        Some(value) if value.get(head).eq_ignore_ascii_case(b"100-continue") => true,
        Some(_) => return Err(Refused { status: 417, reason: "an expectation other than 100-continue" }),
    };
    let te_trailers = fields
        .known(Known::Te)
        .flat_map(|value| chars::list(value.get(head)))
        .any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    let upgrade = if wishes.upgrade && version == Version::Http11 && !is_connect {
        fields.upgrade().filter(|upgrade| may_upgrade(upgrade.get(head)))
    } else {
        None
    };
    Ok(Parsed {
        len: head.len(),
        fields,
        line,
        version,
        said,
        keep_alive,
        expect_continue,
        te_trailers,
        upgrade,
        authority,
        host_stands,
    })
}

/// `h2c` would carry requests past every rule; a list of protocols that holds it is passed over.
fn may_upgrade(protocols: &[u8]) -> bool {
    let mut all = chars::list(protocols);
    !protocols.is_empty() && all.all(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"))
}

/// The request line.
struct Line {
    method: Span,
    target: Span,
    path: Path,
    query: Option<Span>,
    /// From an absolute target, or `CONNECT`'s.
    authority: Option<Span>,
    /// The target is in the form in which it is forwarded.
    stands: bool,
}

impl Line {
    /// `end`: where the first header line begins.
    fn read(head: &[u8], method: &str, target: &str, end: usize, limits: &Limits) -> Result<Self, Refused> {
        const OUTSIDE: Refused = Refused::bad_request("the request is malformed");
        const TOO_LONG: Refused = Refused { status: 414, reason: "the request target is too long" };
        let target = target.as_bytes();
        if target.len() > usize::from(limits.max_target)
            || end > usize::from(limits.max_target).saturating_add(MAX_METHOD_AND_VERSION + 2)
        {
            return Err(TOO_LONG);
        }
        let span = |part: &[u8]| Span::of(head, part).ok_or(OUTSIDE);
        let (method_at, target_at) = (span(method.as_bytes())?, span(target)?);
        // METHOD SP TARGET SP HTTP/1.x CR LF, single spaces
        if method_at.start() != 0
            || target_at.start() != method_at.end().saturating_add(1)
            || end != target_at.end().saturating_add(" HTTP/1.1\r\n".len())
        {
            return Err(OUTSIDE);
        }
        let mut line = Self {
            method: method_at,
            target: target_at,
            path: Path::Received(Span::default()),
            query: None,
            authority: None,
            stands: true,
        };
        if method == "CONNECT" {
            return match authority::split(target) {
                Ok((_, Some(_))) => Ok(Self { authority: Some(target_at), ..line }),
                Ok((_, None)) => Err(Refused::bad_request("the target of CONNECT has no port")),
                Err(reason) => Err(Refused::bad_request(reason)),
            };
        }
        let path_and_query = match target {
            [b'/', ..] => target,
            b"*" if method == "OPTIONS" => {
                line.path = Path::Received(target_at);
                return Ok(line);
            }
            _ => {
                let rest = strip_scheme(target).ok_or(Refused::bad_request("the request target has no valid form"))?;
                let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
                let (authority, rest) = rest.split_at(end);
                authority::split(authority).map_err(Refused::bad_request)?;
                line.authority = Some(span(authority)?);
                line.stands = false;
                rest
            }
        };
        let (path, query) = match memchr::memchr(b'?', path_and_query) {
            Some(at) => {
                let (path, query) = path_and_query.split_at(at);
                (path, query.get(1..))
            }
            None => (path_and_query, None),
        };
        if let Some(query) = query {
            if !query.iter().all(|byte| matches!(byte, b'!'..=b'~') && *byte != b'#') {
                return Err(Refused::bad_request("the query has a character that no query may have"));
            }
            line.query = Some(span(query)?);
        }
        line.path = if path.is_empty() {
            // Only an absolute target can have none (RFC 9112, 3.2.1 and 3.2.4).
            let whole = method == "OPTIONS" && query.is_none();
            Path::Rewritten(Bytes::from_static(if whole { b"*" } else { b"/" }))
        } else {
            match path::normalise(path) {
                Ok(None) => Path::Received(span(path)?),
                Ok(Some(path)) => Path::Rewritten(path.into()),
                Err(error) => return Err(Refused::bad_request(error.reason())),
            }
        };
        Ok(line)
    }
}

fn strip_scheme(target: &[u8]) -> Option<&[u8]> {
    [&b"http://"[..], b"https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// The status and the reason for what the parser did not like.
fn malformed(error: httparse::Error, buffer: &[u8]) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused { status: 431, reason: "too many headers" },
        httparse::Error::HeaderName => Refused::bad_request("a header name is malformed"),
        httparse::Error::HeaderValue => Refused::bad_request("a header value has a control character"),
        httparse::Error::Version if is_other_version(buffer) => {
            Refused { status: 505, reason: "an HTTP version other than 1.0 and 1.1" }
        }
        httparse::Error::Version => {
            Refused::bad_request("the request line does not end with one space and the HTTP version")
        }
        _ => Refused::bad_request("the request is malformed"),
    }
}

/// Whether the first line is one of HTTP with a version that we do not speak.
fn is_other_version(buffer: &[u8]) -> bool {
    let line = buffer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    match line {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => {
            major.is_ascii_digit() && minor.is_ascii_digit() && !matches!((major, minor), (b'1', b'0' | b'1'))
        }
        _ => false,
    }
}
