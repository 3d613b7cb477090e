//! Rules that no request can reach, since an earlier one takes everything that they would take.
//!
//! What is said here is certain: a request that a shadowed match would take is always taken by the one that shadows it. Some that can not be
//! reached either are not found: those that several earlier ones shadow together, and those of regular expressions beyond the plainest.

use super::{ComparedPath, Matcher, NamedMatcher, PathMatcher, Route};

/// For each of the routes, which are in the order in which they are tried, the place of the first one that takes all that it would take.
pub fn shadows(routes: &[Route<'_>]) -> Vec<Option<usize>> {
    let earlier = |at: usize, route: &Route<'_>| {
        routes.iter().take(at).position(|before| takes_all(before.matcher, route.matcher))
    };
    routes.iter().enumerate().map(|(at, route)| earlier(at, route)).collect()
}

/// True where every request that `other` matches is matched by `matcher` as well.
fn takes_all(matcher: &Matcher, other: &Matcher) -> bool {
    let named = |ours: &[NamedMatcher], others: &[NamedMatcher]| {
        ours.iter().all(|our| others.iter().any(|other| follows(our, other)))
    };
    path(&matcher.path, &other.path)
        && (matcher.method.is_none() || matcher.method == other.method)
        && named(&matcher.headers, &other.headers)
        && named(&matcher.query, &other.query)
}

fn path(path: &PathMatcher, other: &PathMatcher) -> bool {
    let (path, other) = (path.compared(), other.compared());
    match (&path, &other) {
        _ if path == other => true,
        (ComparedPath::Prefix(prefix), _) if prefix == "/" => true,
        (ComparedPath::Prefix(prefix), ComparedPath::Exact(path) | ComparedPath::Prefix(path)) => {
            path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        // The prefix of every path stands for requests without one as well, such as `OPTIONS *`.
        (ComparedPath::Regex(regex), ComparedPath::Prefix(path)) if path == "/" => beginning(regex) == Some(""),
        (ComparedPath::Regex(regex), ComparedPath::Exact(path) | ComparedPath::Prefix(path)) => {
            beginning(regex).is_some_and(|start| path.starts_with(start))
        }
        (ComparedPath::Regex(regex), ComparedPath::Regex(_)) => beginning(regex) == Some(""),
        (ComparedPath::Exact(_) | ComparedPath::Prefix(_), _) => false,
    }
}

/// True where a header or parameter that `other` matches is matched by `matcher` as well.
fn follows(matcher: &NamedMatcher, other: &NamedMatcher) -> bool {
    let start = if matcher.regex { beginning(&matcher.value) } else { None };
    matcher.name == other.name
        && (matcher == other
            || start == Some("")
            || (!other.regex && start.is_some_and(|start| other.value.starts_with(start))))
}

/// The text that everything begins with which an expression matches, where it asks for nothing else: `/api` of `/api.*`.
fn beginning(regex: &str) -> Option<&str> {
    let text = regex.strip_suffix(".*")?;
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(path: &str) -> PathMatcher {
        PathMatcher::Exact(path.into())
    }

    fn prefix(path: &str) -> PathMatcher {
        PathMatcher::Prefix(path.into())
    }

    fn regex(path: &str) -> PathMatcher {
        PathMatcher::Regex(path.into())
    }

    fn call(service: Option<&str>, method: Option<&str>, regex: bool) -> PathMatcher {
        PathMatcher::Call { service: service.map(str::to_owned), method: method.map(str::to_owned), regex }
    }

    #[test]
    fn paths() {
        for (one, other) in [
            (prefix("/"), exact("/a")),
            (prefix("/"), regex(".*")),
            (prefix("/a"), prefix("/a/b")),
            (prefix("/a"), exact("/a")),
            (prefix("/a"), exact("/a/")),
            (exact("/a"), exact("/a")),
            (regex("/a[0-9]"), regex("/a[0-9]")),
            (regex(".*"), prefix("/")),
            (regex(".*"), regex("/a")),
            (regex("/.*"), prefix("/a")),
            (regex("/ap.*"), prefix("/api/v1")),
            (regex("/ap.*"), exact("/ap")),
            (call(Some("s"), None, false), call(Some("s"), Some("m"), false)),
            (call(None, None, true), call(None, None, true)),
            (prefix("/"), call(Some("s"), None, false)),
        ] {
            assert!(path(&one, &other), "{one:?} {other:?}");
        }
        for (one, other) in [
            (prefix("/a"), prefix("/")),
            (prefix("/a"), exact("/ab")),
            (exact("/a"), prefix("/a")),
            (exact("/a"), exact("/b")),
            (regex("/.*"), prefix("/")),
            (regex("/api.*"), prefix("/ap")),
            (regex("/a.b.*"), exact("/a.bc")),
            (regex("/(a|b).*"), exact("/ac")),
            (regex("/a|.*"), exact("/ac")),
            (regex("/a.*"), regex("/a?b")),
            (call(Some("s"), Some("m"), false), call(Some("s"), None, false)),
            (call(Some("s"), None, false), call(Some("sm"), None, false)),
            (call(Some("s.*"), None, true), call(Some("st"), None, false)),
        ] {
            assert!(!path(&one, &other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn all_else_must_follow() {
        let named = |name: &str, value: &str, regex| NamedMatcher { name: name.into(), value: value.into(), regex };
        let matcher = |method: Option<&str>, headers: &[&NamedMatcher], query: &[&NamedMatcher]| Matcher {
            path: PathMatcher::any(),
            method: method.map(str::to_owned),
            headers: headers.iter().copied().cloned().collect(),
            query: query.iter().copied().cloned().collect(),
        };
        let (a, b, any) = (named("a", "1", false), named("b", "1", false), named("a", ".*", true));
        let all = matcher(None, &[], &[]);
        assert!(takes_all(&all, &matcher(Some("GET"), &[&a], &[&b])));
        assert!(takes_all(&matcher(None, &[&a], &[]), &matcher(None, &[&b, &a], &[])));
        assert!(takes_all(&matcher(None, &[&any], &[]), &matcher(None, &[&a], &[])));
        assert!(takes_all(&matcher(None, &[&any], &[]), &matcher(None, &[&named("a", "x+", true)], &[])));
        for (one, other) in [
            (matcher(Some("GET"), &[], &[]), all.clone()),
            (matcher(Some("GET"), &[], &[]), matcher(Some("PUT"), &[], &[])),
            (matcher(None, &[&a], &[]), all.clone()),
            (matcher(None, &[&a], &[]), matcher(None, &[], &[&a])),
            (matcher(None, &[&a], &[]), matcher(None, &[&any], &[])),
            (matcher(None, &[&a, &b], &[]), matcher(None, &[&a], &[])),
            (matcher(None, &[&any], &[]), all),
            (matcher(None, &[&named("a", "x", false)], &[]), matcher(None, &[&named("a", "x", true)], &[])),
        ] {
            assert!(!takes_all(&one, &other), "{one:?} {other:?}");
        }
    }
}
