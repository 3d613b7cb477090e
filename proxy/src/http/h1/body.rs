//! Where a body ends, and whether its framing is right: bytes are judged, never changed.

use crate::http::{Framing, Refused, chars};

/// Longest chunk extension in bytes. None is in use; other servers' parsers are protected from what they might do with them.
const MAX_EXTENSION: u32 = 256;
/// Most bytes of extensions in one body (hyper's limit): else every byte of payload could bring 256 of them.
const MAX_EXTENSIONS: u32 = 16 * 1024;
/// Most bytes of trailers.
const MAX_TRAILERS: u32 = 16 * 1024;
/// Most lines of trailers.
const MAX_TRAILER_LINES: u32 = 64;
/// Hexadecimal digits of a chunk size: 64 bits.
const MAX_SIZE_DIGITS: u8 = 16;

/// Trailers that no message may have (RFC 9110, 6.5.1): framing, routing, authentication, and what Weir itself writes.
const FORBIDDEN_TRAILERS: [&[u8]; 20] = [
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"set-cookie",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"www-authenticate",
];
/// Prefixes of trailers that no message may have.
const FORBIDDEN_TRAILER_PREFIXES: [&[u8]; 2] = [b"x-forwarded-", b"x-weir-"];
/// Bytes of a trailer's name that are kept, to compare it; longer names are none of the forbidden ones but by prefix.
const KEPT_NAME: usize = 20;

/// Follows one body through the bytes that arrive.
#[derive(Debug, Clone)]
pub struct BodyScanner {
    state: State,
    extensions: u32,
    trailers: u32,
    trailer_lines: u32,
}

/// What [`BodyScanner::scan`] found at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes that belong to this body and may be forwarded as they are, chunk framing and trailers included.
    pub len: usize,
    /// Bytes of payload among them.
    pub payload: u64,
    /// The body is complete; what follows belongs to the next message.
    pub done: bool,
}

/// What [`BodyScanner::piece`] found at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Length in bytes.
    pub len: usize,
    /// Payload, and not framing or trailers.
    pub is_payload: bool,
    /// The body is complete.
    pub done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    /// A chunk's size, its digits so far.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind a semicolon, to the end of the line.
    Extension {
        size: u64,
        len: u32,
    },
    /// LF of the line with the size.
    SizeLf {
        size: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    /// A trailer's name, or the empty line.
    Name {
        kept: [u8; KEPT_NAME],
        len: u16,
    },
    TrailerValue,
    TrailerLf,
    LastLf,
}

