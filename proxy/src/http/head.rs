//! The heads of requests and responses as routing, policy and telemetry see them, whichever codec read them.

use std::borrow::Cow;

use bytes::Bytes;

use super::fields::{Fields, Span};

/// Protocol version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, and no header speaks of one.
    None,
    /// Exactly this many bytes. A length of 0 is said on the wire, unlike [`Framing::None`].
    Length(u64),
    /// Chunks, then trailers.
    Chunked,
    /// Until the connection ends: responses only.
    UntilClose,
}

impl Framing {
    /// Whether no byte of a body follows the head.
    #[must_use]
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// What a response answers: it decides whether a body follows (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A `HEAD` request: never a body.
    Head,
    /// A `CONNECT` request: after a 2xx the connection is a tunnel.
    Connect,
    /// Any other request.
    Other,
}

/// The scheme that a request of HTTP/2 names; in HTTP/1.1 it is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// The path of a request: part of the received bytes, or what the normaliser made of it.
#[derive(Debug, Clone)]
pub(super) enum Path {
    Received(Span),
    Rewritten(Bytes),
}

/// The head of a request: everything before its body.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub(super) fields: Fields,
    pub(super) method: Span,
    pub(super) target: Span,
    pub(super) path: Path,
    pub(super) query: Option<Span>,
    pub(super) authority: Option<Span>,
    pub(super) scheme: Scheme,
    pub(super) upgrade: Option<Span>,
    pub(super) version: Version,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) expect_continue: bool,
    pub(super) te_trailers: bool,
    /// The received `Host` line says what is forwarded (the target is not in absolute form).
    pub(super) host_stands: bool,
    /// The received request line is what is forwarded.
    pub(super) line_stands: bool,
    /// The received framing headers are what is forwarded.
    pub(super) framing_stands: bool,
}

impl RequestHead {
    /// The method, in the letter case it came in (methods are case-sensitive).
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.method.get(&self.fields.bytes)
    }

    /// The request target as it was received; never to decide or to forward.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.target.get(&self.fields.bytes)
    }

    /// The normalised path without the query: `/…`, `*` (`OPTIONS` only), or empty (`CONNECT` only).
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match &self.path {
            Path::Received(span) => span.get(&self.fields.bytes),
            Path::Rewritten(path) => path,
        }
    }

    /// What follows the first `?`, without it; as it was received, nothing is decoded.
    #[must_use]
    pub fn query(&self) -> Option<&[u8]> {
        self.query.map(|query| query.get(&self.fields.bytes))
    }

    /// Path and query as rules compare them and as they are forwarded, so that a log tells what was decided on. For `CONNECT` the
    /// target. Allocates only where the received target is another text.
    #[must_use]
    pub fn path_and_query(&self) -> Cow<'_, [u8]> {
        let (target, path, query) = (self.target(), self.path(), self.query());
        let len = path.len().saturating_add(query.map_or(0, |query| query.len().saturating_add(1)));
        if path.is_empty() || (target.len() == len && target.starts_with(path)) {
            return Cow::Borrowed(target);
        }
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(path);
        if let Some(query) = query {
            out.push(b'?');
            out.extend_from_slice(query);
        }
        Cow::Owned(out)
    }

    /// `host[:port]` from an absolute target, else from the `Host` header. Empty only for an HTTP/1.0 request without one.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.authority.map(|authority| authority.get(&self.fields.bytes)).unwrap_or_default()
    }

    /// The host of [`Self::authority`] without its port; compare it with [`super::authority::same_host`].
    #[must_use]
    pub fn host(&self) -> &[u8] {
        super::authority::split(self.authority()).map(|(host, _)| host).unwrap_or_default()
    }

    /// The scheme, as a request of HTTP/2 names it.
    pub(super) fn scheme(&self) -> &'static [u8] {
        match self.scheme {
            Scheme::Http => b"http",
            Scheme::Https => b"https",
        }
    }

    /// Version of the received message.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// How the end of the body is known: never [`Framing::UntilClose`].
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the sender wants to use its connection again.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the sender waits for `100 Continue` before it sends the body.
    #[must_use]
    pub fn expect_continue(&self) -> bool {
        self.expect_continue
    }

    /// The protocol that the sender wants to change to, such as `websocket`. Nothing of it may be forwarded as that protocol
    /// before a `101` has come. Never `h2c`: that wish is dropped (a cleartext HTTP/2 upgrade would pass by all rules).
    #[must_use]
    pub fn upgrade(&self) -> Option<&[u8]> {
        self.upgrade.map(|upgrade| upgrade.get(&self.fields.bytes))
    }

    /// Whether the method is `CONNECT`.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.method() == b"CONNECT"
    }

    /// What a response to this request has to know of it.
    #[must_use]
    pub fn asked(&self) -> Asked {
        match self.method() {
            b"HEAD" => Asked::Head,
            b"CONNECT" => Asked::Connect,
            _ => Asked::Other,
        }
    }

    /// All header lines in order, hop-by-hop ones included.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter()
    }

    /// All values of a header, in order; the letter case of `name` does not count.
    pub fn header<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.values(name)
    }

    /// Length of the head in bytes, as received.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fields.bytes.len()
    }

    /// Never true: a head has at least one line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.bytes.is_empty()
    }
}

/// The head of a response.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub(super) fields: Fields,
    pub(super) reason: Span,
    pub(super) status: u16,
    pub(super) version: Version,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) upgrade: Option<Span>,
    /// The received framing headers are what is forwarded; after `HEAD` and with a 304 though no body follows.
    pub(super) framing_stands: bool,
}

impl ResponseHead {
    /// Status code, 100 to 999.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The text behind the status; often empty.
    #[must_use]
    pub fn reason(&self) -> &[u8] {
        self.reason.get(&self.fields.bytes)
    }

    /// Version of the received message.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether another head of the same exchange follows: 1xx, but not 101. An HTTP/1.0 client must not be sent it.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// How the end of the body is known.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the sender keeps its connection open for another request.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// The protocol that a `101` changes to, or that a `426` asks for.
    #[must_use]
    pub fn upgrade(&self) -> Option<&[u8]> {
        self.upgrade.map(|upgrade| upgrade.get(&self.fields.bytes))
    }

    /// All header lines in order, hop-by-hop ones included.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter()
    }

    /// All values of a header, in order; the letter case of `name` does not count.
    pub fn header<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.values(name)
    }

    /// Length of the head in bytes, as received.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fields.bytes.len()
    }

    /// Never true: a head has at least one line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.bytes.is_empty()
    }
}

/// What follows a body.
#[derive(Debug, Clone)]
pub struct Trailers {
    pub(super) fields: Fields,
}

impl Trailers {
    /// All lines in order.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter()
    }

    /// All values of a header, in order; the letter case of `name` does not count.
    pub fn header<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.values(name)
    }

    /// Length in bytes, as in HTTP/1.1.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fields.bytes.len()
    }

    /// True without any line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.list().is_empty()
    }
}
