//! Frames on the wire (RFC 9113, section 4 and 6): their header, their kinds, and what is written without more.

use bytes::{BufMut, BytesMut};

/// Bytes of a frame's header (RFC 9113, 4.1).
pub(super) const HEADER: usize = 9;
/// Largest payload that is read: the least that every peer may send, and what we announce by saying nothing.
pub(super) const MAX_PAYLOAD: usize = 16 * 1024;
/// What a client's connection begins with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest window (RFC 9113, 6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;
/// The window that a connection, and each stream of it, begins with.
pub(super) const INITIAL_WINDOW: u32 = 65_535;
/// Largest stream identifier.
pub(super) const MAX_STREAM: u32 = (1 << 31) - 1;

/// A kind of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// Of an extension: passed over.
    Unknown,
}

impl Kind {
    fn of(code: u8) -> Self {
        match code {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::Reset,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => Self::Unknown,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Headers => 1,
            Self::Priority => 2,
            Self::Reset => 3,
            Self::Settings => 4,
            Self::PushPromise => 5,
            Self::Ping => 6,
            Self::GoAway => 7,
            Self::WindowUpdate => 8,
            Self::Continuation => 9,
            Self::Unknown => u8::MAX,
        }
    }
}

/// Flags of frames.
pub(super) mod flag {
    /// Of DATA and HEADERS.
    pub(crate) const END_STREAM: u8 = 1;
    /// Of SETTINGS and PING.
    pub(crate) const ACK: u8 = 1;
    /// Of HEADERS and CONTINUATION.
    pub(crate) const END_HEADERS: u8 = 4;
    /// Of DATA and HEADERS.
    pub(crate) const PADDED: u8 = 8;
    /// Of HEADERS.
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113, 6.5.2).
pub(super) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// A frame's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) length: usize,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHeader {
    /// The header at the front of `bytes`; `None` where it is not whole.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [high, middle, low, kind, flags, a, b, c, d] = *bytes.first_chunk::<HEADER>()?;
        Some(Self {
            length: usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low),
            kind: Kind::of(kind),
            flags,
            stream: u32::from_be_bytes([a, b, c, d]) & MAX_STREAM,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes the header of a frame. No payload of ours is longer than the peer's largest, which has 24 bits.
pub(super) fn put_header(out: &mut BytesMut, length: usize, kind: Kind, flags: u8, stream: u32) {
    out.put_slice(&header(length, kind, flags, stream));
}

/// The header of a frame.
pub(super) fn header(length: usize, kind: Kind, flags: u8, stream: u32) -> [u8; HEADER] {
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    [high, middle, low, kind.code(), flags, a, b, c, d]
}

/// Writes RST_STREAM.
pub(super) fn put_reset(out: &mut BytesMut, stream: u32, reason: Reason) {
    put_header(out, 4, Kind::Reset, 0, stream);
    out.put_u32(reason.0);
}

/// Writes WINDOW_UPDATE; stream 0 is the connection.
pub(super) fn put_window_update(out: &mut BytesMut, stream: u32, more: u32) {
    put_header(out, 4, Kind::WindowUpdate, 0, stream);
    out.put_u32(more);
}

/// Writes PING.
pub(super) fn put_ping(out: &mut BytesMut, payload: [u8; 8], is_ack: bool) {
    put_header(out, payload.len(), Kind::Ping, if is_ack { flag::ACK } else { 0 }, 0);
    out.put_slice(&payload);
}

/// Writes GOAWAY.
pub(super) fn put_go_away(out: &mut BytesMut, last: u32, reason: Reason) {
    put_header(out, 8, Kind::GoAway, 0, 0);
    out.put_u32(last);
    out.put_u32(reason.0);
}

/// Writes SETTINGS.
pub(super) fn put_settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    put_header(out, settings.len().saturating_mul(6), Kind::Settings, 0, 0);
    for (name, value) in settings {
        out.put_u16(*name);
        out.put_u32(*value);
    }
}

/// Why a stream or a connection was ended (RFC 9113, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u32);

impl Reason {
    /// Nothing is wrong.
    pub const NO_ERROR: Self = Self(0);
    /// The peer does what the protocol forbids.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Something in here failed.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The peer sends more than its window has room for.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame came for a stream that has ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame has a length that its kind can not have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The stream was not looked at.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is not wanted any more.
    pub const CANCEL: Self = Self(8);
    /// A list of headers can not be decompressed.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The peer asks for too much.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match usize::try_from(self.0).ok().and_then(|code| NAMES.get(code)) {
            Some(name) => f.write_str(name),
            None => write!(f, "reason {}", self.0),
        }
    }
}
