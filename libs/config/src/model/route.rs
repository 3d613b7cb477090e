//! Rules for the requests and streams of a service, and the order in which they are tried.

use std::{
    borrow::Cow,
    cmp::{Ordering, Reverse},
    collections::HashMap,
    fmt,
    time::Duration,
};

use super::{Name, Protocol};

/// An object that something comes from, as it is called in names, logs and messages: `HTTPRoute/shop/catalog`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The kind's name.
    pub kind: &'static str,
    /// Namespace and name.
    pub name: Name,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// All rules of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSet {
    /// The object.
    pub origin: Origin,
    /// When it was made, as RFC 3339 text in UTC; empty where it is not known. The older one wins ties.
    pub created: String,
    /// The services (or ports of them) that it is for.
    pub parents: Vec<RouteParent>,
    /// The rules.
    pub rules: Rules,
}

impl RouteSet {
    /// For whom the rules of a service are: everybody's, where they stand in the service's own namespace; else only for callers of
    /// the namespace that is given.
    pub fn audience(&self, service: &Name) -> Option<&std::sync::Arc<str>> {
        (self.origin.name.namespace != service.namespace).then_some(&self.origin.name.namespace)
    }

    /// True where it is for this port of a service.
    pub fn is_for(&self, service: &Name, port: u16) -> bool {
        self.parents.iter().any(|parent| parent.service == *service && parent.port.is_none_or(|only| only == port))
    }
}

/// What rules look at. Of different kinds for one port of a service only the first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rules {
    /// Calls of gRPC, in the order they were written.
    Calls(Vec<RouteRule>),
    /// Requests of HTTP, in the order they were written.
    Requests(Vec<RouteRule>),
    /// Streams of TLS, by the name of the server that the client asks for.
    Tls(StreamRule),
    /// Streams of bytes.
    Tcp(StreamRule),
}

/// The kinds of [`Rules`]; the lesser one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// [`Rules::Calls`]
    Calls,
    /// [`Rules::Requests`]
    Requests,
    /// [`Rules::Tls`]
    Tls,
    /// [`Rules::Tcp`]
    Tcp,
}

impl Rules {
    /// Their kind.
    pub fn level(&self) -> Level {
        match self {
            Self::Calls(_) => Level::Calls,
            Self::Requests(_) => Level::Requests,
            Self::Tls(_) => Level::Tls,
            Self::Tcp(_) => Level::Tcp,
        }
    }

    /// Rules for requests; none where they are for streams.
    pub fn requests(&self) -> &[RouteRule] {
        match self {
            Self::Calls(rules) | Self::Requests(rules) => rules,
            Self::Tls(_) | Self::Tcp(_) => &[],
        }
    }

    /// The rule for streams.
    pub fn stream(&self) -> Option<&StreamRule> {
        match self {
            Self::Calls(_) | Self::Requests(_) => None,
            Self::Tls(rule) | Self::Tcp(rule) => Some(rule),
        }
    }

    /// Every service that something is sent to: number of the rule, the field's name, the service.
    pub fn targets(&self) -> impl Iterator<Item = (usize, &'static str, &Target)> {
        let requests = self.requests().iter().enumerate().flat_map(|(i, rule)| {
            let backends = rule.backends.iter().map(move |backend| (i, "backendRefs", &backend.target));
            backends.chain(rule.mirrors.iter().map(move |mirror| (i, "filters", &mirror.target)))
        });
        let streams = self.stream().into_iter().flat_map(|rule| &rule.backends);
        requests.chain(streams.map(|backend| (0, "backendRefs", &backend.target)))
    }
}

impl Level {
    /// True where such rules have a meaning for what a port was said to speak.
    pub fn suits(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Http => self.is_of_requests(),
            Protocol::Opaque => !self.is_of_requests(),
            Protocol::Undeclared => true,
        }
    }

    /// True for rules that look at requests.
    pub fn is_of_requests(self) -> bool {
        matches!(self, Self::Calls | Self::Requests)
    }
}

/// A service (or one port of it) that rules are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteParent {
    /// The service.
    pub service: Name,
    /// Only this port of it.
    pub port: Option<u16>,
}

