//! Writes heads: received lines that nothing changes are copied in runs as long as possible.

use bytes::{BufMut, BytesMut};

use crate::http::{
    Asked, Edit, Edits, Framing, RequestHead, ResponseHead, Version, chars, edits,
    fields::{Field, Fields, Known},
};

/// The answer to `Expect: 100-continue` when the body is wanted.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What ends a chunked body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Room for what a head gains beside its edits: framing, connection, host.
const SPARE: usize = 128;

/// How a request goes to the next hop.
#[derive(Debug, Clone, Copy)]
pub struct ForwardRequest<'a> {
    /// Framing of the body that is sent: that of the received head, unless the body is changed.
    pub framing: Framing,
    /// Whether the wish to upgrade is passed on.
    pub upgrade: bool,
    /// Path and query instead of the normalised ones; checked by the caller.
    pub path_and_query: Option<&'a [u8]>,
    /// Host instead of the received one; checked by the caller. To be given where [`RequestHead::authority`] is empty (HTTP/1.0):
    /// what goes out is HTTP/1.1, whose readers refuse an empty one, Weir's among them.
    pub authority: Option<&'a [u8]>,
}

impl<'a> ForwardRequest<'a> {
    /// As it was received: same body, same path, same host; the wish to upgrade is passed on.
    #[must_use]
    pub fn unchanged(head: &RequestHead) -> Self {
        Self { framing: head.framing(), upgrade: true, path_and_query: None, authority: None }
    }
}

/// How a response goes to the client.
#[derive(Debug, Clone, Copy)]
pub struct ForwardResponse {
    /// Framing of the body that is sent, see [`ForwardResponse::new`].
    pub framing: Framing,
    /// Whether the client's connection stays open.
    pub keep_alive: bool,
    /// Version of the request.
    pub client: Version,
}

impl ForwardResponse {
    /// The body as it was received, but for an HTTP/1.0 client without chunks ([`Framing::UntilClose`]: the caller sends the
    /// payload only, see [`super::BodyScanner::piece`]). `keep_alive` is what the caller wants and the framing may forbid.
    #[must_use]
    pub fn new(head: &ResponseHead, client: Version, keep_alive: bool) -> Self {
        let framing = match head.framing() {
            Framing::Chunked if client == Version::Http10 => Framing::UntilClose,
            framing => framing,
        };
        Self { framing, keep_alive: keep_alive && framing != Framing::UntilClose, client }
    }
}

/// Writes the head of a request as HTTP/1.1: hop-by-hop headers dropped, the normalised path, exactly one `Host`, framing headers
/// as `how` says, `edits` applied one list after the other.
pub fn write_request(out: &mut BytesMut, head: &RequestHead, edits: &[&Edits], how: &ForwardRequest<'_>) {
    out.reserve(head.len().saturating_add(SPARE));
    let host_stands = head.host_stands && how.authority.is_none();
    let mut run = Run::new(out, &head.fields);
    if head.line_stands && how.path_and_query.is_none() {
        run.from = 0;
    } else {
        run.out.put_slice(head.method());
        run.out.put_u8(b' ');
        write_target(run.out, head, how.path_and_query);
        run.out.put_slice(b" HTTP/1.1\r\n");
    }
    if !host_stands {
        run.skip_to(head.fields.start(), head.fields.start());
        write_line(run.out, b"host", how.authority.unwrap_or(head.authority()));
    }
    let framing_stands = head.framing_stands && how.framing == head.framing;
    run.fields(edits, |field| match field.known {
        Known::Other => !field.nominated,
        Known::Host => host_stands,
        Known::ContentLength | Known::TransferEncoding => framing_stands,
        // The next hop reads HTTP/1.1 and would answer with a 100 that the client does not understand.
        Known::Expect => head.version != Version::Http10,
        Known::Connection | Known::HopByHop | Known::Te | Known::Upgrade => false,
    });
    if !framing_stands {
        write_framing(run.out, how.framing);
    }
    if head.te_trailers {
        run.out.put_slice(b"te: trailers\r\n");
    }
    match head.upgrade().filter(|_| how.upgrade) {
        Some(upgrade) => {
            write_line(run.out, b"upgrade", upgrade);
            run.out.put_slice(if head.te_trailers {
                b"connection: upgrade, te\r\n"
            } else {
                b"connection: upgrade\r\n"
            });
        }
        None if head.te_trailers => run.out.put_slice(b"connection: te\r\n"),
        None => {}
    }
    run.finish(edits);
}

