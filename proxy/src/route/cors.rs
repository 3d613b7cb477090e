//! Which pages of other origins may call, as browsers ask (the Fetch standard, "CORS protocol").

use bytes::Bytes;

use super::pattern::Pattern;
use crate::http::RequestHead;

/// A rule for calls from pages of other origins. Lists are as they stand in the answers' headers.
#[derive(Debug, Clone, Default)]
pub struct Cors {
    /// Origins that may call.
    pub origins: Vec<Origin>,
    /// Methods.
    pub methods: Box<str>,
    /// Request headers.
    pub headers: Box<str>,
    /// Answer headers that the page may read.
    pub expose: Box<str>,
    /// For how many seconds a browser may keep this.
    pub max_age: Box<str>,
    /// With cookies and the like.
    pub credentials: bool,
    /// Preflight requests of other origins go on to the endpoint.
    pub forwards_others: bool,
}

/// Origins.
#[derive(Debug, Clone)]
pub enum Origin {
    /// Every one.
    Any,
    /// This one.
    Exact(Box<str>),
    /// All that begin so.
    Prefix(Box<str>),
    /// All that end so.
    Suffix(Box<str>),
    /// All that match.
    Pattern(OriginPattern),
}

/// An expression for the whole origin.
#[derive(Debug, Clone)]
pub struct OriginPattern(Pattern);

impl OriginPattern {
    /// Compiles it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        Pattern::new(pattern).map(Self)
    }
}

/// Header lines of an answer.
pub type Lines = Vec<(&'static str, Bytes)>;

/// What a preflight request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preflight {
    /// With these.
    Allowed(Lines),
    /// That this origin may not call: without any.
    Refused,
}

impl Origin {
    fn has(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact.as_bytes() == origin,
            Self::Prefix(prefix) => origin.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => origin.ends_with(suffix.as_bytes()),
            Self::Pattern(pattern) => pattern.0.matches(origin),
        }
    }
}

impl Cors {
    /// What a request is answered that only asks what it may; `None` for any other request, and for one that the endpoint answers.
    pub fn preflight(&self, head: &RequestHead) -> Option<Preflight> {
        let asked = head.header("access-control-request-method").next().filter(|method| !method.is_empty())?;
        if head.method() != b"OPTIONS" || head.header("origin").next().is_none() {
            return None;
        }
        let Some(mut lines) = self.origin(head) else {
            return (!self.forwards_others).then_some(Preflight::Refused);
        };
        let asked_headers = head.header("access-control-request-headers").next().unwrap_or_default();
        for (name, list, asked) in [
            ("access-control-allow-methods", &self.methods, asked),
            ("access-control-allow-headers", &self.headers, asked_headers),
        ] {
            // With credentials a browser does not take `*` for all.
            let value = if &**list == "*" && self.credentials { asked } else { list.as_bytes() };
            if !value.is_empty() {
                lines.push((name, Bytes::copy_from_slice(value)));
            }
        }
        if !self.max_age.is_empty() {
            lines.push(("access-control-max-age", Bytes::copy_from_slice(self.max_age.as_bytes())));
        }
        Some(Preflight::Allowed(lines))
    }

    /// Lines of the answer to a request of a page that may call.
    pub fn answer(&self, head: &RequestHead) -> Option<Lines> {
        let mut lines = self.origin(head)?;
        if !self.expose.is_empty() {
            lines.push(("access-control-expose-headers", Bytes::copy_from_slice(self.expose.as_bytes())));
        }
        Some(lines)
    }

    /// That the origin may call; `None` where it may not, or there is none.
    fn origin(&self, head: &RequestHead) -> Option<Lines> {
        let origin = head.header("origin").next().filter(|origin| !origin.is_empty())?;
        if !self.origins.iter().any(|one| one.has(origin)) {
            return None;
        }
        let mut lines = vec![("access-control-allow-origin", Bytes::copy_from_slice(origin))];
        if self.credentials {
            lines.push(("access-control-allow-credentials", Bytes::from_static(b"true")));
        }
        Some(lines)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::http::{Limits, h1::RequestDecoder};

    fn head(line: &str, headers: &str) -> RequestHead {
        let text = format!("{line} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        RequestDecoder::new().decode(&mut BytesMut::from(text.as_bytes()), &Limits::default()).unwrap().unwrap()
    }

    fn text(lines: Lines) -> String {
        lines.iter().map(|(name, value)| format!("{name}: {}; ", String::from_utf8_lossy(value))).collect()
    }

    #[test]
    fn preflights_are_known_and_answered() {
        let cors = Cors {
            origins: vec![
                Origin::Exact("https://a.example".into()),
                Origin::Pattern(OriginPattern::new(r"https://.*\.b\.example").unwrap()),
            ],
            methods: "GET, PUT".into(),
            headers: "*".into(),
            expose: "x-a".into(),
            max_age: "60".into(),
            credentials: true,
            forwards_others: false,
        };
        let ask = "access-control-request-method: PUT\r\naccess-control-request-headers: x-b\r\n";
        let from = |origin: &str| head("OPTIONS /", &format!("origin: {origin}\r\n{ask}"));
        let Some(Preflight::Allowed(lines)) = cors.preflight(&from("https://x.b.example")) else { panic!() };
        assert_eq!(
            text(lines),
            "access-control-allow-origin: https://x.b.example; access-control-allow-credentials: true; \
             access-control-allow-methods: GET, PUT; access-control-allow-headers: x-b; access-control-max-age: 60; "
        );
        assert_eq!(cors.preflight(&from("https://a.example.evil")), Some(Preflight::Refused));
        let forwards = Cors { forwards_others: true, ..cors.clone() };
        assert_eq!(forwards.preflight(&from("https://evil")), None);
        for other in [
            head("GET /", &format!("origin: https://a.example\r\n{ask}")),
            head("OPTIONS /", ask),
            head("OPTIONS /", "origin: https://a.example\r\n"),
        ] {
            assert_eq!(cors.preflight(&other), None);
        }
        let answer = cors.answer(&head("GET /", "origin: https://a.example\r\n")).map(text).unwrap();
        assert!(answer.contains("expose-headers: x-a") && !answer.contains("methods"), "{answer}");
        assert!(cors.answer(&head("GET /", "origin: https://evil\r\n")).is_none());
        assert!(cors.answer(&head("GET /", "")).is_none());
        let any = Cors { origins: vec![Origin::Any], headers: "*".into(), ..Cors::default() };
        let Some(Preflight::Allowed(lines)) = any.preflight(&from("https://evil")) else { panic!() };
        assert!(text(lines).contains("access-control-allow-headers: *;"));
    }
}
