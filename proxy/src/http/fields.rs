//! The header lines of a head as ranges into its bytes.

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::{Refused, chars, limits::MAX_NOMINATED};

/// Fields kept without an allocation: browsers send about 15, a mesh adds some for tracing.
const INLINE_FIELDS: usize = 24;

/// A range of a head's bytes. 16 bits are enough because [`super::Limits::max_head`] has no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Where `part`, a slice of `whole`, lies in it.
    pub(super) fn of(whole: &[u8], part: &[u8]) -> Option<Self> {
        let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
        let end = start.checked_add(part.len()).filter(|end| *end <= whole.len())?;
        Some(Self { start: u16::try_from(start).ok()?, end: u16::try_from(end).ok()? })
    }

    pub(super) fn get(self, whole: &[u8]) -> &[u8] {
        whole.get(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }

    pub(super) fn start(self) -> usize {
        usize::from(self.start)
    }

    pub(super) fn end(self) -> usize {
        usize::from(self.end)
    }
}

/// Fields that the codec itself acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    /// `Keep-Alive`, `Proxy-Connection` and `HTTP2-Settings`: never forwarded.
    HopByHop,
    Te,
    Upgrade,
    Expect,
}

impl Known {
    pub(super) fn of(name: &[u8]) -> Self {
        let (known, spelled): (Self, &[u8]) = match name.len() {
            2 => (Self::Te, b"te"),
            4 => (Self::Host, b"host"),
            6 => (Self::Expect, b"expect"),
            7 => (Self::Upgrade, b"upgrade"),
            10 if name.first().is_some_and(|byte| byte | 0x20 == b'c') => (Self::Connection, b"connection"),
            10 => (Self::HopByHop, b"keep-alive"),
            14 if name.first().is_some_and(|byte| byte | 0x20 == b'c') => (Self::ContentLength, b"content-length"),
            14 => (Self::HopByHop, b"http2-settings"),
            16 => (Self::HopByHop, b"proxy-connection"),
            17 => (Self::TransferEncoding, b"transfer-encoding"),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(spelled) { known } else { Self::Other }
    }
}

/// One header line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
    pub(super) known: Known,
    /// Not forwarded: the `Connection` header nominates it.
    pub(super) nominated: bool,
}

/// A head's bytes, from its first line to its empty line, and the fields in it.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) bytes: Bytes,
    list: SmallVec<[Field; INLINE_FIELDS]>,
}

impl Fields {
    /// The lines that `parsed` found in `head`.
    ///
    /// Every line must end with CR LF, which the parser does not insist on, so that lines can be passed on as they are.
    pub(super) fn locate(head: &[u8], parsed: &[httparse::Header<'_>]) -> Result<Located, Refused> {
        const BARE_LF: Refused = Refused::bad_request("a line ends with LF instead of CR LF");
        let mut list: SmallVec<[Field; INLINE_FIELDS]> = SmallVec::new();
        // The first line, each field's line and the empty line: every one ends where the next begins.
        let ends_well = |at: usize| at >= 2 && head.get(at - 2..at) == Some(b"\r\n");
        for header in parsed {
            let name = header.name.as_bytes();
            let outside = Refused { status: 431, reason: "the head is too long" };
            let field = Field {
                name: Span::of(head, name).ok_or(outside)?,
                value: Span::of(head, header.value).unwrap_or_default(),
                known: Known::of(name),
                nominated: false,
            };
            if !ends_well(field.name.start()) {
                return Err(BARE_LF);
            }
            list.push(field);
        }
        if !ends_well(head.len()) || !ends_well(head.len().saturating_sub(2)) {
            return Err(BARE_LF);
        }
        Ok(Located(list))
    }

    pub(super) fn list(&self) -> &[Field] {
        &self.list
    }

    /// Whether a field that goes on has this name.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.is_among(&self.list, name)
    }

    /// Whether field `index` is the last one of its name that goes on.
    pub(super) fn is_last(&self, index: usize) -> bool {
        let Some(field) = self.list.get(index) else { return false };
        let later = self.list.get(index.saturating_add(1)..).unwrap_or_default();
        !self.is_among(later, field.name.get(&self.bytes))
    }

    fn is_among(&self, list: &[Field], name: &[u8]) -> bool {
        list.iter().any(|field| !field.nominated && field.name.get(&self.bytes).eq_ignore_ascii_case(name))
    }

    /// The line that begins with field `index`, CR LF included.
    pub(super) fn line_end(&self, index: usize) -> usize {
        self.list.get(index.saturating_add(1)).map_or(self.end(), |next| next.name.start())
    }

    /// Where the first header line begins.
    pub(super) fn start(&self) -> usize {
        self.list.first().map_or(self.end(), |first| first.name.start())
    }

    /// Where the empty line begins.
    pub(super) fn end(&self) -> usize {
        self.bytes.len().saturating_sub(2)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|field| (field.name.get(&self.bytes), field.value.get(&self.bytes)))
    }

    pub(super) fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let bytes = &self.bytes[..];
        self.list
            .iter()
            .filter(move |field| field.name.get(bytes).eq_ignore_ascii_case(name.as_bytes()))
            .map(move |field| field.value.get(bytes))
    }
}

/// Fields before their head is taken out of the read buffer.
pub(super) struct Located(SmallVec<[Field; INLINE_FIELDS]>);

impl Located {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Where the first header line begins.
    pub(super) fn start(&self) -> Option<usize> {
        self.0.first().map(|first| first.name.start())
    }

