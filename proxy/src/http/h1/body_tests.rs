//! Framing of bodies: whole, cut at every place, and broken in every way.

use proptest::prelude::*;

use super::*;

/// Scans `bytes` in the given cuts: forwarded length, payload and whether it was done; or the refusal's reason.
fn scan(framing: Framing, pieces: &[&[u8]]) -> Result<(usize, u64, bool), &'static str> {
    let mut scanner = BodyScanner::new(framing);
    let (mut len, mut payload, mut done) = (0, 0, scanner.is_done());
    for piece in pieces {
        let scanned = scanner.scan(piece).map_err(|refused| refused.reason)?;
        len += scanned.len;
        payload += scanned.payload;
        done = scanned.done;
        if scanned.len < piece.len() {
            assert!(done, "only a complete body leaves bytes");
        }
        if done {
            break;
        }
    }
    assert_eq!(done, scanner.is_done());
    Ok((len, payload, done))
}

fn chunked(bytes: &[u8]) -> Result<(usize, u64, bool), &'static str> {
    let whole = scan(Framing::Chunked, &[bytes]);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(scan(Framing::Chunked, &single), whole, "byte by byte: {}", bytes.escape_ascii());
    for at in 0..=bytes.len() {
        let (front, back) = bytes.split_at(at);
        assert_eq!(scan(Framing::Chunked, &[front, back]), whole, "cut at {at}: {}", bytes.escape_ascii());
    }
    whole
}

#[test]
fn lengths_and_ends() {
    assert_eq!(scan(Framing::None, &[b"next"]), Ok((0, 0, true)));
    assert_eq!(scan(Framing::Length(0), &[b"next"]), Ok((0, 0, true)));
    assert_eq!(scan(Framing::Length(5), &[b"he", b"llonext"]), Ok((5, 5, true)));
    assert_eq!(scan(Framing::Length(u64::MAX), &[b"he"]), Ok((2, 2, false)));
    assert_eq!(scan(Framing::UntilClose, &[b"all", b"of it"]), Ok((8, 8, false)));
    assert!(BodyScanner::new(Framing::UntilClose).may_end() && !BodyScanner::new(Framing::Length(1)).may_end());
    assert_eq!(BodyScanner::new(Framing::Length(7)).remaining(), Some(7));
}

#[test]
fn chunks_that_are_right() {
    for (body, payload) in [
        (&b"0\r\n\r\n"[..], 0),
        (b"5\r\nhello\r\n0\r\n\r\n", 5),
        (b"005\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", 6),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", 20),
        (b"3;name=value; other=\"a b\"\r\n\r\n\n\r\n0;x\r\n\r\n", 3),
        (b"1\r\nx\r\n0\r\ngrpc-status: 0\r\nX-Empty:\r\n\r\n", 1),
    ] {
        assert_eq!(chunked(body), Ok((body.len(), payload, true)), "{}", body.escape_ascii());
        let mut next = body.to_vec();
        next.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(chunked(&next), Ok((body.len(), payload, true)), "what follows is not touched");
        for end in 0..body.len() {
            let (len, _, done) = chunked(&body[..end]).expect("a part of it is no fault");
            assert!(len == end && !done);
        }
    }
}

#[test]
fn chunks_that_are_refused() {
    for body in [
        &b"\r\n"[..],
        b"\n",
        b" 5\r\n",
        b"5 \r\nhello",
        b"5\t;a\r\n",
        b"+5\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"5h\r\n",
        b"g\r\n",
        b";a\r\n",
        b"5\nhello",
        b"5\r5",
        b"5\r\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"10000000000000000\r\n",
        b"00000000000000000\r\n",
        b"5;a\nhello",
        b"5;a\0\r\n",
        b"5;\x7f\r\n",
        b"5;\xff\r\n",
        b"5;a\rb\r\n",
        b"0\r\n\n",
        b"0\r\n\rX",
        b"0\r\nX\r\n\r\n",
        b"0\r\n: v\r\n\r\n",
        b"0\r\nX : v\r\n\r\n",
        b"0\r\n X: v\r\n\r\n",
        b"0\r\nX: v\n\r\n",
        b"0\r\nX: v\r\r\n",
        b"0\r\nX: v\r\n folded\r\n\r\n",
        b"0\r\nX: \0\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"0\r\nHOST: a\r\n\r\n",
        b"0\r\nConnection: close\r\n\r\n",
        b"0\r\nAuthorization: a\r\n\r\n",
        b"0\r\nX-Forwarded-For: ::1\r\n\r\n",
        b"0\r\nx-weir-anything-at-all-however-long: a\r\n\r\n",
        b"0\r\nproxy-authorization: a\r\n\r\n",
    ] {
        assert!(chunked(body).is_err(), "{}", body.escape_ascii());
    }
    assert!(chunked(b"0\r\nproxy-authorizationX: a\r\n\r\n").is_ok());
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let one = [b"1;".as_slice(), &[b'a'; 257], b"\r\n"].concat();
    assert_eq!(scan(Framing::Chunked, &[&one]), Err("chunk extensions are too long"));
    let many = [b"1;".as_slice(), &[b'a'; 250], b"\r\nx\r\n"].concat().repeat(66);
    assert_eq!(scan(Framing::Chunked, &[&many]), Err("chunk extensions are too long"));
    let lines = [b"0\r\n".as_slice(), &b"a: b\r\n".repeat(65)].concat();
    assert_eq!(scan(Framing::Chunked, &[&lines]), Err("too many trailers"));
    let long = [b"0\r\na: ".as_slice(), &[b'x'; 17_000]].concat();
    assert_eq!(scan(Framing::Chunked, &[&long]), Err("the trailers are too long"));
    let name = [b"0\r\n".as_slice(), &[b'x'; 70_000]].concat();
    assert_eq!(scan(Framing::Chunked, &[&name]), Err("the trailers are too long"));
}

#[test]
fn pieces_give_the_payload_alone() {
    let body = b"5;x\r\nhello\r\n1\r\n!\r\n0\r\nx: y\r\n\r\nrest";
    let mut scanner = BodyScanner::new(Framing::Chunked);
    let (mut at, mut payload) = (0, Vec::new());
    while !scanner.is_done() {
        let piece = scanner.piece(&body[at..]).expect("it is right");
        if piece.is_payload {
            payload.extend_from_slice(&body[at..at + piece.len]);
        }
        at += piece.len;
    }
    assert_eq!((&payload[..], &body[at..]), (&b"hello!"[..], &b"rest"[..]));
}

#[test]
fn the_scanner_stays_small() {
    assert!(size_of::<BodyScanner>() <= 48, "{}", size_of::<BodyScanner>());
}

proptest! {
    #[test]
    fn never_panics_and_cuts_make_no_difference(
        bytes in proptest::collection::vec(proptest::sample::select(b"0123aF;\r\n\r\n: xX\0".to_vec()), 0..80),
        cuts in proptest::collection::vec(0_usize..80, 0..6),
    ) {
        let mut pieces = vec![];
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
        pieces.push(&bytes[from..]);
        prop_assert_eq!(scan(Framing::Chunked, &pieces), scan(Framing::Chunked, &[&bytes]));
    }

    #[test]
    fn what_is_sent_in_chunks_is_found(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6)) {
        let mut body = bytes::BytesMut::new();
        for part in &parts {
            super::super::write_chunk_size(&mut body, part.len());
            body.extend_from_slice(part);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(super::super::LAST_CHUNK);
        let payload = parts.iter().map(|part| part.len() as u64).sum();
        prop_assert_eq!(scan(Framing::Chunked, &[&body]), Ok((body.len(), payload, true)));
    }
}
