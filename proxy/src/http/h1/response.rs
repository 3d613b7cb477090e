//! Response heads.

use std::mem::MaybeUninit;

use bytes::BytesMut;

use super::{framing, lines::Lines};
use crate::http::{
    Asked, Framing, Limits, Refused, ResponseHead, Version,
    fields::{Fields, Located, Span},
    limits::MAX_FIELDS,
};

/// Takes response heads out of an upstream connection's read buffer.
#[derive(Debug, Default)]
pub struct ResponseDecoder {
    lines: Lines,
}

impl ResponseDecoder {
    /// A decoder for a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one head from the front of `buffer`; `asked` is what it answers. `None`: read more and call again. After an interim
    /// head ([`ResponseHead::is_interim`]) another follows.
    ///
    /// # Errors
    /// [`Refused`], status 502: the upstream's connection must be closed.
    pub fn decode(
        &mut self,
        buffer: &mut BytesMut,
        asked: Asked,
        limits: &Limits,
    ) -> Result<Option<ResponseHead>, Refused> {
        self.try_decode(buffer, asked, limits).map_err(Refused::as_bad_gateway)
    }

    /// Whether a head has begun to arrive.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.lines.has_begun()
    }

    fn try_decode(
        &mut self,
        buffer: &mut BytesMut,
        asked: Asked,
        limits: &Limits,
    ) -> Result<Option<ResponseHead>, Refused> {
        match buffer.first() {
            None => return Ok(None),
            Some(b'H') => {}
            Some(_) => return Err(Refused::bad_request("the upstream's answer is not HTTP")),
        }
        // As with requests: whole heads at once, others searched for their end first.
        let mut parsed = if self.lines.has_begun() { None } else { parse(buffer, asked, limits).ok().flatten() };
        if parsed.is_none() {
            let max_head = usize::from(limits.max_head);
            if !self.lines.complete(buffer, max_head, max_head)? {
                return Ok(None);
            }
            parsed = parse(buffer, asked, limits)?;
        }
        let Some(parsed) = parsed else { return Err(MALFORMED) };
        self.lines = Lines::default();
        let bytes = buffer.split_to(parsed.len).freeze();
        Ok(Some(ResponseHead {
            fields: parsed.fields.into_fields(bytes),
            reason: parsed.reason,
            status: parsed.status,
            version: parsed.version,
            framing: parsed.framing,
            keep_alive: parsed.keep_alive,
            upgrade: parsed.upgrade,
            framing_stands: parsed.framing_stands,
        }))
    }
}

const MALFORMED: Refused = Refused::bad_request("the upstream's answer is malformed");

struct Parsed {
    len: usize,
    fields: Located,
    status: u16,
    reason: Span,
    version: Version,
    framing: Framing,
    framing_stands: bool,
    keep_alive: bool,
    upgrade: Option<Span>,
}

fn parse(buffer: &[u8], asked: Asked, limits: &Limits) -> Result<Option<Parsed>, Refused> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let headers = storage.get_mut(..limits.max_headers.min(MAX_FIELDS)).unwrap_or_default();
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, buffer, headers);
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::bad_request("the upstream sent too many headers")),
        Err(httparse::Error::HeaderName) => {
            return Err(Refused::bad_request("the upstream sent a malformed header name"));
        }
        Err(httparse::Error::HeaderValue) => {
            return Err(Refused::bad_request("the upstream sent a malformed header value"));
        }
        Err(_) => return Err(MALFORMED),
    };
    if len > usize::from(limits.max_head) {
        return Err(Refused::bad_request("the upstream's head is too long"));
    }
    let head = buffer.get(..len).unwrap_or(buffer);
    let version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let status = response.code.filter(|code| *code >= 100).ok_or(MALFORMED)?;
    let mut fields = Fields::locate(head, response.headers)?;
    let line_end = response
        .headers
        .first()
        .map_or(len.saturating_sub(2), |first| Span::of(head, first.name.as_bytes()).map_or(0, Span::start));
    // HTTP/1.x SP 3DIGIT, then CR LF or SP reason CR LF
    let reason = match head.get("HTTP/1.1 200".len()..line_end.saturating_sub(2)) {
        Some([]) => Span::default(),
        Some([b' ', reason @ ..]) => Span::of(head, reason).ok_or(MALFORMED)?,
        _ => return Err(MALFORMED),
    };

    let said = framing::read(&fields, head, version)?;
    let bodiless = matches!(status, 100..200 | 204) || (asked == Asked::Connect && matches!(status, 200..300));
    let (framing, framing_stands) = if bodiless {
        (Framing::None, false) // such a response must not carry framing headers (RFC 9112, 6.3)
    } else if status == 304 || asked == Asked::Head {
        (Framing::None, said.canonical)
    } else {
        (said.framing.unwrap_or(Framing::UntilClose), said.canonical)
    };
    let wishes = fields.connection(head)?;
    let persistent = if version == Version::Http10 { wishes.keep_alive } else { true };
    let keep_alive = persistent && !wishes.close && framing != Framing::UntilClose;
    let upgrade = match status {
        101 if !wishes.upgrade => None,
        101 | 426 => fields.upgrade(),
        _ => None,
    };
    Ok(Some(Parsed { len, fields, status, reason, version, framing, framing_stands, keep_alive, upgrade }))
}
