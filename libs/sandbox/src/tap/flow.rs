//! TCP connections put together from packets, and what their bytes are.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// First bytes of a direction that are kept, to be shown.
const KEPT: usize = 48;
/// Most connections that are followed.
const MAX_FLOWS: usize = 20_000;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// TLS record header: type, version, length.
const RECORD_HEADER: usize = 5;
/// Sequence numbers that lie further ahead than this lie behind (RFC 9293, 3.4).
const HALF_OF_ALL: u32 = 1 << 31;
/// Largest length in a TLS record header (RFC 8446, 5.2; RFC 5246 allows a little more).
const MAX_RECORD: usize = 16_384 + 2048;

/// One connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowReport {
    /// Who opened it (or who was seen first, where its start was not seen).
    pub client: SocketAddr,
    /// Whom it was opened to.
    pub server: SocketAddr,
    /// From client to server.
    pub sent: Side,
    /// From server to client.
    pub received: Side,
}

impl FlowReport {
    /// What the connection carried.
    pub fn verdict(&self) -> Verdict {
        match (self.sent.verdict(), self.received.verdict()) {
            (Verdict::Plaintext, _) | (_, Verdict::Plaintext) => Verdict::Plaintext,
            (Verdict::Unclear, _) | (_, Verdict::Unclear) => Verdict::Unclear,
            (Verdict::Tls, _) | (_, Verdict::Tls) => Verdict::Tls,
            (Verdict::Empty, Verdict::Empty) => Verdict::Empty,
        }
    }
}

/// What bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// There were none.
    Empty,
    /// TLS records, from the first byte to the last.
    Tls,
    /// Something else.
    Plaintext,
    /// Bytes are missing from the capture.
    Unclear,
}

/// One direction of a connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Side {
    /// Payload bytes, each counted once.
    pub bytes: u64,
    /// Whole TLS records.
    pub records: u64,
    /// The first bytes.
    pub first: Vec<u8>,
    next: Option<u32>,
    gap: bool,
    plaintext: bool,
    /// Bytes of a record header that came so far.
    header: Vec<u8>,
    /// Bytes of the present record that are still to come.
    rest: usize,
}

impl Side {
    /// What the bytes are.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self { plaintext: true, .. } => Verdict::Plaintext,
            Self { bytes: 0, .. } => Verdict::Empty,
            Self { gap: true, .. } => Verdict::Unclear,
            _ => Verdict::Tls,
        }
    }

    fn segment(&mut self, sequence: u32, syn: bool, payload: &[u8]) {
        if syn {
            self.next = Some(sequence.wrapping_add(1));
            return;
        }
        if payload.is_empty() {
            return;
        }
        let next = *self.next.get_or_insert(sequence);
        let ahead = sequence.wrapping_sub(next);
        let known = match ahead {
            0 => 0,
            // The sequence number lies behind what is known: sent again, wholly or in part.
            HALF_OF_ALL.. => usize::try_from(next.wrapping_sub(sequence)).unwrap_or(usize::MAX),
            _ => {
                self.gap = true;
                0
            }
        };
        let Some(new) = payload.get(known..).filter(|new| !new.is_empty()) else { return };
        let end = sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or_default());
        self.next = Some(end);
        self.bytes = self.bytes.saturating_add(u64::try_from(new.len()).unwrap_or_default());
        let room = KEPT.saturating_sub(self.first.len());
        self.first.extend(new.iter().take(room));
        if !self.plaintext && !self.gap {
            self.records(new);
        }
    }

    fn records(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skip = self.rest.min(bytes.len());
            if skip > 0 {
                self.rest -= skip;
                bytes = bytes.get(skip..).unwrap_or_default();
                continue;
            }
            let take = RECORD_HEADER.saturating_sub(self.header.len()).min(bytes.len());
            self.header.extend(bytes.iter().take(take));
            bytes = bytes.get(take..).unwrap_or_default();
            if !plausible(&self.header) {
                self.plaintext = true;
                return;
            }
            if let [_, _, _, high, low] = self.header.as_slice() {
                self.rest = usize::from(u16::from_be_bytes([*high, *low]));
                self.records = self.records.saturating_add(1);
                self.header.clear();
            }
        }
    }
}

/// Whether bytes can be the beginning of a TLS record.
fn plausible(header: &[u8]) -> bool {
    let kind = header.first().is_none_or(|kind| (20..=23).contains(kind));
    let major = header.get(1).is_none_or(|major| *major == 3);
    let minor = header.get(2).is_none_or(|minor| (1..=4).contains(minor));
    let length = match header {
        [_, _, _, high, low] => (1..=MAX_RECORD).contains(&usize::from(u16::from_be_bytes([*high, *low]))),
        _ => true,
    };
    kind && major && minor && length
}

/// All connections of a link.
#[derive(Debug, Default)]
pub struct Flows {
    flows: HashMap<(SocketAddr, SocketAddr), FlowReport>,
}

