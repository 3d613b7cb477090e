//! Host and port of a request, as its `Host` header or absolute target gives them.

use super::chars::is_reg_name;

/// Splits `host[:port]` and checks both (RFC 3986, 3.2.2 and 3.2.3). Brackets stay on an IPv6 address.
///
/// # Errors
/// What is wrong: user information, characters that no host has, a port that is none.
pub fn split(authority: &[u8]) -> Result<(&[u8], Option<u16>), &'static str> {
    let (host, port) = if authority.first() == Some(&b'[') {
        let end = authority.iter().position(|byte| *byte == b']').ok_or("the IPv6 address of the host has no end")?;
        let (host, rest) = authority.split_at(end.saturating_add(1));
        if !host.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'[' | b']' | b':' | b'.')) || end < 3 {
            return Err("the host is not an IPv6 address");
        }
        (host, rest)
    } else {
        let end = authority.iter().position(|byte| !is_reg_name(*byte)).unwrap_or(authority.len());
        authority.split_at(end)
    };
    if host.is_empty() {
        return Err("the host is empty");
    }
    for (at, _) in host.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        match host.get(at.saturating_add(1)..at.saturating_add(3)) {
            Some([high, low]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {}
            _ => return Err("the host has a percent sign without two hexadecimal digits"),
        }
    }
    match port {
        [] | [b':'] => Ok((host, None)),
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let port = digits.iter().fold(0_u32, |port, digit| port * 10 + u32::from(digit - b'0'));
            let port = u16::try_from(port).map_err(|_| "the port of the host is above 65535")?;
            Ok((host, Some(port)))
        }
        [b':', ..] => Err("the port of the host is not a number"),
        rest if rest.contains(&b'@') => Err("the host has user information"),
        _ => Err("the host has a character that no host may have"),
    }
}

/// Whether two hosts are the same name: letter case and one trailing dot do not count.
pub fn same_host(one: &[u8], other: &[u8]) -> bool {
    let bare = |host: &'_ [u8]| host.strip_suffix(b".").map_or(host.len(), <[u8]>::len);
    let (one, other) = (one.get(..bare(one)), other.get(..bare(other)));
    matches!((one, other), (Some(one), Some(other)) if one.eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_split_and_checked() {
        assert_eq!(split(b"catalog"), Ok((&b"catalog"[..], None)));
        assert_eq!(split(b"catalog.shop.svc.:8080"), Ok((&b"catalog.shop.svc."[..], Some(8080))));
        assert_eq!(split(b"a_b:"), Ok((&b"a_b"[..], None)));
        assert_eq!(split(b"[fd00::1]:80"), Ok((&b"[fd00::1]"[..], Some(80))));
        assert_eq!(split(b"[::]"), Ok((&b"[::]"[..], None)));
        for bad in [
            &b""[..],
            b":80",
            b"a:b",
            b"a:65536",
            b"a:123456",
            b"a:80:80",
            b"u@h",
            b"u:p@h",
            b"a b",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a\\b",
            b"a\0",
            b"a%",
            b"a%4",
            b"a%zz",
            b"[::1",
            b"[]",
            b"[fe80::1%25eth0]",
            b"[::1]x",
            b"\xc3\xa4",
            b"a\"",
            b"::1",
        ] {
            assert!(split(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn case_and_a_trailing_dot_do_not_count() {
        assert!(same_host(b"Catalog.shop.", b"catalog.shop"));
        assert!(!same_host(b"catalog", b"catalog.shop"));
        assert!(!same_host(b"catalog..", b"catalog"));
    }
}
