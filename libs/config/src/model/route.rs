//! Rules for the requests of a service, and the order in which they are tried.

use std::cmp::{Ordering, Reverse};

use super::Name;

/// Kind of object that routes come from today, as it stands in names and messages.
pub const ROUTE_KIND: &str = "HTTPRoute";

/// All rules of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSet {
    /// Namespace and name of the object.
    pub name: Name,
    /// When it was made, as RFC 3339 text in UTC; empty where it is not known. The older one wins ties.
    pub created: String,
    /// The services (or ports of them) that it is for.
    pub parents: Vec<RouteParent>,
    /// The rules, in the order they were written.
    pub rules: Vec<RouteRule>,
}

/// A service (or one port of it) that rules are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteParent {
    /// The service.
    pub service: Name,
    /// Only this port of it.
    pub port: Option<u16>,
}

/// A rule: any of the matches, then the same action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRule {
    /// Any of these; never empty.
    pub matches: Vec<Matcher>,
    /// Changes to the request's headers, in order.
    pub request_headers: Vec<HeaderChange>,
    /// Changes to the response's headers, in order.
    pub response_headers: Vec<HeaderChange>,
    /// Where requests go, by weight. Empty: nowhere, they are answered with 500.
    pub backends: Vec<Backend>,
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

/// Where a share of the requests goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The service.
    pub service: Name,
    /// Its port.
    pub port: u16,
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
/// exact path, regular expression (the API leaves its place open: a catch-all prefix must not shadow it), longest prefix; then
/// a method, more headers, more query parameters; then the older object, its name, the order of writing.
pub fn in_precedence<'a>(sets: impl IntoIterator<Item = &'a RouteSet>) -> Vec<Route<'a>> {
    let mut routes: Vec<Route<'a>> = Vec::new();
    for set in sets {
        for (rule_index, rule) in set.rules.iter().enumerate() {
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
        .then_with(|| a.set.name.cmp(&b.set.name))
        .then_with(|| (a.rule_index, a.match_index).cmp(&(b.rule_index, b.match_index)))
}

fn path_rank(path: &PathMatcher) -> (u8, usize) {
    match path {
        PathMatcher::Exact(_) => (2, 0), // two exact paths never both match, unless they are equal
        PathMatcher::Regex(regex) => (1, regex.len()),
        PathMatcher::Prefix(prefix) => (0, prefix.len()),
    }
}

/// Objects without a time count as the newest.
fn age(set: &RouteSet) -> (bool, &str) {
    (set.created.is_empty(), &set.created)
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
        let rule = |matcher| RouteRule {
            matches: vec![matcher],
            request_headers: vec![],
            response_headers: vec![],
            backends: vec![],
        };
        RouteSet {
            name: Name::new("shop", name),
            created: created.into(),
            parents: vec![],
            rules: matches.into_iter().map(rule).collect(),
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
        let got: Vec<(&str, usize)> = routes.iter().map(|r| (&*r.set.name.name, r.rule_index)).collect();
        assert_eq!(got, [("z", 0), ("z", 1), ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1)]);
    }
}