/// Where the streams go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRule {
    /// What logs call it; its number where it has no name.
    pub name: Option<String>,
    /// Names of servers, in lower case; `*.example.com` stands for all names with one or more labels before it. None: any stream.
    pub server_names: Vec<String>,
    /// Where streams go, by weight.
    pub backends: Vec<Backend>,
}

/// A rule: any of the matches, then the same action.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteRule {
    /// What policies call it by.
    pub name: Option<String>,
    /// Any of these; never empty.
    pub matches: Vec<Matcher>,
    /// Changes to the request's headers, in order.
    pub request_headers: Vec<HeaderChange>,
    /// Changes to the response's headers, in order.
    pub response_headers: Vec<HeaderChange>,
    /// Requests are answered with another place to go to; then nothing is sent anywhere.
    pub redirect: Option<Redirect>,
    /// The host that the backend sees.
    pub rewrite_host: Option<String>,
    /// The path that the backend sees.
    pub rewrite_path: Option<PathChange>,
    /// Who gets a copy.
    pub mirrors: Vec<Mirror>,
    /// Which pages of other origins may call.
    pub cors: Option<Cors>,
    /// Time for the whole request, from its first byte to the answer's last; zero for any.
    pub timeout: Option<Duration>,
    /// Time for one attempt; zero for any.
    pub attempt_timeout: Option<Duration>,
    /// Failed attempts are made again.
    pub retry: Option<Retry>,
    /// Requests of one session go to one endpoint.
    pub session: Option<Session>,
    /// Where requests go, by weight. Empty: nowhere, they are answered with 500.
    pub backends: Vec<Backend>,
}

/// Another place to go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; none for the request's own.
    pub scheme: Option<&'static str>,
    /// Host without port; none for the request's own.
    pub host: Option<String>,
    /// Port; none for that of a scheme that is given, else the one that was called.
    pub port: Option<u16>,
    /// Path; none for the request's own.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// How a path is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// This is the path.
    Whole(String),
    /// The prefix that matched becomes this, without a slash at its end; empty to take it off.
    Prefix(String),
}

/// Who gets a copy of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The service.
    pub target: Target,
    /// Share of the requests, in millionths.
    pub millionths: u32,
}

/// Which pages of other origins may call (Fetch standard, "CORS protocol").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// Origins: `https://a.example`, with `*.` before a host for all names below it, or `*` for all.
    pub origins: Vec<String>,
    /// With cookies and credentials.
    pub credentials: bool,
    /// Methods, or `*`.
    pub methods: Vec<String>,
    /// Headers of requests, or `*`.
    pub headers: Vec<String>,
    /// Headers of answers that the page may read, or `*`.
    pub exposed: Vec<String>,
    /// How long a browser may remember the answer, in seconds.
    pub max_age: u32,
}

/// Failed attempts are made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Statuses that count as failed, besides what is known not to have reached anybody.
    pub statuses: Vec<u16>,
    /// How often.
    pub attempts: u32,
    /// Pause before the first; it grows for each.
    pub pause: Option<Duration>,
}

/// How requests of one session are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Name of the cookie or header.
    pub name: Option<String>,
    /// What carries it.
    pub by: SessionBy,
}

/// What carries a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionBy {
    /// A cookie, for so long; none until the browser ends.
    Cookie(Option<Duration>),
    /// A header.
    Header,
}

/// All parts must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    /// Path.
    pub path: PathMatcher,
    /// Method.
    pub method: Option<String>,
    /// Headers, names in lower case, each name once.
    pub headers: Vec<NamedMatcher>,
    /// Query parameters, each name once.
    pub query: Vec<NamedMatcher>,
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatcher {
    /// The whole path.
    Exact(String),
    /// Whole segments from the start; without slash at the end, `/` for everything.
    Prefix(String),
    /// A regular expression over the whole path.
    Regex(String),
    /// A call of gRPC, `/SERVICE/METHOD`.
    Call {
        /// Service with its package; none for any.
        service: Option<String>,
        /// Method; none for any.
        method: Option<String>,
        /// Both are regular expressions over the whole name.
        regex: bool,
    },
}

