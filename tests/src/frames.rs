//! Frames of HTTP/2 as a test writes them. Nothing here keeps to the protocol by itself: that is what the other side is tested for.

use std::{
    io::{self, Write as _},
    net::TcpStream,
};

use crate::http::read;

/// Type of a DATA frame.
pub const DATA: u8 = 0;
/// Type of a HEADERS frame.
pub const HEADERS: u8 = 1;
/// Type of a PRIORITY frame.
pub const PRIORITY: u8 = 2;
/// Type of a `RST_STREAM` frame.
pub const RST_STREAM: u8 = 3;
/// Type of a SETTINGS frame.
pub const SETTINGS: u8 = 4;
/// Type of a `PUSH_PROMISE` frame.
pub const PUSH_PROMISE: u8 = 5;
/// Type of a PING frame.
pub const PING: u8 = 6;
/// Type of a GOAWAY frame.
pub const GOAWAY: u8 = 7;
/// Type of a `WINDOW_UPDATE` frame.
pub const WINDOW_UPDATE: u8 = 8;
/// Type of a CONTINUATION frame.
pub const CONTINUATION: u8 = 9;
/// Flag: nothing follows on the stream.
pub const END_STREAM: u8 = 1;
/// Flag of SETTINGS and PING: an answer.
pub const ACK: u8 = 1;
/// Flag: the list of headers is whole.
pub const END_HEADERS: u8 = 4;

/// Begins a client's connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `SETTINGS_HEADER_TABLE_SIZE`
pub const TABLE_SIZE: u16 = 1;
/// `SETTINGS_MAX_CONCURRENT_STREAMS`
pub const MAX_STREAMS: u16 = 3;
/// `SETTINGS_INITIAL_WINDOW_SIZE`
pub const WINDOW_SIZE: u16 = 4;

/// A frame that came.
#[derive(Debug)]
pub struct Frame {
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream, 0 for the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

/// What came of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A head of an answer with this status.
    Status(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended: by a GOAWAY with this code, or without a word.
    Ended(Option<u32>),
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A frame of settings.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// A list of headers, each a literal that is kept in no table (RFC 7541, 6.2.2), byte for byte as given.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        text(&mut out, name);
        text(&mut out, value);
    }
    out
}

/// A literal that goes into the dynamic table (RFC 7541, 6.2.1), where it is number 62.
pub fn kept(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0x40];
    text(&mut out, name);
    text(&mut out, value);
    out
}

/// A string without Huffman's code.
fn text(out: &mut Vec<u8>, text: &str) {
    const PREFIX: usize = 127;
    match u8::try_from(text.len()) {
        Ok(length) if usize::from(length) < PREFIX => out.push(length),
        _ => {
            out.push(127);
            let mut rest = text.len() - PREFIX;
            while rest >= 128 {
                out.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            out.push(u8::try_from(rest).unwrap());
        }
    }
    out.extend(text.as_bytes());
}

/// Headers of a GET request.
pub fn get(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":authority", "catalog"), (":path", path)])
}

/// One side of a connection.
pub struct Peer {
    /// The connection.
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    /// A client that has sent its preface and these settings. It wants no dynamic table, so that answers can be read here.
    ///
    /// # Errors
    /// What the connection says.
    pub fn client(stream: TcpStream, values: &[(u16, u32)]) -> io::Result<Self> {
        let mut peer = Self { stream, buffer: Vec::new() };
        let all = [&[(TABLE_SIZE, 0)], values].concat();
        peer.write(&[PREFACE, &settings(&all)].concat())?;
        Ok(peer)
    }

    /// A server that has read the preface and sent these settings.
    ///
    /// # Errors
    /// What the connection says.
    pub fn server(stream: TcpStream, values: &[(u16, u32)]) -> io::Result<Self> {
        let mut peer = Self { stream, buffer: Vec::new() };
        peer.exactly(PREFACE.len())?;
        peer.write(&settings(values))?;
        Ok(peer)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// What the connection says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// What the connection says.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// Reads a frame; settings are acknowledged.
    ///
    /// # Errors
    /// What the connection says.
    pub fn take(&mut self) -> io::Result<Frame> {
        let head = self.exactly(9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload: self.exactly(length)? };
        if frame.kind == SETTINGS && frame.flags & ACK == 0 {
            self.send(SETTINGS, ACK, 0, &[])?;
        }
        Ok(frame)
    }

    /// Reads on to a frame of this type.
    ///
    /// # Errors
    /// What the connection says.
    pub fn take_of(&mut self, kind: u8) -> io::Result<Frame> {
        loop {
            let frame = self.take()?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// Reads on until it is clear what came of a stream.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        let mut gone = None;
        loop {
            match self.take() {
                Err(_) => return Outcome::Ended(gone),
                Ok(frame) if frame.kind == GOAWAY => gone = Some(number(&frame.payload, 4)),
                Ok(frame) if frame.stream != stream => {}
                Ok(frame) if frame.kind == RST_STREAM => return Outcome::Reset(number(&frame.payload, 0)),
                Ok(frame) if frame.kind == HEADERS => match status(&frame.payload) {
                    Some(100..200) => {}
                    status => return Outcome::Status(status.unwrap_or(0)),
                },
                Ok(_) => {}
            }
        }
    }

    /// Reads to the end; the code of a GOAWAY.
    pub fn end(&mut self) -> Option<u32> {
        match self.outcome(0) {
            Outcome::Ended(code) => code,
            other => panic!("{other:?} on the connection's own stream"),
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            let mut chunk = [0; 16 * 1024];
            let n = read(&mut self.stream, &mut chunk)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend(&chunk[..n]);
        }
        Ok(self.buffer.drain(..length).collect())
    }
}

fn number(payload: &[u8], at: usize) -> u32 {
    let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(u32::MAX, u32::from_be_bytes)
}

/// The status at the beginning of a list of headers: an entry of the static table, or three digits in one of the two codes.
fn status(mut block: &[u8]) -> Option<u16> {
    while block.first()? & 0xe0 == 0x20 {
        block = &block[1..]; // the size of the dynamic table, small enough for one byte
    }
    let entry = *block.first()?;
    if entry & 0x80 != 0 {
        return [200, 204, 206, 304, 400, 404, 500].get(usize::from(entry & 0x7f).checked_sub(8)?).copied();
    }
    let length = usize::from(block.get(1)? & 0x7f);
    let value = block.get(2..2 + length)?;
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(value).ok()?.parse().ok();
    }
    // Huffman's code of digits: five bits for 0 to 2, six for 3 to 9 (RFC 7541, appendix B).
    let bits: Vec<u8> = value.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let code =
            |length: usize| Some(bits.get(at..at + length)?.iter().fold(0, |code, bit| code << 1 | u16::from(*bit)));
        let (digit, length) = match code(5)? {
            short @ 0..=2 => (short, 5),
            _ => (code(6)?.checked_sub(0b01_1001)? + 3, 6),
        };
        status = status * 10 + digit;
        at += length;
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x20, 0x8c]), Some(400));
        assert_eq!(status(&[0x08, 3, b'4', b'3', b'1']), Some(431));
        // 5, 0, 3 in Huffman's code: 011011 00000 011001.
        assert_eq!(status(&[0x08, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111]), Some(503));
        assert_eq!(status(&[]), None);
    }

    #[test]
    fn long_strings_have_their_length() {
        let block = block(&[("a", &"b".repeat(300))]);
        assert_eq!(&block[..6], [0, 1, b'a', 127, 0xad, 1]);
        assert_eq!(block.len(), 306);
    }
}
