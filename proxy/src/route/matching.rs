//! Whether one route takes a request.

use super::{
    pattern::Pattern,
    spec::{HeaderSpec, MatchSpec, PathSpec, QuerySpec, TextSpec},
};
use crate::http::{RequestHead, path};

/// A compiled [`MatchSpec`].
#[derive(Debug)]
pub(super) struct Matcher {
    pub(super) path: PathMatch,
    headers: Box<[(String, TextMatch)]>,
    query: Box<[(String, TextMatch)]>,
    method: Option<String>,
}

#[derive(Debug)]
pub(super) enum PathMatch {
    Any,
    Exact(Box<[u8]>),
    /// Without a trailing slash.
    Prefix(Box<[u8]>),
    Regex(Pattern),
}

#[derive(Debug)]
enum TextMatch {
    Exact(Box<[u8]>),
    Regex(Pattern),
    Present,
}

impl Matcher {
    pub(super) fn new(spec: MatchSpec) -> Result<Self, String> {
        let headers = spec.headers.into_iter().map(|HeaderSpec { name, value }| {
            let name = name.to_ascii_lowercase();
            let value = TextMatch::new(value).map_err(|reason| format!("header {name}: {reason}"))?;
            Ok((if name == ":authority" { "host".to_owned() } else { name }, value))
        });
        let query = spec.query.into_iter().map(|QuerySpec { name, value }| {
            let value = TextMatch::new(value).map_err(|reason| format!("query parameter {name}: {reason}"))?;
            Ok((name, value))
        });
        Ok(Self {
            path: PathMatch::new(spec.path).map_err(|reason| format!("path: {reason}"))?,
            headers: headers.collect::<Result<_, String>>()?,
            query: query.collect::<Result<_, String>>()?,
            method: spec.method,
        })
    }

    pub(super) fn matches(&self, head: &RequestHead) -> bool {
        self.path.matches(head.path())
            && self.method.as_ref().is_none_or(|method| method.as_bytes() == head.method())
            && self.headers.iter().all(|(name, value)| value.matches_header(head, name))
            && self.query.iter().all(|(name, value)| value.matches_parameter(head, name))
    }
}

impl PathMatch {
    fn new(spec: PathSpec) -> Result<Self, String> {
        Ok(match spec {
            PathSpec::Any => Self::Any,
            PathSpec::Exact(path) => Self::Exact(normal(path)?),
            PathSpec::Prefix(path) => match &*normal(path)? {
                b"/" => Self::Any,
                path => Self::Prefix(path.strip_suffix(b"/").unwrap_or(path).into()),
            },
            PathSpec::Regex(pattern) => Self::Regex(Pattern::new(&pattern)?),
        })
    }

    pub(super) fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => matches!(path.strip_prefix(&**prefix), Some([] | [b'/', ..])),
            Self::Regex(pattern) => pattern.matches(path),
        }
    }
}

impl PathMatch {
    /// Bytes of a matching path that are what the match names: a prefix, or all of it.
    pub(super) fn matched(&self, path: &[u8]) -> usize {
        match self {
            Self::Any => path.len().min(1), // the prefix `/`
            Self::Prefix(prefix) => prefix.len(),
            Self::Exact(_) | Self::Regex(_) => path.len(),
        }
    }
}

/// Requests are matched after they are normalised, so what a rule says has to be as normal.
fn normal(path: String) -> Result<Box<[u8]>, String> {
    match path::normalise(path.as_bytes()) {
        Ok(None) => Ok(path.into_bytes().into()),
        Ok(Some(normal)) => Ok(normal.into()),
        Err(error) => Err(error.to_string()),
    }
}

impl TextMatch {
    fn new(spec: TextSpec) -> Result<Self, String> {
        Ok(match spec {
            TextSpec::Exact(text) => Self::Exact(text.into_bytes().into()),
            TextSpec::Regex(pattern) => Self::Regex(Pattern::new(&pattern)?),
            TextSpec::Present => Self::Present,
        })
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Regex(pattern) => pattern.matches(value),
            Self::Present => true,
        }
    }

    fn matches_header(&self, head: &RequestHead, name: &str) -> bool {
        if name == "host" {
            return self.matches(head.authority());
        }
        head.header(name).any(|value| self.matches(value))
    }

    fn matches_parameter(&self, head: &RequestHead, name: &str) -> bool {
        parameter(head.query().unwrap_or_default(), name.as_bytes()).is_some_and(|value| self.matches(value))
    }
}

/// The first value of a query parameter.
pub(super) fn parameter<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query.split(|byte| *byte == b'&').find_map(|pair| match pair.strip_prefix(name)? {
        [] => Some(&b""[..]).filter(|_| !pair.is_empty()),
        [b'=', value @ ..] => Some(value),
        _ => None,
    })
}