/// Writes the head of a response as HTTP/1.1, interim heads included: hop-by-hop headers dropped, framing headers as `how` says,
/// `edits` applied one list after the other.
pub fn write_response(out: &mut BytesMut, head: &ResponseHead, edits: &[&Edits], how: &ForwardResponse) {
    out.reserve(head.len().saturating_add(SPARE));
    let mut run = Run::new(out, &head.fields);
    if head.version == Version::Http11 {
        run.from = 0;
    } else {
        write_status_line(run.out, head.status, head.reason());
    }
    let framing_stands = head.framing_stands && how.framing == head.framing;
    run.fields(edits, |field| match field.known {
        Known::Other => !field.nominated,
        Known::ContentLength => framing_stands,
        Known::TransferEncoding => framing_stands && how.client != Version::Http10,
        Known::Host | Known::Expect => true,
        Known::Connection | Known::HopByHop | Known::Te | Known::Upgrade => false,
    });
    if !framing_stands && !matches!(head.status, 100..200 | 204 | 304) {
        write_framing(run.out, how.framing);
    }
    match head.upgrade() {
        Some(upgrade) => {
            write_line(run.out, b"upgrade", upgrade);
            let close = !how.keep_alive && head.status != 101;
            run.out.put_slice(if close { b"connection: upgrade, close\r\n" } else { b"connection: upgrade\r\n" });
        }
        None if !head.is_interim() => write_connection(run.out, how.keep_alive, how.client),
        None => {}
    }
    run.finish(edits);
}

/// A response that Weir itself gives.
#[derive(Debug, Clone, Copy)]
pub struct LocalResponse<'a> {
    /// Status code.
    pub status: u16,
    /// Header lines; one with a malformed name or value is left out.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Text for a person, `text/plain`. Not sent in answer to `HEAD`.
    pub body: &'a [u8],
    /// Whether the client's connection stays open.
    pub keep_alive: bool,
    /// Version of the request; HTTP/1.1 if there is none.
    pub client: Version,
    /// What is answered; `Other` if it is not known.
    pub asked: Asked,
}

/// Writes a whole response of Weir's own.
pub fn write_local_response(out: &mut BytesMut, response: &LocalResponse<'_>) {
    let reason = ::http::StatusCode::from_u16(response.status).ok().and_then(|status| status.canonical_reason());
    write_status_line(out, response.status, reason.unwrap_or_default().as_bytes());
    for (name, value) in response.headers {
        if !name.is_empty() && name.bytes().all(chars::is_token) && value.iter().all(|byte| chars::is_value(*byte)) {
            write_line(out, name.as_bytes(), value);
        }
    }
    let bodiless = matches!(response.status, 100..200 | 204 | 304);
    if !response.body.is_empty() && !bodiless {
        out.put_slice(b"content-type: text/plain; charset=utf-8\r\n");
    }
    if !bodiless {
        write_framing(out, Framing::Length(u64::try_from(response.body.len()).unwrap_or(u64::MAX)));
    }
    write_connection(out, response.keep_alive, response.client);
    out.put_slice(b"\r\n");
    if response.asked != Asked::Head && !bodiless {
        out.put_slice(response.body);
    }
}

/// Writes what stands before the bytes of a chunk; CR LF follows them. `len` must not be 0: that would end the body.
pub fn write_chunk_size(out: &mut BytesMut, len: usize) {
    debug_assert_ne!(len, 0);
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let value = u8::try_from(len >> (4 * digit) & 0xf).unwrap_or_default();
        out.put_u8(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    }
    out.put_slice(b"\r\n");
}

