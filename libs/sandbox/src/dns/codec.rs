//! The part of the DNS wire format (RFC 1035) that a name server without delegation needs: one question in, addresses out.

use std::net::IpAddr;

/// Largest answer over UDP, in bytes; a longer one is cut and asked again over TCP.
pub const MAX_UDP: usize = 512;
/// Seconds that an answer may be kept, as cluster DNS servers have it.
const TTL: u32 = 5;
const HEADER: usize = 12;
const A: u16 = 1;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const IN: u16 = 1;
const ANY: u16 = 255;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    id: u16,
    recursion_desired: bool,
    /// Name, lower case, without the final dot.
    pub name: String,
    kind: u16,
    class: u16,
    /// The question as it came: the answer repeats it with the client's letters.
    question: Vec<u8>,
    /// Whether it is a plain query.
    standard: bool,
}

/// Reads a query; `None` for what is not one (it gets no answer).
pub fn parse(packet: &[u8]) -> Option<Query> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let (id, flags, questions) = (word(0)?, word(2)?, word(4)?);
    let is_answer = flags & 0x8000 != 0;
    if is_answer || questions != 1 {
        return None;
    }
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // 63 is the longest label; anything above is a pointer, which a question has no use for.
        if length > 63 {
            return None;
        }
        let label = packet.get(at..at + length)?;
        at += length;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        if name.len() > 255 {
            return None;
        }
    }
    Some(Query {
        id,
        recursion_desired: flags & 0x0100 != 0,
        name,
        kind: word(at)?,
        class: word(at + 2)?,
        question: packet.get(HEADER..at + 4)?.to_vec(),
        standard: flags & 0x7800 == 0,
    })
}

/// The answer to a query: `None` for a name that does not exist; a name may exist without addresses.
pub fn answer(query: &Query, addresses: Option<&[IpAddr]>, limit: usize) -> Vec<u8> {
    const AUTHORITATIVE_ANSWER: u16 = 0x8400;
    const RECURSION_DESIRED: u16 = 0x0100;
    const RECURSION_AVAILABLE: u16 = 0x0080;
    const TRUNCATED: u16 = 0x0200;
    const NO_SUCH_NAME: u16 = 3;
    const NOT_IMPLEMENTED: u16 = 4;
    let mut flags = AUTHORITATIVE_ANSWER | RECURSION_AVAILABLE;
    if query.recursion_desired {
        flags |= RECURSION_DESIRED;
    }
    if !query.standard {
        flags |= NOT_IMPLEMENTED;
    } else if addresses.is_none() {
        flags |= NO_SUCH_NAME;
    }
    let asked = |kind| query.standard && query.class == IN && (query.kind == kind || query.kind == ANY);
    let record_of = |address: &IpAddr| match address {
        IpAddr::V4(address) => asked(A).then(|| record(A, &address.octets())),
        IpAddr::V6(address) => asked(AAAA).then(|| record(AAAA, &address.octets())),
    };
    let records: Vec<Vec<u8>> = addresses.into_iter().flatten().filter_map(record_of).collect();
    let soa = records.is_empty().then(|| record(SOA, &soa_data()));
    let room = limit.saturating_sub(HEADER + query.question.len() + soa.as_ref().map_or(0, Vec::len));
    let mut body = Vec::new();
    let mut count: u16 = 0;
    for record in &records {
        if body.len() + record.len() > room {
            flags |= TRUNCATED;
            break;
        }
        body.extend_from_slice(record);
        count = count.saturating_add(1);
    }
    let mut out = Vec::with_capacity(HEADER + query.question.len() + body.len());
    for word in [query.id, flags, 1, count, u16::from(soa.is_some()), 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&query.question);
    out.extend_from_slice(&body);
    out.extend_from_slice(&soa.unwrap_or_default());
    out
}

/// A record about the name of the question.
fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    // A pointer to the name of the question, which starts right after the header.
    let mut out = vec![0xc0, 0x0c];
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(data);
    out
}

/// Says how long the absence of a name may be kept.
fn soa_data() -> Vec<u8> {
    let mut out = Vec::new();
    for name in [["ns", "dns"], ["hostmaster", "dns"]] {
        for label in name {
            out.extend(u8::try_from(label.len()));
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
    }
    for number in [1, 7200, 1800, 86_400, TTL] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend_from_slice(label.as_bytes());
        }
        packet.push(0);
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&IN.to_be_bytes());
        packet
    }

    #[test]
    fn addresses_and_the_clients_own_letters() {
        let parsed = parse(&query("Catalog.Shop.svc", A)).unwrap();
        assert_eq!(parsed.name, "catalog.shop.svc");
        let out = answer(&parsed, Some(&[Ipv4Addr::new(198, 19, 1, 2).into()]), MAX_UDP);
        assert_eq!(&out[..4], [0x12, 0x34, 0x85, 0x80]);
        assert!(out.windows(7).any(|bytes| bytes == b"Catalog"));
        assert!(out.ends_with(&[198, 19, 1, 2]));
    }

    #[test]
    fn absent_names_and_absent_addresses_differ() {
        let parsed = parse(&query("a.b", 28)).unwrap();
        assert_eq!(answer(&parsed, None, MAX_UDP)[3] & 0xf, 3);
        let empty = answer(&parsed, Some(&[LOCALHOST]), MAX_UDP);
        assert_eq!((empty[3] & 0xf, empty[7], empty[9]), (0, 0, 1), "AAAA of a name with A only: no answer, SOA");
    }

    #[test]
    fn each_family_has_its_own_question() {
        let both = [LOCALHOST, Ipv6Addr::LOCALHOST.into()];
        let count = |kind| answer(&parse(&query("a.b", kind)).unwrap(), Some(&both), MAX_UDP)[7];
        assert_eq!((count(A), count(AAAA), count(ANY), count(SOA)), (1, 1, 2, 0));
        let out = answer(&parse(&query("a.b", AAAA)).unwrap(), Some(&both), MAX_UDP);
        assert!(out.ends_with(&Ipv6Addr::LOCALHOST.octets()));
    }

    #[test]
    fn many_addresses_are_cut_over_udp() {
        let many = vec![LOCALHOST; 100];
        let parsed = parse(&query("a.b", A)).unwrap();
        let out = answer(&parsed, Some(&many), MAX_UDP);
        assert!(out.len() <= MAX_UDP && out[2] & 2 != 0);
        assert_eq!(answer(&parsed, Some(&many), 65_535)[7], 100);
    }

    #[test]
    fn nothing_that_is_sent_makes_it_fail() {
        let good = query("catalog.shop.svc.cluster.local", A);
        for cut in 0..good.len() {
            assert_eq!(parse(good.get(..cut).unwrap()), None);
        }
        for at in 0..good.len() {
            for value in [0, 0x3f, 0x40, 0xc0, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Some(query) = parse(&bad) {
                    let _ = answer(&query, Some(&[LOCALHOST]), MAX_UDP);
                }
            }
        }
    }
}
