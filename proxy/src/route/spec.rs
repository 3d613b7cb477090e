//! What the configuration says of routes, before it is checked and compiled.

use std::fmt;

use super::{Policy, Redirect};
use crate::http::Edits;

/// One route. The order of specs is their precedence.
#[derive(Debug, Clone)]
pub struct RouteSpec<C> {
    /// Name for logs and metrics. Also the key under which a split's state is found again after a change.
    pub name: String,
    /// The object that a user wrote, such as `HTTPRoute/shop/catalog`; for logs.
    pub object: Option<String>,
    /// Which requests it takes; all parts must hold.
    pub matches: MatchSpec,
    /// What is done with them.
    pub action: ActionSpec<C>,
    /// Changes to the request's headers.
    pub request_edits: Edits,
    /// Changes to the response's headers.
    pub response_edits: Edits,
    /// What else is asked, where anything is.
    pub policy: Option<Policy<C>>,
}

/// Which requests a route takes. The default takes all.
#[derive(Debug, Clone, Default)]
pub struct MatchSpec {
    /// The normalised path, without the query.
    pub path: PathSpec,
    /// Each must hold.
    pub headers: Vec<HeaderSpec>,
    /// Each must hold.
    pub query: Vec<QuerySpec>,
    /// The method, in its letter case.
    pub method: Option<String>,
}

/// Its parts with commas between, or `any`.
impl fmt::Display for MatchSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match &self.path {
            PathSpec::Any => None,
            PathSpec::Exact(path) => Some(format!("exact {path}")),
            PathSpec::Prefix(path) => Some(format!("prefix {path}")),
            PathSpec::Regex(regex) => Some(format!("regex {regex}")),
        };
        let headers = self.headers.iter().map(|header| format!("header {}{}", header.name, header.value));
        let query = self.query.iter().map(|parameter| format!("query {}{}", parameter.name, parameter.value));
        let parts: Vec<String> = path.into_iter().chain(self.method.clone()).chain(headers).chain(query).collect();
        if parts.is_empty() { f.write_str("any") } else { f.write_str(&parts.join(", ")) }
    }
}

/// What a path must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PathSpec {
    /// Any path, `*` of `OPTIONS` and the missing one of `CONNECT` too.
    #[default]
    Any,
    /// Exactly this one.
    Exact(String),
    /// This one, or one below it: `/v2` takes `/v2` and `/v2/a`, not `/v2example`. A trailing slash does not count; `/` is `Any`.
    Prefix(String),
    /// A regular expression for the whole path.
    Regex(String),
}

/// What a value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextSpec {
    /// Exactly this.
    Exact(String),
    /// A regular expression for the whole value.
    Regex(String),
    /// Anything.
    Present,
}

/// As it stands behind a name: ` = yes`, ` ~ y.*`, or nothing.
impl fmt::Display for TextSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, " = {text}"),
            Self::Regex(regex) => write!(f, " ~ {regex}"),
            Self::Present => Ok(()),
        }
    }
}

/// A header that a request must have. Of a repeated header any value may be the one; values are never joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderSpec {
    /// Name; letter case does not count. `host` and `:authority` mean the effective authority.
    pub name: String,
    /// Its value.
    pub value: TextSpec,
}

/// A query parameter that a request must have. Of a repeated parameter the first counts (as Gateway API recommends); names and
/// values are compared as they were sent, nothing is decoded (as Envoy does).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuerySpec {
    /// Name; letter case counts.
    pub name: String,
    /// Its value; empty if it was sent without `=`.
    pub value: TextSpec,
}

/// What is done with a request.
#[derive(Debug, Clone)]
pub enum ActionSpec<C> {
    /// To one of these, by weight. None, or only weights of 0: status 500, as Gateway API has it.
    Forward(Vec<TargetSpec<C>>),
    /// An answer of our own with this status.
    Respond(u16),
    /// An answer of our own that names another place.
    Redirect(Redirect),
}

/// A cluster with its share.
#[derive(Debug, Clone)]
pub struct TargetSpec<C> {
    /// Name of the cluster: with its weight, what must not change for the split's state to be kept.
    pub name: String,
    /// Share of the requests in proportion to the sum of all; 0 gets none but those of its sessions.
    pub weight: u32,
    /// The cluster.
    pub cluster: C,
    /// Changes to the headers of requests that go there, besides the route's.
    pub request_edits: Edits,
    /// Changes to the headers of responses from there, besides the route's.
    pub response_edits: Edits,
}