impl Flows {
    /// Takes a packet in; what is no TCP is passed over.
    pub fn packet(&mut self, packet: &[u8]) {
        let Some(segment) = Segment::parse(packet) else { return };
        let Segment { from, to, sequence, flags, payload } = segment;
        let opens = flags & (SYN | ACK) == SYN;
        if opens {
            // A port used again: the connection before is over.
            self.flows.remove(&(from, to));
        }
        let known = self.flows.contains_key(&(from, to));
        if !known && !self.flows.contains_key(&(to, from)) {
            if self.flows.len() >= MAX_FLOWS {
                return;
            }
            let fresh = FlowReport { client: from, server: to, sent: Side::default(), received: Side::default() };
            self.flows.insert((from, to), fresh);
        }
        let syn = flags & SYN != 0;
        if let Some(flow) = self.flows.get_mut(&(from, to)) {
            flow.sent.segment(sequence, syn, payload);
        } else if let Some(flow) = self.flows.get_mut(&(to, from)) {
            flow.received.segment(sequence, syn, payload);
        }
    }

    /// What was seen, ordered by addresses.
    pub fn reports(self) -> Vec<FlowReport> {
        let mut reports: Vec<FlowReport> = self.flows.into_values().collect();
        reports.sort_by_key(|flow| (flow.client, flow.server));
        reports
    }
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        match *packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Option<Self> {
        let length = usize::from(*packet.first()? & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if *packet.get(9)? != TCP || length < 20 {
            return None;
        }
        let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into());
        // Packets above 64 KiB, which a local link can have, carry 0 here.
        let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
        Self::parse_tcp(ip(12)?, ip(16)?, packet.get(length..end)?)
    }

    /// Extension headers are passed over with their packet: TCP of a pod has none.
    fn parse_v6(packet: &'a [u8]) -> Option<Self> {
        const HEADER: usize = 40;
        let payload = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
        if *packet.get(6)? != TCP {
            return None;
        }
        let ip = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into());
        let end = if payload == 0 { packet.len() } else { (HEADER + payload).min(packet.len()) };
        Self::parse_tcp(ip(8)?, ip(24)?, packet.get(HEADER..end)?)
    }

    fn parse_tcp(from: IpAddr, to: IpAddr, tcp: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
        let header = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, word(0)?),
            to: SocketAddr::new(to, word(2)?),
            sequence: u32::from(word(4)?) << 16 | u32::from(word(6)?),
            flags: *tcp.get(13)?,
            payload: tcp.get(header..)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(parts: &[(u32, &[u8])]) -> Side {
        let mut side = Side::default();
        side.segment(99, true, &[]);
        for (sequence, bytes) in parts {
            side.segment(*sequence, false, bytes);
        }
        side
    }

    const RECORD: [u8; 8] = [22, 3, 1, 0, 3, b'a', b'b', b'c'];

    #[test]
    fn records_however_they_are_cut() {
        let twice = [RECORD, RECORD].concat();
        for cut in 0..twice.len() {
            let (a, b) = twice.split_at(cut);
            let side = side(&[(100, a), (100 + u32::try_from(cut).unwrap(), b)]);
            assert_eq!((side.verdict(), side.records, side.bytes), (Verdict::Tls, 2, 16), "cut at {cut}");
        }
    }

    #[test]
    fn bytes_sent_again_count_once() {
        let side = side(&[(100, &RECORD[..6]), (100, &RECORD[..6]), (103, &RECORD[3..])]);
        assert_eq!((side.verdict(), side.records, side.bytes), (Verdict::Tls, 1, 8));
    }

    #[test]
    fn plaintext_is_seen_even_behind_a_record() {
        assert_eq!(side(&[(100, b"GET / HTTP/1.1\r\n")]).verdict(), Verdict::Plaintext);
        assert_eq!(side(&[(100, &RECORD), (108, b"GET /")]).verdict(), Verdict::Plaintext);
        assert_eq!(side(&[(100, &RECORD), (120, &RECORD)]).verdict(), Verdict::Unclear, "bytes are missing");
        assert_eq!(side(&[]).verdict(), Verdict::Empty);
    }

    #[test]
    fn no_packet_makes_it_fail() {
        let v4 = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 0, 2, 198, 18, 0, 3];
        let mut v6 = vec![0x60, 0, 0, 0, 0, 28, 6, 64];
        for last in [2, 3] {
            v6.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).octets());
        }
        for header in [v4, v6] {
            every_damage(header);
        }
    }

    fn every_damage(mut packet: Vec<u8>) {
        packet.extend([0x80, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        packet.extend(RECORD);
        let mut flows = Flows::default();
        flows.packet(&packet);
        let report = flows.reports().remove(0);
        assert_eq!((report.verdict(), report.server.port()), (Verdict::Tls, 80));
        for cut in 0..packet.len() {
            Flows::default().packet(packet.get(..cut).unwrap());
        }
        for at in 0..packet.len() {
            let mut bad = packet.clone();
            bad[at] = 0xff;
            Flows::default().packet(&bad);
        }
    }
}