/// What a request's path is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComparedPath<'a> {
    /// The whole path.
    Exact(Cow<'a, str>),
    /// Whole segments from the start.
    Prefix(Cow<'a, str>),
    /// A regular expression over the whole path.
    Regex(Cow<'a, str>),
}

/// Any service or method of gRPC, in a regular expression.
const ANY_NAME: &str = "[^/]+";

impl PathMatcher {
    /// Every path.
    pub fn any() -> Self {
        Self::Prefix("/".into())
    }

    /// The comparison with a path that it comes to; calls of gRPC are paths as well.
    pub fn compared(&self) -> ComparedPath<'_> {
        match self {
            Self::Exact(path) => ComparedPath::Exact(path.into()),
            Self::Prefix(prefix) => ComparedPath::Prefix(prefix.into()),
            Self::Regex(regex) => ComparedPath::Regex(regex.into()),
            Self::Call { service: Some(service), method: Some(method), regex: false } => {
                ComparedPath::Exact(format!("/{service}/{method}").into())
            }
            Self::Call { service: Some(service), method: None, regex: false } => {
                ComparedPath::Prefix(format!("/{service}").into())
            }
            Self::Call { service, method, .. } => {
                let any = |name: &Option<String>| {
                    name.as_ref().map_or_else(|| ANY_NAME.to_owned(), |name| format!("(?:{name})"))
                };
                ComparedPath::Regex(format!("/{}/{}", any(service), any(method)).into())
            }
        }
    }
}

/// How a header or a query parameter is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedMatcher {
    /// Name.
    pub name: String,
    /// Value or regular expression over the whole value.
    pub value: String,
    /// The value is a regular expression.
    pub regex: bool,
}

/// A change to headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderChange {
    /// Name, in lower case.
    pub name: String,
    /// What is done.
    pub op: HeaderOp,
}

/// What is done with a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOp {
    /// Replaces all values.
    Set(String),
    /// Adds a value.
    Add(String),
    /// Removes all values.
    Remove,
}

/// What something is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: Name,
    /// Its port.
    pub port: u16,
    /// What it is, where it is no service: then nothing can be sent to it.
    pub foreign: Option<String>,
}

/// Where a share of the requests goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The service.
    pub target: Target,
    /// Its share; 0 takes it out.
    pub weight: u32,
    /// Changes to the request's headers, after the rule's.
    pub request_headers: Vec<HeaderChange>,
    /// Changes to the response's headers, before the rule's.
    pub response_headers: Vec<HeaderChange>,
}

/// One match of one rule, with its place: what a proxy tries as one step.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// The object.
    pub set: &'a RouteSet,
    /// Number of the rule in the object.
    pub rule_index: usize,
    /// Number of the match in the rule.
    pub match_index: usize,
    /// The match.
    pub matcher: &'a Matcher,
    /// The rule.
    pub rule: &'a RouteRule,
}

/// All matches of all rules of a service's objects, in the order in which they are tried (Gateway API, "HTTPRouteRule"):
/// exact path, regular expression (the API leaves its place open: a catch-all prefix must not shadow it), longest prefix (of gRPC's
/// calls: the longer service, then the longer method); then
/// a method, more headers, more query parameters; then the older object, its name, the order of writing.
pub fn in_precedence<'a>(sets: impl IntoIterator<Item = &'a RouteSet>) -> Vec<Route<'a>> {
    let mut routes: Vec<Route<'a>> = Vec::new();
    for set in sets {
        for (rule_index, rule) in set.rules.requests().iter().enumerate() {
            for (match_index, matcher) in rule.matches.iter().enumerate() {
                routes.push(Route { set, rule_index, match_index, matcher, rule });
            }
        }
    }
    routes.sort_by(order);
    routes
}

fn order(a: &Route<'_>, b: &Route<'_>) -> Ordering {
    let specific = |route: &Route<'_>| {
        let matcher = route.matcher;
        Reverse((path_rank(&matcher.path), matcher.method.is_some(), matcher.headers.len(), matcher.query.len()))
    };
    specific(a)
        .cmp(&specific(b))
        .then_with(|| age(a.set).cmp(&age(b.set)))
        .then_with(|| a.set.origin.name.cmp(&b.set.origin.name))
        .then_with(|| (a.rule_index, a.match_index).cmp(&(b.rule_index, b.match_index)))
}

fn path_rank(path: &PathMatcher) -> (u8, usize, usize) {
    let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    match path {
        PathMatcher::Exact(_) => (2, 0, 0), // two exact paths never both match, unless they are equal
        PathMatcher::Regex(regex) => (1, regex.len(), 0),
        // Characters of the service, then of the method.
        PathMatcher::Call { service, method, .. } => (1, len(service), len(method)),
        PathMatcher::Prefix(prefix) => (0, prefix.len(), 0),
    }
}

