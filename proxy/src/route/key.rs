//! By what requests are to meet at one endpoint: consistent hashing, and sessions.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    http::RequestHead,
    net::{hash64, mix},
};

/// What makes up a request's hash; the first are rotated, so that their order counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPart {
    /// Where it is taken from.
    pub from: KeyFrom,
    /// Where it is there, no other counts.
    pub terminal: bool,
}

/// Where a part of a hash is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFrom {
    /// A header.
    Header(Box<str>),
    /// A cookie. One with a time to live is given to a caller that has none.
    Cookie {
        /// Its name, and what it is given with.
        cookie: Cookie,
        /// It is given at all.
        gives: bool,
    },
    /// A query parameter.
    Query(Box<str>),
    /// The caller's address.
    Source,
}

/// A cookie of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Name.
    pub name: Box<str>,
    /// Path; empty: none.
    pub path: Box<str>,
    /// How long a browser keeps it; 0: until it ends.
    pub ttl: Duration,
}

impl Cookie {
    /// Its value in a request.
    pub fn of<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let pairs = head.header("cookie").flat_map(|line| line.split(|byte| *byte == b';'));
        pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
            let value = pair.strip_prefix(self.name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
        })
    }

    /// The line that gives it.
    pub fn line(&self, value: &str) -> String {
        let mut line = format!("{}=\"{value}\"", self.name);
        if !self.ttl.is_zero() {
            line += &format!("; Max-Age={}", self.ttl.as_secs());
        }
        if !self.path.is_empty() {
            line += &format!("; Path={}", self.path);
        }
        line + "; HttpOnly"
    }
}

/// A request's hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    /// None where nothing of what it is made from is there.
    pub hash: Option<u64>,
    /// The line that gives the caller a cookie.
    pub cookie: Option<String>,
}

/// The hash of an address that calls.
pub fn source_hash(source: IpAddr) -> u64 {
    hash64(&[source.to_canonical().to_string().as_bytes()])
}

/// The hash of a request; a cookie that the caller has not is made from `random`.
pub fn key(parts: &[KeyPart], head: &RequestHead, source: Option<IpAddr>, random: u64) -> Key {
    let mut key = Key::default();
    for part in parts {
        let hash = match &part.from {
            KeyFrom::Header(name) => {
                let values: Vec<&[u8]> = head.header(name).collect();
                (!values.is_empty()).then(|| hash64(&values))
            }
            KeyFrom::Cookie { cookie, gives } => match cookie.of(head) {
                Some(value) => Some(hash64(&[value])),
                None if *gives => {
                    let value = format!("{:016x}", mix(random));
                    key.cookie = Some(cookie.line(&value));
                    Some(hash64(&[value.as_bytes()]))
                }
                None => None,
            },
            KeyFrom::Query(name) => super::matching::parameter(head.query().unwrap_or_default(), name.as_bytes())
                .map(|value| hash64(&[value])),
            KeyFrom::Source => source.map(source_hash),
        };
        if let Some(hash) = hash {
            key.hash = Some(key.hash.map_or(hash, |before| before.rotate_left(1) ^ hash));
            if part.terminal {
                break;
            }
        }
    }
    key
}

/// A caller stays with the endpoint that answered it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Where it is kept.
    pub kept: SessionIn,
    /// Where the endpoint is gone the request fails with this status; none: another endpoint takes over.
    pub strict: Option<u16>,
}

/// Where a session is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionIn {
    /// A cookie.
    Cookie(Cookie),
    /// A header, which the caller sends back.
    Header(Box<str>),
}

impl Session {
    /// The endpoint that a request names. Whether there is such a one, the caller of this sees.
    pub fn of(&self, head: &RequestHead) -> Option<SocketAddr> {
        let value = match &self.kept {
            SessionIn::Cookie(cookie) => cookie.of(head)?,
            SessionIn::Header(name) => head.header(name).next()?,
        };
        address(value)
    }

