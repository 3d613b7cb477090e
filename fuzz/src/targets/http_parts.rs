//! Parts of a head: path, authority, changes to headers.

use arbitrary::Unstructured;
use bytes::{Bytes, BytesMut};
use weir_proxy::http::{
    Edit, Edits, Limits, Name, RequestHead, Value, authority,
    h1::{ForwardRequest, RequestDecoder, write_request},
    path::{self, PathError},
};

use crate::{Shape, Target, magnitude, none};

pub(super) const PATH: Target = Target {
    name: "path",
    holds: "a normal path has no dot segments and no double slashes, means what RFC 3986 says, and is normal the second time",
    max_len: 1024,
    words: &[&[
        b"/",
        b"//",
        b"\\",
        b"/./",
        b"/../",
        b"..",
        b"%2e",
        b"%2E%2e",
        b"%2f",
        b"%2F",
        b"%5c",
        b"%25",
        b"%252e",
        b"%00",
        b"%c0%af",
        b"%e0%80%af",
        b"%32%66",
        b"%%32",
        b"%u002e",
        b";",
        b"/..;/",
        b";jsessionid=1",
        b"#",
        b"?",
        b"a",
        b".",
        b"~",
        b"%7e",
        b"%",
        b"\0",
        b"\xc0\xae",
        b" ",
    ]],
    seeds: none,
    run: normalise,
};

pub(super) const AUTHORITY: Target = Target {
    name: "authority",
    holds: "host and port are parts of the text, nothing of it is lost, and equality of hosts is an equality",
    max_len: 512,
    words: &[&[
        b":",
        b":80",
        b":65536",
        b"[::1]",
        b"[fe80::1%25eth0]",
        b"]",
        b"@",
        b"user:pass@",
        b".",
        b"..",
        b"%41",
        b"%",
        b"a",
        b"A",
        b"catalog.shop.svc.cluster.local",
        b"127.0.0.1",
        b"\0",
        b" ",
        b"/",
        b"\xff",
        b"*",
        b",",
    ]],
    seeds: none,
    run: split,
};

pub(super) const HEADER_EDITS: Target = Target {
    name: "header_edits",
    holds: "a request with edits has the headers that a plain reading of the edits gives, and stays one request",
    max_len: 512,
    words: &[&[b"\r\n", b"x-a", b"X-A", b"set-cookie", b"host", b"content-length", b"a,b", b"", b"\0"]],
    seeds: none,
    run: edit,
};

/// RFC 3986 and the module's text, without a thought for speed.
fn plain(path: &[u8]) -> Result<Vec<u8>, PathError> {
    if path.first() != Some(&b'/') {
        return Err(PathError::NoSlash);
    }
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        match byte {
            b'%' => {
                let digits = path.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
                let digits =
                    std::str::from_utf8(digits.ok_or(PathError::BadEscape)?).map_err(|_| PathError::BadEscape)?;
                match u8::from_str_radix(digits, 16).map_err(|_| PathError::BadEscape)? {
                    0 => return Err(PathError::Nul),
                    byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => decoded.push(byte),
                    byte => decoded.extend(format!("%{byte:02X}").bytes()),
                }
                at += 2;
            }
            b'\\' => decoded.push(b'/'),
            b'#' | b'?' => return Err(PathError::BadCharacter),
            byte if byte.is_ascii_graphic() => decoded.push(*byte),
            _ => return Err(PathError::BadCharacter),
        }
        at += 1;
    }
    let segments: Vec<&[u8]> = decoded.split(|byte| *byte == b'/').skip(1).collect();
    let mut kept: Vec<&[u8]> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            b"." => {}
            b".." => {
                kept.pop();
            }
            name => {
                kept.push(name);
                continue;
            }
        }
        if last {
            kept.push(b"");
        }
    }
    let mut out = Vec::new();
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    while let Some(double) = out.windows(2).position(|pair| pair == b"//") {
        out.remove(double);
    }
    Ok(out)
}

fn normalise(bytes: &[u8]) -> Shape {
    let ours = path::normalise(bytes).map(|changed| changed.unwrap_or_else(|| bytes.to_vec()));
    match (&ours, plain(bytes)) {
        (Ok(ours), Ok(plain)) => assert_eq!(ours.escape_ascii().to_string(), plain.escape_ascii().to_string()),
        // Which of several faults is told is nobody's business.
        (Err(_), Err(_)) => {}
        (ours, plain) => panic!("{ours:?}, and plainly {plain:?}"),
    }
    let Ok(normal) = ours else { return Shape::of(format!("{ours:?}")) };
    assert_eq!(path::normalise(&normal), Ok(None), "not normal the second time: {}", normal.escape_ascii());
    assert!(!normal.windows(2).any(|pair| pair == b"//") && !normal.contains(&b'\\'));
    assert!(normal.split(|byte| *byte == b'/').all(|segment| segment != b"." && segment != b".."));
    let slashes = |text: &[u8]| text.iter().filter(|byte| matches!(byte, b'/' | b'\\')).count();
    assert!(slashes(&normal) <= slashes(bytes).max(1), "a slash out of an encoded one");
    Shape::of((
        magnitude(slashes(&normal)),
        normal.len() == bytes.len(),
        normal.contains(&b'%'),
        normal.ends_with(b"/"),
    ))
}

