//! Lists of headers as the codec-neutral heads.
//!
//! A request becomes the text that it would be in HTTP/1.1, and is judged by the same function: what is a host, a path or a header there is
//! one here. What the protocol itself calls malformed (RFC 9113, 8.1.1) ends the stream; what is a request, but none that is served, is
//! answered.

use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

use super::hpack::HpackError;
use crate::http::{
    Asked, Framing, Limits, Refused, RequestHead, ResponseHead, Trailers, Version, chars,
    fields::{Known, Written},
    h1,
    head::Scheme,
};

/// Beyond so many bytes of decoded headers the connection ends: the tables must be followed even through a list that is refused, and that
/// costs.
const BOMB: usize = 16 * super::HEADER_LIST as usize;
/// Room for an ordinary head.
const USUAL: usize = 512;

/// Why a list is no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// The stream is to be ended for this reason; the text is for the log.
    Malformed(&'static str),
    /// A request that is to be answered.
    Refused(Refused),
}

/// What a list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    Trailers,
}

/// Pseudo headers; the number is their place.
const NAMES: [&[u8]; 5] = [b":method", b":scheme", b":authority", b":path", b":status"];
const METHOD: usize = 0;
const SCHEME: usize = 1;
const AUTHORITY: usize = 2;
const PATH: usize = 3;
const STATUS: usize = 4;

/// Reads one list.
pub(super) struct ListReader {
    kind: Kind,
    /// Values of pseudo headers one after the other, and where they lie.
    pseudo: SmallVec<[u8; 128]>,
    places: [Option<(usize, usize)>; NAMES.len()],
    lines: Written,
    /// Ordinary headers have begun.
    begun: bool,
    /// Lengths of method and target in the first line.
    words: (usize, usize),
    has_host: bool,
    /// A browser cuts its cookies into several fields, for the sake of compression (RFC 9113, 8.2.3).
    cookie: Vec<u8>,
    size: usize,
    unread: Option<Unread>,
}

impl ListReader {
    pub(super) fn new(kind: Kind) -> Self {
        let room = if kind == Kind::Trailers { USUAL / 8 } else { USUAL };
        Self {
            kind,
            pseudo: SmallVec::new(),
            places: [None; NAMES.len()],
            lines: Written::new(BytesMut::with_capacity(room)),
            begun: false,
            words: (0, 0),
            has_host: false,
            cookie: Vec::new(),
            size: 0,
            unread: None,
        }
    }