    /// The header line that names an endpoint for the next request.
    pub fn line(&self, endpoint: SocketAddr) -> (&str, String) {
        let value = text(endpoint);
        match &self.kept {
            SessionIn::Cookie(cookie) => ("set-cookie", cookie.line(&value)),
            SessionIn::Header(name) => (name, value),
        }
    }
}

/// An address as a token: hexadecimal digits of its text. No secret, but nothing that a caller should build upon.
fn text(address: SocketAddr) -> String {
    address.to_string().bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn address(token: &[u8]) -> Option<SocketAddr> {
    if token.len() > 128 || !token.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = token.chunks_exact(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    std::str::from_utf8(&bytes.collect::<Option<Vec<u8>>>()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::http::{Limits, h1::RequestDecoder};

    fn head(target: &str, headers: &str) -> RequestHead {
        let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        RequestDecoder::new().decode(&mut BytesMut::from(text.as_bytes()), &Limits::default()).unwrap().unwrap()
    }

    fn cookie(ttl: u64) -> Cookie {
        Cookie { name: "user".into(), path: "/".into(), ttl: Duration::from_secs(ttl) }
    }

    #[test]
    fn parts_make_a_hash() {
        let part = |from, terminal| KeyPart { from, terminal };
        let hash = |parts: &[KeyPart], head: &RequestHead| key(parts, head, "198.18.0.1".parse().ok(), 7).hash;
        let header = || KeyFrom::Header("x-user".into());
        let (ann, bob) = (head("/?a=1", "x-user: ann\r\n"), head("/?a=1", "x-user: bob\r\n"));
        assert_eq!(hash(&[part(header(), false)], &ann), hash(&[part(header(), false)], &ann));
        assert_ne!(hash(&[part(header(), false)], &ann), hash(&[part(header(), false)], &bob));
        assert_eq!(hash(&[part(header(), false)], &head("/", "")), None);
        let query = || KeyFrom::Query("a".into());
        assert_eq!(hash(&[part(query(), true), part(header(), false)], &ann), hash(&[part(query(), false)], &bob));
        assert_ne!(
            hash(&[part(query(), false), part(header(), false)], &ann),
            hash(&[part(header(), false), part(query(), false)], &ann),
            "the order counts"
        );
        assert!(hash(&[part(KeyFrom::Source, false)], &bob).is_some());
        let gives = KeyFrom::Cookie { cookie: cookie(60), gives: true };
        let new = key(&[part(gives.clone(), false)], &bob, None, 7);
        let line = new.cookie.unwrap();
        assert!(line.starts_with("user=\"") && line.ends_with("\"; Max-Age=60; Path=/; HttpOnly"), "{line}");
        let value = line.split('"').nth(1).unwrap();
        let again = head("/", &format!("cookie: other=1; user={value}\r\n"));
        assert_eq!(key(&[part(gives, false)], &again, None, 8), Key { hash: new.hash, cookie: None });
        let never = KeyFrom::Cookie { cookie: cookie(0), gives: false };
        assert_eq!(key(&[part(never, false)], &bob, None, 7), Key::default());
    }

    #[test]
    fn sessions_name_endpoints_and_nothing_else() {
        for kept in [SessionIn::Cookie(cookie(0)), SessionIn::Header("x-session".into())] {
            let session = Session { kept, strict: None };
            for endpoint in ["198.18.0.1:80", "[fd00::1]:8080"] {
                let endpoint: SocketAddr = endpoint.parse().unwrap();
                let (name, line) = session.line(endpoint);
                let sent = if name == "set-cookie" {
                    format!("cookie: a=b; {}\r\n", line.split(';').next().unwrap())
                } else {
                    format!("{name}: {line}\r\n")
                };
                assert_eq!(session.of(&head("/", &sent)), Some(endpoint));
            }
            for bad in ["", "zz", "3", "313233", &"31".repeat(100), "\u{e4}"] {
                assert_eq!(session.of(&head("/", &format!("x-session: {bad}\r\ncookie: user={bad}\r\n"))), None);
            }
        }
    }
}