fn split(bytes: &[u8]) -> Shape {
    let split = authority::split(bytes);
    if let Ok((host, port)) = split {
        assert!(!host.is_empty() && bytes.starts_with(host));
        assert!(host.is_ascii() && !host.iter().any(|byte| byte.is_ascii_control() || b" /?#@\\\"<>".contains(byte)));
        let rest = &bytes[host.len()..];
        match port {
            None => assert!(matches!(rest, b"" | b":"), "lost: {}", rest.escape_ascii()),
            Some(port) => {
                let digits = std::str::from_utf8(&rest[1..]).unwrap_or_default();
                assert_eq!((rest[0], digits.parse::<u32>()), (b':', Ok(u32::from(port))));
            }
        }
        assert_eq!(authority::split(host), Ok((host, None)), "a host is an authority");
        assert!(authority::same_host(host, host) && authority::same_host(&host.to_ascii_uppercase(), host));
    }
    // The two halves as hosts.
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let same = authority::same_host(one, other);
    assert_eq!(same, authority::same_host(other, one));
    if same {
        let bare = |host: &[u8]| host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase();
        assert_eq!(bare(one), bare(other));
    }
    Shape::of((split.map(|(host, port)| (host.starts_with(b"["), port.is_some(), magnitude(host.len()))), same))
}

const NAMES: [&str; 6] = ["x-a", "X-A", "x-b", "accept", "set-cookie", "x_a"];

/// Received header lines, and lists of edits.
type Made = (Vec<(String, Vec<u8>)>, Vec<Edits>);

/// Some headers and some lists of edits, made of the bytes.
fn made(bytes: &[u8]) -> arbitrary::Result<Made> {
    let mut source = Unstructured::new(bytes);
    let mut headers = Vec::new();
    for _ in 0..source.int_in_range(0..=5)? {
        let name = *source.choose(&NAMES)?;
        let value = Value::new(Bytes::from(source.arbitrary::<Vec<u8>>()?)).ok();
        headers.push((name.to_owned(), value.map_or_else(|| b"v".to_vec(), |value| value.as_bytes().to_vec())));
    }
    let mut lists = Vec::new();
    for _ in 0..source.int_in_range(0..=3)? {
        let mut list = Edits::new();
        for _ in 0..source.int_in_range(0..=4)? {
            let known = source.ratio(7, 8)?;
            let name = if known { (*source.choose(&NAMES)?).to_owned() } else { source.arbitrary::<String>()? };
            let value: Vec<u8> = source.arbitrary()?;
            let (Ok(name), Ok(value)) = (Name::new(&name), Value::new(Bytes::from(value))) else { continue };
            match source.int_in_range(0..=2)? {
                0 => list.set(name, value),
                1 => list.add(name, value),
                _ => list.remove(name),
            }
        }
        lists.push(list);
    }
    Ok((headers, lists))
}

/// The values of a header after the edits, as its documentation says: `set` replaces, `remove` drops, `add` appends to the last line
/// as `old,new`. An empty line that was received is no element of a list.
fn expected(name: &[u8], received: &[Vec<u8>], lists: &[&Edits]) -> Vec<Vec<u8>> {
    let joins = !name.eq_ignore_ascii_case(b"set-cookie");
    let is_meant = |of: &Name| of.as_bytes().eq_ignore_ascii_case(name);
    let mut values: Vec<Vec<u8>> = received.to_vec();
    let mut as_received = true;
    for edit in lists.iter().flat_map(|list| list.iter()) {
        match edit {
            Edit::Set(of, value) if is_meant(of) => values = vec![value.as_bytes().to_vec()],
            Edit::Remove(of) if is_meant(of) => values.clear(),
            Edit::Add(of, value) if is_meant(of) => match values.last_mut() {
                Some(last) if joins => {
                    if !(as_received && last.is_empty()) {
                        last.push(b',');
                    }
                    last.extend_from_slice(value.as_bytes());
                }
                _ => values.push(value.as_bytes().to_vec()),
            },
            _ => continue,
        }
        as_received = false;
    }
    values
}

fn values(head: &RequestHead, name: &[u8]) -> Vec<Vec<u8>> {
    head.headers().filter(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_vec()).collect()
}

fn edit(bytes: &[u8]) -> Shape {
    let Ok((headers, lists)) = made(bytes) else { return Shape::of("too short") };
    let lists: Vec<&Edits> = lists.iter().collect();
    let mut request = BytesMut::from(&b"POST /a?b HTTP/1.1\r\nHost: c\r\nContent-Length: 3\r\n"[..]);
    for (name, value) in &headers {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let limits = Limits::default();
    let Ok(Some(head)) = RequestDecoder::new().decode(&mut request, &limits) else {
        panic!("headers of our own are taken")
    };
    let mut out = BytesMut::new();
    write_request(&mut out, &head, &lists, &ForwardRequest::unchanged(&head));
    let sent = out.clone();
    let Ok(Some(again)) = RequestDecoder::new().decode(&mut out, &limits) else {
        panic!("what goes out is no request: {}", sent.escape_ascii())
    };
    assert!(out.is_empty(), "more than one head goes out: {}", sent.escape_ascii());
    assert_eq!((again.framing(), again.path(), again.host()), (head.framing(), head.path(), head.host()));
    let edited = lists.iter().flat_map(|list| list.iter()).map(|edit| match edit {
        Edit::Set(name, _) | Edit::Add(name, _) | Edit::Remove(name) => name.as_bytes().to_vec(),
    });
    let names: std::collections::BTreeSet<Vec<u8>> =
        edited.chain(headers.iter().map(|(name, _)| name.to_ascii_lowercase().into_bytes())).collect();
    for name in &names {
        let want = expected(name, &values(&head, name), &lists);
        assert_eq!(values(&again, name), want, "{}: {}", name.escape_ascii(), sent.escape_ascii());
    }
    assert_eq!(again.headers().count(), 2 + names.iter().map(|name| values(&again, name).len()).sum::<usize>());
    Shape::of((headers.len(), lists.iter().map(|list| list.iter().count()).sum::<usize>(), again.headers().count()))
}