    /// The next header.
    ///
    /// # Errors
    /// [`HpackError`] where the list goes far beyond all limits.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), HpackError> {
        self.size = self.size.saturating_add(name.len()).saturating_add(value.len()).saturating_add(32);
        if self.size > BOMB {
            return Err(HpackError);
        }
        if self.size > super::HEADER_LIST as usize {
            self.unread.get_or_insert(Unread::Refused(Refused { status: 431, reason: "the head is too long" }));
        }
        if self.unread.is_none()
            && let Err(unread) = self.take(name, value)
        {
            self.unread = Some(unread);
        }
        Ok(())
    }

    /// True of a list that goes far beyond all limits.
    pub(super) fn is_bomb(&self) -> bool {
        self.size > BOMB
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unread> {
        if !value.iter().all(|byte| chars::is_value(*byte)) {
            return Err(Unread::Malformed("a header value has a control character"));
        }
        if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value {
            return Err(refused("a header value begins or ends with a space"));
        }
        if name.first() == Some(&b':') {
            return self.pseudo(name, value);
        }
        if name.is_empty() || !name.iter().all(|byte| chars::is_token(*byte) && !byte.is_ascii_uppercase()) {
            return Err(Unread::Malformed("a header name is malformed"));
        }
        if !std::mem::replace(&mut self.begun, true) && self.kind == Kind::Request {
            self.first_line()?;
        }
        match Known::of(name) {
            Known::Connection | Known::HopByHop | Known::TransferEncoding | Known::Upgrade => {
                return Err(Unread::Malformed("a header that belongs to a connection of HTTP/1.1"));
            }
            Known::Te if !value.eq_ignore_ascii_case(b"trailers") => {
                return Err(Unread::Malformed("a TE header other than trailers"));
            }
            Known::Host if self.kind == Kind::Request => return self.host(value),
            Known::Other if self.kind == Kind::Request && name == b"cookie" => {
                // An empty piece says nothing, and would leave a space at the end.
                if !self.cookie.is_empty() && !value.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
                return Ok(());
            }
            _ => {}
        }
        self.lines.line(name, value).map_err(Unread::Refused)
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unread> {
        let place = NAMES.iter().position(|known| *known == name);
        let place = place.filter(|place| match self.kind {
            Kind::Request => *place != STATUS,
            Kind::Response => *place == STATUS,
            Kind::Trailers => false,
        });
        let Some(place) = place.and_then(|place| self.places.get_mut(place)) else {
            return Err(Unread::Malformed("a pseudo header that has no place here"));
        };
        if self.begun || place.is_some() {
            return Err(Unread::Malformed("a pseudo header comes twice, or behind other headers"));
        }
        let from = self.pseudo.len();
        self.pseudo.extend_from_slice(value);
        *place = Some((from, self.pseudo.len()));
        Ok(())
    }

    fn value(&self, place: usize) -> Option<&[u8]> {
        let (from, to) = (*self.places.get(place)?)?;
        self.pseudo.get(from..to)
    }

    /// Method and target, as text.
    fn asked(&self) -> Result<(&str, &str), Unread> {
        const MISSING: Unread = Unread::Malformed("a pseudo header is missing");
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| refused("the request is malformed"));
        let method = self.value(METHOD).ok_or(MISSING)?;
        if method.is_empty() || !method.iter().all(|byte| chars::is_token(*byte)) {
            return Err(Unread::Malformed("the method is malformed"));
        }
        if method == b"CONNECT" {
            if self.value(PATH).is_some() || self.value(SCHEME).is_some() {
                return Err(Unread::Malformed("CONNECT with a path or a scheme"));
            }
            return Ok((text(method)?, text(self.value(AUTHORITY).ok_or(MISSING)?)?));
        }
        let (path, scheme) = (self.value(PATH).ok_or(MISSING)?, self.value(SCHEME).ok_or(MISSING)?);
        match (path, scheme) {
            ([b'/', ..], b"http" | b"https") => {}
            (b"*", b"http" | b"https") if method == b"OPTIONS" => {}
            (_, b"http" | b"https") => return Err(Unread::Malformed("the path is malformed")),
            _ => return Err(refused("a scheme other than http and https")),
        }
        // The text goes to a reader of lines.
        if !path.iter().all(|byte| matches!(byte, b'!'..=b'~')) {
            return Err(refused("the path has a character that no path may have"));
        }
        Ok((text(method)?, text(path)?))
    }

    fn first_line(&mut self) -> Result<(), Unread> {
        let mut text = std::mem::take(&mut self.lines.text);
        let (method, target) = self.asked()?;
        text.put_slice(method.as_bytes());
        text.put_u8(b' ');
        text.put_slice(target.as_bytes());
        text.put_slice(b" HTTP/1.1\r\n");
        let words = (method.len(), target.len());
        let mut lines = Written::new(text);
        if let Some(authority) = self.value(AUTHORITY) {
            lines.line(b"host", authority).map_err(Unread::Refused)?;
        }
        (self.lines, self.words) = (lines, words);
        Ok(())
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Unread> {
        if std::mem::replace(&mut self.has_host, true) {
            return Err(refused("several Host headers"));
        }
        match self.value(AUTHORITY) {
            Some(authority) if !authority.eq_ignore_ascii_case(value) => {
                Err(refused("the Host header is another one than :authority"))
            }
            Some(_) => Ok(()),
            None => self.lines.line(b"host", value).map_err(Unread::Refused),
        }
    }

    /// The request that the list was; `ends` where no body follows.
    ///
    /// # Errors
    /// [`Unread`]
    pub(super) fn request(mut self, ends: bool, limits: &Limits) -> Result<RequestHead, Unread> {
        if let Some(unread) = self.unread {
            return Err(unread);
        }
        if !self.begun {
            self.first_line()?;
        }
        if !self.cookie.is_empty() {
            let cookie = std::mem::take(&mut self.cookie);
            self.lines.line(b"cookie", &cookie).map_err(Unread::Refused)?;
        }
        let https = self.value(SCHEME) == Some(b"https");
        let (text, fields) = self.lines.finish();
        let (method, target) = self.words;
        let mut head = h1::of_lines(text, fields, method, target, limits).map_err(Unread::Refused)?;
        head.version = Version::Http2;
        head.scheme = if https { Scheme::Https } else { Scheme::Http };
        head.keep_alive = true;
        if head.framing == Framing::None && !ends {
            head.framing = Framing::Chunked;
        }
        Ok(head)
    }

    /// The answer that the list was.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn response(self, asked: Asked, ends: bool) -> Result<ResponseHead, &'static str> {
        self.check()?;
        let status = match self.value(STATUS) {
            Some(digits @ [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9']) => {
                digits.iter().fold(0_u16, |status, digit| status * 10 + u16::from(digit - b'0'))
            }
            Some(_) => return Err("the status is no number of three digits"),
            None => return Err("an answer without a status"),
        };
        let (text, fields) = self.lines.finish();
        let said = h1::read_framing(&fields, &text, Version::Http11).map_err(|refused| refused.reason)?;
        let has_body = !ends && asked != Asked::Head && !matches!(status, 100..200 | 204 | 304);
        Ok(ResponseHead {
            fields: fields.into_fields(text.freeze()),
            reason: Default::default(),
            status,
            version: Version::Http2,
            framing: if has_body { said.framing.unwrap_or(Framing::Chunked) } else { Framing::None },
            keep_alive: true,
            upgrade: None,
            framing_stands: true,
        })
    }

    /// The trailers that the list was.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn trailers(self) -> Result<Trailers, &'static str> {
        self.check()?;
        let (text, fields) = self.lines.finish();
        Ok(Trailers { fields: fields.into_fields(text.freeze()) })
    }

    fn check(&self) -> Result<(), &'static str> {
        match self.unread {
            None => Ok(()),
            Some(Unread::Malformed(why)) => Err(why),
            Some(Unread::Refused(refused)) => Err(refused.reason),
        }
    }
}

fn refused(reason: &'static str) -> Unread {
    Unread::Refused(Refused::bad_request(reason))
}
