//! What a connection speaks, from its first bytes.
//!
//! Pure functions over the bytes received so far; whoever reads them decides how long to wait. A ClientHello may span packets and is
//! parsed by rustls, of whose answer only the ALPN list and the server name are used.

use rustls::server::Acceptor;

/// Longest first line that is looked at before a stream that might be HTTP is taken as opaque, in bytes.
const MAX_FIRST_LINE: usize = 16 * 1024;
/// Longest ClientHello that is collected, in bytes (post-quantum key shares make 2 kB usual).
pub const MAX_CLIENT_HELLO: usize = 64 * 1024;

/// What the first bytes of a stream show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// Not enough bytes to tell.
    Unclear,
    /// A TLS handshake.
    Tls,
    /// An HTTP/1.x request line.
    Http1,
    /// The HTTP/2 connection preface (RFC 9113, section 3.4).
    Http2,
    /// Anything else.
    Other,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at the first bytes of a stream.
pub fn spoken(bytes: &[u8]) -> Spoken {
    match bytes {
        [] | [0x16] => return Spoken::Unclear,
        [0x16, 0x03, ..] => return Spoken::Tls,
        _ => {}
    }
    let common = bytes.len().min(PREFACE.len());
    if bytes.get(..common) == PREFACE.get(..common) {
        return if common == PREFACE.len() { Spoken::Http2 } else { Spoken::Unclear };
    }
    // A request line: an upper-case method, a target, and the version behind it (RFC 9112, section 3). Text protocols such as
    // SMTP or redis' inline commands begin alike: only the version decides.
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-' || **b == b'_').count();
    if method > 32 {
        return Spoken::Other;
    }
    match bytes.get(method) {
        None => return Spoken::Unclear,
        Some(b' ') if method > 0 => {}
        Some(_) => return Spoken::Other,
    }
    let rest = bytes.get(method + 1..).unwrap_or_default();
    // Not further than where the verdict fell if the line came in pieces.
    match memchr::memchr(b'\n', rest.get(..=MAX_FIRST_LINE).unwrap_or(rest)) {
        Some(end) => {
            let line = rest.get(..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let http = line.len().checked_sub(b" HTTP/1.x".len()).and_then(|at| line.get(at..));
            if http.is_some_and(|tail| tail.starts_with(b" HTTP/1.")) { Spoken::Http1 } else { Spoken::Other }
        }
        None if rest.len() > MAX_FIRST_LINE => Spoken::Other,
        None => Spoken::Unclear,
    }
}

/// What a ClientHello says, as far as the proxy cares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    /// Protocols offered (RFC 7301), in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// Server name, if sent.
    pub server_name: Option<String>,
}

/// A ClientHello from the bytes received so far.
pub enum HelloState {
    /// More bytes are needed.
    Incomplete,
    /// No ClientHello, or one that no TLS implementation of ours understands: for the application to judge.
    Invalid,
    /// Complete; the second part goes on with the handshake from here.
    Complete(Hello, Box<rustls::server::Accepted>),
}

/// Parses a ClientHello without consuming the bytes.
pub fn client_hello(bytes: &[u8]) -> HelloState {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return HelloState::Invalid;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let hello = Hello {
                    alpn: hello.alpn().map(|list| list.map(<[u8]>::to_vec).collect()).unwrap_or_default(),
                    server_name: hello.server_name().map(str::to_owned),
                };
                return HelloState::Complete(hello, Box::new(accepted));
            }
            Ok(None) => {}
            Err(_) => return HelloState::Invalid,
        }
    }
    if bytes.len() > MAX_CLIENT_HELLO { HelloState::Invalid } else { HelloState::Incomplete }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes() {
        for (bytes, want) in [
            (&b""[..], Spoken::Unclear),
            (b"\x16", Spoken::Unclear),
            (b"\x16\x03\x01", Spoken::Tls),
            (b"\x16\x04", Spoken::Other),
            (b"G", Spoken::Unclear),
            (b"GET", Spoken::Unclear),
            (b"GET /", Spoken::Unclear),
            (b"GET / HTTP/1.1\r\n", Spoken::Http1),
            (b"GET / HTTP/1.0\n", Spoken::Http1),
            (b"MKCOL /x HTTP/1.1\r\nHost: a\r\n", Spoken::Http1),
            (b"GET /\r\n", Spoken::Other),
            (b"SET key value\r\n", Spoken::Other),
            (b"EHLO mail\r\n", Spoken::Other),
            (b"PING\r\n", Spoken::Other),
            (b"*1\r\n$4\r\nPING\r\n", Spoken::Other),
            (b"PRI * HT", Spoken::Unclear),
            (PREFACE, Spoken::Http2),
            (b"get / HTTP/1.1\r\n", Spoken::Other),
            (b" GET / HTTP/1.1\r\n", Spoken::Other),
        ] {
            assert_eq!(spoken(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_the_same_whole_and_in_pieces() {
        let request = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_FIRST_LINE));
        let known: Vec<Spoken> = (0..=request.len()).map(|end| spoken(&request.as_bytes()[..end])).collect();
        let decided = known.iter().position(|spoken| *spoken != Spoken::Unclear).unwrap();
        assert!(known[decided..].iter().all(|spoken| *spoken == Spoken::Other));
    }

    #[test]
    fn every_prefix_of_a_request_is_unclear_or_http() {
        let request = b"OPTIONS /a/b?c HTTP/1.1\r\nHost: x\r\n\r\n";
        for end in 0..request.len() {
            assert!(matches!(spoken(&request[..end]), Spoken::Unclear | Spoken::Http1), "{end}");
        }
    }
}