/// Objects without a time count as the newest.
fn age(set: &RouteSet) -> (bool, &str) {
    (set.created.is_empty(), &set.created)
}

/// The rule of an object for streams, with its place.
#[derive(Debug, Clone)]
pub struct StreamRoute<'a> {
    /// The object.
    pub set: &'a RouteSet,
    /// The rule.
    pub rule: &'a StreamRule,
    /// Names of servers (an empty one stands for all streams), each with the older object that has it already.
    pub names: Vec<(&'a str, Option<&'a RouteSet>)>,
}

impl StreamRoute<'_> {
    /// The names that no older object has.
    pub fn own(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, taken)| taken.is_none()).map(|(name, _)| *name)
    }
}

/// The rules of a service's objects for streams, the older ones first: of several for the same name the older one counts.
pub fn streams_in_precedence<'a>(sets: impl IntoIterator<Item = &'a RouteSet>) -> Vec<StreamRoute<'a>> {
    let mut rules: Vec<(&RouteSet, &StreamRule)> =
        sets.into_iter().filter_map(|set| Some((set, set.rules.stream()?))).collect();
    rules.sort_by_key(|(set, _)| (age(set), &set.origin));
    let mut first: HashMap<&str, &RouteSet> = HashMap::new();
    let routes = rules.into_iter().map(|(set, rule)| {
        let names = rule.server_names.iter().map(String::as_str);
        let every = rule.server_names.is_empty().then_some("");
        let names = names.chain(every).map(|name| match first.get(name) {
            Some(older) => (name, Some(*older)),
            None => {
                first.insert(name, set);
                (name, None)
            }
        });
        StreamRoute { set, rule, names: names.collect() }
    });
    routes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(path: PathMatcher, method: bool, headers: usize, query: usize) -> Matcher {
        let named = |n: usize| NamedMatcher { name: format!("n{n}"), value: "v".into(), regex: false };
        Matcher {
            path,
            method: method.then(|| "GET".into()),
            headers: (0..headers).map(named).collect(),
            query: (0..query).map(named).collect(),
        }
    }

    fn set(name: &str, created: &str, matches: Vec<Matcher>) -> RouteSet {
        let rule = |matcher| RouteRule { matches: vec![matcher], ..RouteRule::default() };
        RouteSet {
            origin: Origin { kind: "Rules", name: Name::new("shop", name) },
            created: created.into(),
            parents: vec![],
            rules: Rules::Requests(matches.into_iter().map(rule).collect()),
        }
    }

    #[test]
    fn order_of_gateway_api() {
        let prefix = |p: &str| PathMatcher::Prefix(p.into());
        let one = set(
            "one",
            "2026-01-02T00:00:00Z",
            vec![
                matcher(prefix("/"), false, 0, 0),                       // 0
                matcher(prefix("/"), false, 0, 2),                       // 1
                matcher(prefix("/"), false, 1, 0),                       // 2
                matcher(prefix("/"), true, 0, 0),                        // 3
                matcher(prefix("/abc"), false, 0, 0),                    // 4
                matcher(PathMatcher::Regex("/a.*".into()), false, 0, 0), // 5
                matcher(PathMatcher::Exact("/".into()), false, 0, 0),    // 6
            ],
        );
        let got: Vec<usize> = in_precedence([&one]).iter().map(|route| route.rule_index).collect();
        assert_eq!(got, [6, 5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn ties_go_to_the_older_then_the_name_then_the_order_of_writing() {
        let all = || vec![matcher(PathMatcher::Prefix("/".into()), false, 0, 0); 2];
        let (young, old) = (set("a", "2026-01-02T00:00:00Z", all()), set("z", "2026-01-01T00:00:00Z", all()));
        let (timeless_b, timeless_c) = (set("b", "", all()), set("c", "", all()));
        let routes = in_precedence([&timeless_c, &young, &timeless_b, &old]);
        let got: Vec<(&str, usize)> = routes.iter().map(|r| (&*r.set.origin.name.name, r.rule_index)).collect();
        assert_eq!(got, [("z", 0), ("z", 1), ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1)]);
    }
}
