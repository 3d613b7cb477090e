//! The sandbox's name server.

use std::net::Ipv4Addr;

use weir_sandbox::dns::codec::{MAX_UDP, answer, parse};

use crate::{Shape, Target, magnitude, none};

pub(super) const DNS: Target = Target {
    name: "dns",
    holds: "an answer repeats the question, fits its limit, says that it is cut where it is, and is no question itself",
    max_len: 600,
    words: &[&[
        b"\x00\x01\x00\x01",
        b"\x03www\x07example\x00",
        b"\xc0\x0c",
        b"\xff",
        b"\x3f",
        b"\x01\x00",
        b"\x00\x1c",
        b"\x80\x00",
    ]],
    seeds: none,
    run: dns,
};

fn dns(bytes: &[u8]) -> Shape {
    let Some(query) = parse(bytes) else { return Shape::of("no query") };
    assert!(query.name.len() <= 255 && !query.name.bytes().any(|byte| byte.is_ascii_uppercase()));
    let addresses: Vec<_> = (0..=255).map(|last| Ipv4Addr::new(198, 18, 0, last).into()).collect();
    let mut shapes = Vec::new();
    for (some, limit) in [
        (None, MAX_UDP),
        (Some(&addresses[..0]), MAX_UDP),
        (Some(&addresses[..3]), MAX_UDP),
        (Some(&addresses[..]), MAX_UDP),
        (Some(&addresses[..]), 65_535),
    ] {
        let answer = answer(&query, some, limit);
        assert!(answer.len() <= limit, "{} bytes of {limit}", answer.len());
        assert_eq!(answer.get(..2), bytes.get(..2), "another id");
        let asked = query_len(bytes);
        assert_eq!(answer.get(12..asked), bytes.get(12..asked), "another question");
        assert!(answer[2] & 0x80 != 0 && parse(&answer).is_none(), "an answer that is a question");
        let count = u16::from_be_bytes([answer[6], answer[7]]);
        let cut = answer[2] & 2 != 0;
        let wanted = some.map_or(0, <[_]>::len);
        assert!(usize::from(count) <= wanted);
        assert_eq!(cut, count > 0 && usize::from(count) < wanted, "{count} of {wanted}");
        shapes.push((count, cut, answer[3] & 15));
    }
    Shape::of((shapes, magnitude(query.name.len())))
}

/// Where the first question ends.
fn query_len(bytes: &[u8]) -> usize {
    let mut at = 12;
    while let Some(length) = bytes.get(at).filter(|length| **length > 0) {
        at += usize::from(*length) + 1;
    }
    at + 5
}
