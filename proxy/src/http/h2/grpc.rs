//! What gRPC puts into HTTP/2: its deadline, its status, and how the proxy itself answers a call.
//!
//! Source: "gRPC over HTTP2" of the gRPC project.

use std::time::Duration;

/// `grpc-status` where a deadline has passed.
pub const DEADLINE_EXCEEDED: u8 = 4;
/// The largest status that has a meaning.
const LAST: u8 = 16;

/// True for a gRPC call or answer, by its `content-type`; gRPC-Web is something else.
pub fn is_grpc(kind: Option<&[u8]>) -> bool {
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

/// The time that the caller gives the call, by `grpc-timeout`: at most eight digits and a unit. `None` where there is none, or none that can be read;
/// the application judges that.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The status of a call, by `grpc-status` in its trailers, or in an answer that is nothing but trailers; one without a meaning is 2, unknown.
pub fn status(value: &[u8]) -> u8 {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|status| *status <= LAST).unwrap_or(2)
}

/// The status that stands for an HTTP status of the proxy's own, as gRPC maps them.
pub fn of_http(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 => 14,
        408 | 504 => DEADLINE_EXCEEDED,
        _ => 2,
    }
}

/// A text as the value of `grpc-message`: what is no visible ASCII, and `%`, by its percent code.
pub fn message(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(byte);
        } else {
            let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
            out.extend([b'%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        for (value, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;a=b", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(Some(value.as_bytes())), want, "{value}");
        }
        assert!(!is_grpc(None));
    }

    #[test]
    fn timeouts_saturate_and_never_fail() {
        for (value, want) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("7M", Some(Duration::from_secs(420))),
            ("5u", Some(Duration::from_micros(5))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("1 S", None),
        ] {
            assert_eq!(timeout(value.as_bytes()), want, "{value:?}");
        }
    }

    #[test]
    fn statuses() {
        for (value, want) in [("0", 0), ("16", 16), ("17", 2), ("", 2), ("x", 2)] {
            assert_eq!(status(value.as_bytes()), want, "{value:?}");
        }
        assert_eq!((of_http(503), of_http(404), of_http(403), of_http(418)), (14, 12, 7, 2));
    }

    #[test]
    fn messages_are_visible_ascii() {
        assert_eq!(message("weir: 5 % of 2 – ok\n"), b"weir: 5 %25 of 2 %E2%80%93 ok%0A");
    }
}
