//! The one path normaliser: what a rule is matched against is what is forwarded, byte for byte.
//!
//! The policy is Istio's `BASE` with `MERGE_SLASHES`, which in Envoy are `normalize_path` and `merge_slashes`:
//! 1. percent-encoded unreserved characters are decoded, once (`%252e` becomes nothing else); the digits of the others are
//!    written in upper case; a backslash becomes a slash;
//! 2. dot segments are removed (RFC 3986, 5.2.4);
//! 3. then neighbouring slashes are merged.
//!
//! `%2F` and `%5C` stay encoded: to decode them changes the meaning for applications that use them. Refused, because two
//! parsers may disagree about them: `%00`, a percent sign without two hexadecimal digits (`%%32%66` would become `%2f` when
//! decoded twice), `#`, spaces, control characters and bytes outside ASCII. Path parameters (`;…`) are not looked into.

use super::chars::is_unreserved;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum PathError {
    /// It does not begin with a slash.
    NoSlash,
    /// A byte that no path may hold.
    BadCharacter,
    /// `%` without two hexadecimal digits.
    BadEscape,
    /// `%00`.
    Nul,
}

impl PathError {
    /// The same text, for a [`super::Refused`].
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSlash => "the path does not begin with a slash",
            Self::BadCharacter => "the path has a character that no path may have",
            Self::BadEscape => "the path has a percent sign without two hexadecimal digits",
            Self::Nul => "the path has an encoded NUL",
        }
    }
}

/// Normalises `path` (no query). `None` means that it is normal as it is, the common case: one pass, nothing allocated.
///
/// # Errors
/// [`PathError`], see the module's text.
pub fn normalise(path: &[u8]) -> Result<Option<Vec<u8>>, PathError> {
    if path.first() != Some(&b'/') {
        return Err(PathError::NoSlash);
    }
    if is_normal(path)? { Ok(None) } else { Ok(Some(merge_slashes(&remove_dot_segments(&decode(path)?)))) }
}

fn is_normal(path: &[u8]) -> Result<bool, PathError> {
    let mut normal = true;
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'/' => {
                normal &= !matches!(tail, [b'/' | b'\\', ..]);
                if let [b'.', dots @ ..] = tail {
                    normal &= !matches!(dots, [] | [b'/' | b'\\', ..] | [b'.'] | [b'.', b'/' | b'\\', ..]);
                }
            }
            b'%' => {
                let (decoded, tail) = escape(tail)?;
                normal &= !is_unreserved(decoded) && !rest.iter().take(2).any(u8::is_ascii_lowercase);
                rest = tail;
            }
            b'\\' => normal = false,
            b'#' | b'?' => return Err(PathError::BadCharacter),
            b'!'..=b'~' => {}
            _ => return Err(PathError::BadCharacter),
        }
    }
    Ok(normal)
}

/// The byte that two hexadecimal digits stand for, and what follows them.
fn escape(digits: &[u8]) -> Result<(u8, &[u8]), PathError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let [high, low, rest @ ..] = digits else { return Err(PathError::BadEscape) };
    match (digit(*high), digit(*low)) {
        (Some(0), Some(0)) => Err(PathError::Nul),
        (Some(high), Some(low)) => Ok((high << 4 | low, rest)),
        _ => Err(PathError::BadEscape),
    }
}

fn decode(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'\\' => out.push(b'/'),
            b'%' => {
                let (decoded, tail) = escape(tail)?;
                if is_unreserved(decoded) {
                    out.push(decoded);
                } else {
                    out.push(b'%');
                    out.extend(rest.iter().take(2).map(u8::to_ascii_uppercase));
                }
                rest = tail;
            }
            other => out.push(*other),
        }
    }
    Ok(out)
}

fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            name => {
                out.push(b'/');
                out.extend_from_slice(name);
                continue;
            }
        }
        if last {
            out.push(b'/');
        }
    }
    out
}

fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for byte in path {
        if *byte != b'/' || out.last() != Some(&b'/') {
            out.push(*byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(path: &str) -> String {
        match normalise(path.as_bytes()) {
            Ok(None) => path.to_owned(),
            Ok(Some(changed)) => String::from_utf8(changed).expect("ASCII"),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/b/",
            "/.well-known/x",
            "/..a/b..",
            "/a.b",
            "/a;v=1/b",
            "/%2F%5C%C3%A4",
            "/...",
            "/a:b@c!$&'()*+,=",
        ] {
            assert_eq!(normalise(path.as_bytes()), Ok(None), "{path}");
        }
    }

    /// The groups of Istio's normalisation test, under BASE and MERGE_SLASHES, and more.
    #[test]
    fn paths_that_are_changed() {
        for (received, forwarded) in [
            // dot segments
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/.", "/"),
            ("/../../a", "/a"),
            ("/a/../../b", "/b"),
            ("/./../admin", "/admin"),
            ("/a/b/c/../../../d", "/d"),
            // slashes
            ("//admin", "/admin"),
            ("/a//b", "/a/b"),
            ("/a///b//", "/a/b/"),
            ("//", "/"),
            ("/a//../b", "/a/b"),
            ("//../a", "/a"),
            // backslashes
            ("/a\\b", "/a/b"),
            ("/\\admin", "/admin"),
            ("/a\\..\\b", "/b"),
            ("/a/..\\b", "/b"),
            ("/.\\a", "/a"),
            // encodings
            ("/%61dmin", "/admin"),
            ("/%41%5a%5F%7e%2D%2e%30", "/AZ_~-.0"),
            ("/%2e%2e/a", "/a"),
            ("/a/%2E/b", "/a/b"),
            ("/a/.%2e/b", "/b"),
            ("/%2fadmin", "/%2Fadmin"),
            ("/a%5cb", "/a%5Cb"),
            ("/%c3%a4", "/%C3%A4"),
            ("/a%3bb", "/a%3Bb"),
            ("/%252e%252e/%61", "/%252e%252e/a"),
            ("/%0a%61", "/%0Aa"),
            ("/%2f..%2f%61", "/%2F..%2Fa"),
        ] {
            assert_eq!(normal(received), forwarded, "{received}");
            assert_eq!(normalise(forwarded.as_bytes()), Ok(None), "{forwarded} is normal");
        }
    }

    #[test]
    fn paths_that_are_refused() {
        for (path, error) in [
            ("", PathError::NoSlash),
            ("a", PathError::NoSlash),
            ("\\a", PathError::NoSlash),
            ("*", PathError::NoSlash),
            ("/a#b", PathError::BadCharacter),
            ("/a?b", PathError::BadCharacter),
            ("/a b", PathError::BadCharacter),
            ("/a\tb", PathError::BadCharacter),
            ("/a\0", PathError::BadCharacter),
            ("/\u{7f}", PathError::BadCharacter),
            ("/ä", PathError::BadCharacter),
            ("/%00", PathError::Nul),
            ("/..%00/", PathError::Nul),
            ("/%", PathError::BadEscape),
            ("/%4", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%%32%66", PathError::BadEscape),
            ("/%u0041", PathError::BadEscape),
            ("/%+1", PathError::BadEscape),
        ] {
            assert_eq!(normalise(path.as_bytes()), Err(error), "{path}");
        }
    }

    /// All 256 encoded bytes: NUL refused, unreserved decoded, every other one kept with digits in upper case.
    #[test]
    fn every_encoded_byte() {
        for byte in 0..=255_u8 {
            let path = format!("/x%{byte:02x}y");
            let expected = match byte {
                0 => format!("{:?}", PathError::Nul),
                _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => format!("/x{}y", char::from(byte)),
                _ => format!("/x%{byte:02X}y"),
            };
            assert_eq!(normal(&path), expected);
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_is_idempotent(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            check(&path)?;
        }

        #[test]
        fn idempotent_on_what_attackers_send(parts in proptest::collection::vec(
            proptest::sample::select(vec!["/", "//", "\\", ".", "..", "%2e", "%2E", "%2f", "%5c", "%25", "%32", "%65", "a", ";", "%61", "%"]), 0..24)) {
            check(format!("/{}", parts.concat()).as_bytes())?;
        }
    }

    fn check(path: &[u8]) -> Result<(), TestCaseError> {
        let Ok(Some(first)) = normalise(path) else { return Ok(()) };
        prop_assert_ne!(&first[..], path);
        prop_assert_eq!(normalise(&first), Ok(None));
        prop_assert!(first.starts_with(b"/") && !first.windows(2).any(|pair| pair == b"//") && !first.contains(&b'\\'));
        prop_assert!(first.split(|byte| *byte == b'/').all(|segment| segment != b"." && segment != b".."));
        Ok(())
    }
}