impl BodyScanner {
    /// A scanner for the body that follows a head with this framing.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0, trailers: 0, trailer_lines: 0 }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the body may end here because the connection does.
    #[must_use]
    pub fn may_end(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Payload bytes that are still to come, where that is known.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(length) => Some(length),
            _ => None,
        }
    }

    /// Judges all of `buffer`, which begins where the last call's `len` ended. What was cut off is judged by the next call: no
    /// byte has to be kept for it.
    ///
    /// # Errors
    /// [`Refused`], status 400 (see [`Refused::as_bad_gateway`] for a response's body): nothing of `buffer` may be forwarded, and
    /// neither connection can be used again.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Scanned, Refused> {
        let mut scanned = Scanned { len: 0, payload: 0, done: self.is_done() };
        while let Some(rest) = buffer.get(scanned.len..).filter(|rest| !rest.is_empty() && !scanned.done) {
            let piece = self.piece(rest)?;
            scanned.len = scanned.len.saturating_add(piece.len);
            if piece.is_payload {
                scanned.payload = scanned.payload.saturating_add(to_u64(piece.len));
            }
            scanned.done = piece.done;
        }
        Ok(scanned)
    }

    /// The first run of payload, or of framing, at the front of `buffer`: for a receiver that takes no chunks.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn piece(&mut self, buffer: &[u8]) -> Result<Piece, Refused> {
        let payload = |len: usize, done| Piece { len, is_payload: true, done };
        match self.state {
            State::Done => return Ok(Piece { len: 0, is_payload: false, done: true }),
            State::UntilClose => return Ok(payload(buffer.len(), false)),
            State::Length(left) => {
                let taken = to_u64(buffer.len()).min(left);
                let left = left.saturating_sub(taken);
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                return Ok(payload(to_usize(taken), left == 0));
            }
            State::Data(left) if !buffer.is_empty() => {
                let taken = to_u64(buffer.len()).min(left);
                let left = left.saturating_sub(taken);
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                return Ok(payload(to_usize(taken), false));
            }
            _ => {}
        }
        let mut len = 0_usize;
        for byte in buffer {
            self.state = self.step(*byte)?;
            len = len.saturating_add(1);
            if matches!(self.state, State::Data(_) | State::Done) {
                break;
            }
        }
        Ok(Piece { len, is_payload: false, done: self.is_done() })
    }

    /// One byte of framing.
    fn step(&mut self, byte: u8) -> Result<State, Refused> {
        match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(Refused::bad_request("a chunk size is too large"));
                }
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                Ok(State::Size { size: size << 4 | digit, digits: digits.saturating_add(1) })
            }
            (State::Size { digits: 0, .. }, _) => Err(Refused::bad_request("a chunk has no size")),
            (State::Size { size, .. }, b'\r') => Ok(State::SizeLf { size }),
            (State::Size { size, .. }, b';') => Ok(State::Extension { size, len: 0 }),
            (State::Size { .. }, _) => Err(Refused::bad_request("a chunk size is not a hexadecimal number")),

            (State::Extension { size, .. }, b'\r') => Ok(State::SizeLf { size }),
            (State::Extension { size, len }, b'\t' | b' '..=b'~') => {
                self.extensions = self.extensions.saturating_add(1);
                if len >= MAX_EXTENSION || self.extensions > MAX_EXTENSIONS {
                    return Err(Refused::bad_request("chunk extensions are too long"));
                }
                Ok(State::Extension { size, len: len.saturating_add(1) })
            }
            (State::Extension { .. }, _) => Err(Refused::bad_request("a chunk extension has a control character")),

            (State::SizeLf { size: 0 }, b'\n') => Ok(State::Name { kept: [0; KEPT_NAME], len: 0 }),
            (State::SizeLf { size }, b'\n') => Ok(State::Data(size)),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
            (State::SizeLf { .. } | State::DataCr | State::DataLf, _) => {
                Err(Refused::bad_request("a chunk does not end with CR LF"))
            }

            (State::Name { .. } | State::TrailerValue | State::TrailerLf | State::LastLf, _) => self.trailer_step(byte),
            (State::Done | State::Length(_) | State::UntilClose | State::Data(_), _) => Ok(self.state),
        }
    }

    fn trailer_step(&mut self, byte: u8) -> Result<State, Refused> {
        self.trailers = self.trailers.saturating_add(1);
        if self.trailers > MAX_TRAILERS {
            return Err(Refused::bad_request("the trailers are too long"));
        }
        match (self.state, byte) {
            (State::Name { len: 0, .. }, b'\r') => Ok(State::LastLf),
            (State::LastLf, b'\n') => Ok(State::Done),
            (State::Name { mut kept, len }, _) if chars::is_token(byte) => {
                if let Some(slot) = kept.get_mut(usize::from(len)) {
                    *slot = byte.to_ascii_lowercase();
                }
                Ok(State::Name { kept, len: len.saturating_add(1) })
            }
            (State::Name { kept, len }, b':') if len > 0 => {
                self.trailer_lines = self.trailer_lines.saturating_add(1);
                if self.trailer_lines > MAX_TRAILER_LINES {
                    return Err(Refused::bad_request("too many trailers"));
                }
                if is_forbidden(&kept, usize::from(len)) {
                    return Err(Refused::bad_request("a trailer that only a head may have"));
                }
                Ok(State::TrailerValue)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if chars::is_value(byte) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::Name { kept: [0; KEPT_NAME], len: 0 }),
            _ => Err(Refused::bad_request("a trailer is malformed")),
        }
    }
}

fn is_forbidden(kept: &[u8; KEPT_NAME], len: usize) -> bool {
    let start = kept.get(..len).unwrap_or(kept);
    let whole = len <= KEPT_NAME;
    (whole && FORBIDDEN_TRAILERS.contains(&start))
        || FORBIDDEN_TRAILER_PREFIXES.iter().any(|prefix| start.starts_with(prefix))
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Of a number that is at most the length of a buffer.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