/// A copy of received lines: what lies between two dropped lines goes out in one piece.
struct Run<'a> {
    out: &'a mut BytesMut,
    fields: &'a Fields,
    /// Everything before it is written or dropped.
    from: usize,
}

impl<'a> Run<'a> {
    fn new(out: &'a mut BytesMut, fields: &'a Fields) -> Self {
        Self { out, fields, from: fields.start() }
    }

    /// Copies what lies before `start` and continues at `end`.
    fn skip_to(&mut self, start: usize, end: usize) {
        if let Some(kept) = self.fields.bytes.get(self.from..start) {
            self.out.put_slice(kept);
        }
        self.from = end;
    }

    fn fields(&mut self, edits: &[&Edits], keep: impl Fn(&Field) -> bool) {
        let fields = self.fields;
        let edited = edits.iter().any(|list| !list.is_empty());
        for (index, field) in fields.list().iter().enumerate() {
            if !keep(field) {
                self.skip_to(field.name.start(), fields.line_end(index));
            } else if edited
                && field.known == Known::Other
                && let Some(change) = edits::change(edits, field.name.get(&fields.bytes))
            {
                if change.drops {
                    self.skip_to(field.name.start(), fields.line_end(index));
                } else if edits::is_list(field.name.get(&fields.bytes)) && fields.is_last(index) {
                    self.skip_to(field.value.end(), fields.line_end(index));
                    let mut empty = field.value.get(&fields.bytes).is_empty();
                    for value in change.values() {
                        self.out.put_slice(if empty { b"" } else { b"," });
                        self.out.put_slice(value);
                        empty = false;
                    }
                    self.out.put_slice(b"\r\n");
                }
            }
        }
        self.skip_to(fields.end(), fields.end());
    }

    /// Writes the values that were not appended to a received line, and the empty line.
    fn finish(self, edits: &[&Edits]) {
        let all = || edits.iter().flat_map(|list| list.iter()).map(Edit::name);
        for (index, name) in all().enumerate() {
            if all().take(index).any(|earlier| earlier == name) {
                continue;
            }
            let Some(change) = edits::change(edits, name) else { continue };
            let values = change.values();
            if !edits::is_list(name) {
                values.iter().for_each(|value| write_line(self.out, name, value));
            } else if let Some((first, rest)) = values.split_first()
                && (change.drops || !self.fields.has(name))
            {
                self.out.put_slice(name);
                self.out.put_slice(b": ");
                self.out.put_slice(first);
                for value in rest {
                    self.out.put_u8(b',');
                    self.out.put_slice(value);
                }
                self.out.put_slice(b"\r\n");
            }
        }
        self.out.put_slice(b"\r\n");
    }
}

fn write_target(out: &mut BytesMut, head: &RequestHead, instead: Option<&[u8]>) {
    if let Some(path_and_query) = instead {
        return out.put_slice(path_and_query);
    }
    if head.is_connect() {
        return out.put_slice(head.authority());
    }
    out.put_slice(head.path());
    if let Some(query) = head.query() {
        out.put_u8(b'?');
        out.put_slice(query);
    }
}

fn write_line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn write_status_line(out: &mut BytesMut, status: u16, reason: &[u8]) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(itoa::Buffer::new().format(status).as_bytes());
    out.put_u8(b' ');
    out.put_slice(reason);
    out.put_slice(b"\r\n");
}

fn write_framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => write_line(out, b"content-length", itoa::Buffer::new().format(length).as_bytes()),
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
}

fn write_connection(out: &mut BytesMut, keep_alive: bool, client: Version) {
    match (keep_alive, client) {
        (false, _) => out.put_slice(b"connection: close\r\n"),
        (true, Version::Http10) => out.put_slice(b"connection: keep-alive\r\n"),
        (true, _) => {}
    }
}