    pub(super) fn known(&self, known: Known) -> impl Iterator<Item = Span> {
        self.0.iter().filter(move |field| field.known == known).map(|field| field.value)
    }

    /// The value of the only field of a kind; `several` says why more are refused.
    pub(super) fn only(&self, known: Known, several: &'static str) -> Result<Option<Span>, Refused> {
        let mut all = self.known(known);
        match (all.next(), all.next()) {
            (first, None) => Ok(first),
            _ => Err(Refused::bad_request(several)),
        }
    }

    /// The protocols that the sender wants to change to. In several lines it is passed over: a receiver may ignore the wish.
    pub(super) fn upgrade(&self) -> Option<Span> {
        let mut all = self.known(Known::Upgrade);
        all.next().filter(|_| all.next().is_none())
    }

    /// What the `Connection` headers ask for; the fields that they nominate are marked.
    pub(super) fn connection(&mut self, head: &[u8]) -> Result<Connection, Refused> {
        let mut wishes = Connection::default();
        let mut nominated: SmallVec<[&[u8]; 4]> = SmallVec::new();
        for value in self.known(Known::Connection) {
            for option in chars::list(value.get(head)) {
                if !option.iter().all(|byte| chars::is_token(*byte)) {
                    return Err(Refused::bad_request("the Connection header is malformed"));
                }
                match option.len() {
                    5 if option.eq_ignore_ascii_case(b"close") => wishes.close = true,
                    10 if option.eq_ignore_ascii_case(b"keep-alive") => wishes.keep_alive = true,
                    7 if option.eq_ignore_ascii_case(b"upgrade") => wishes.upgrade = true,
                    2 if option.eq_ignore_ascii_case(b"te") => {}
                    _ if nominated.len() == MAX_NOMINATED => {
                        return Err(Refused::bad_request("the Connection header nominates too many fields"));
                    }
                    _ => nominated.push(option),
                }
            }
        }
        if !nominated.is_empty() {
            for field in self.0.iter_mut().filter(|field| field.known == Known::Other) {
                let name = field.name.get(head);
                field.nominated =
                    nominated.iter().any(|other| other.eq_ignore_ascii_case(name)) && !is_end_to_end(name);
            }
        }
        Ok(wishes)
    }

    pub(super) fn into_fields(self, bytes: Bytes) -> Fields {
        Fields { bytes, list: self.0 }
    }
}

/// Lines as they would be in HTTP/1.1, of headers that come one by one.
pub(super) struct Written {
    pub(super) text: BytesMut,
    list: SmallVec<[Field; INLINE_FIELDS]>,
}

impl Written {
    /// Lines behind `text`, the first line of the head where there is one.
    pub(super) fn new(text: BytesMut) -> Self {
        Self { text, list: SmallVec::new() }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// [`Refused`]: the head is too long.
    pub(super) fn line(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refused> {
        let from = self.text.len();
        self.text.put_slice(name);
        self.text.put_slice(b": ");
        let colon = self.text.len();
        self.text.put_slice(value);
        let end = self.text.len();
        self.text.put_slice(b"\r\n");
        let span = |start: usize, end: usize| {
            let outside = Refused { status: 431, reason: "the head is too long" };
            let (start, end) = (u16::try_from(start).map_err(|_| outside)?, u16::try_from(end).map_err(|_| outside)?);
            Ok(Span { start, end })
        };
        let name_end = from.saturating_add(name.len());
        self.list.push(Field {
            name: span(from, name_end)?,
            value: span(colon, end)?,
            known: Known::of(name),
            nominated: false,
        });
        Ok(())
    }

    /// The text with its empty line, and where its lines are.
    pub(super) fn finish(mut self) -> (BytesMut, Located) {
        self.text.put_slice(b"\r\n");
        (self.text, Located(self.list))
    }
}

/// What the sender wants to happen to its connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

/// Fields that a sender cannot take away from the next one by nominating them: who asks, on whose behalf, and what the body is.
/// RFC 9110, 7.6.1 forbids to nominate them; those who do want a proxy to drop a check.
fn is_end_to_end(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 16] = [
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"cache-control",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"date",
        b"forwarded",
        b"location",
        b"origin",
        b"range",
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"b3",
    ];
    const PREFIXES: [&[u8]; 5] = [b"x-forwarded-", b"x-b3-", b"x-weir-", b"grpc-", b"x-request-id"];
    let has_prefix = |prefix: &&[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    NAMES.iter().any(|known| known.eq_ignore_ascii_case(name)) || PREFIXES.iter().any(has_prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_known_in_any_case() {
        for (name, known) in [
            ("Host", Known::Host),
            ("CONTENT-LENGTH", Known::ContentLength),
            ("transfer-encoding", Known::TransferEncoding),
            ("Connection", Known::Connection),
            ("Keep-Alive", Known::HopByHop),
            ("Proxy-Connection", Known::HopByHop),
            ("HTTP2-Settings", Known::HopByHop),
            ("TE", Known::Te),
            ("Upgrade", Known::Upgrade),
            ("Expect", Known::Expect),
            ("content-lengti", Known::Other),
            ("connectioN ", Known::Other),
            ("hos", Known::Other),
            ("", Known::Other),
            ("content_length", Known::Other),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }

    #[test]
    fn a_head_stays_small() {
        assert!(size_of::<Field>() <= 10, "{}", size_of::<Field>());
        assert!(size_of::<Fields>() <= 320, "{}", size_of::<Fields>());
    }
}
