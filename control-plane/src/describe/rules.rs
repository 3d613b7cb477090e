//! The rules of a port, in the order in which a request or a stream is compared with them.

use weir_config::{
    describe::{Backend, Rule, Shadow},
    model::{
        self, ComparedPath, HeaderChange, Matcher, NamedMatcher, PathChange, PathMatcher, Route, RouteRule, RouteSet,
        Service, SessionBy, StreamRoute, in_precedence, shadows, streams_in_precedence,
    },
};

use super::{endpoints, settings};
use crate::{translate::requests_of, verdict, world::World};

/// Millionths of everything.
const ALL_MILLIONTHS: u32 = 1_000_000;

/// The rules that a service's callers follow, of the objects that act.
pub(super) fn rules(world: &World, service: &Service, sets: &[&RouteSet]) -> Vec<Rule> {
    let routes = in_precedence(sets.iter().copied());
    let shadows = shadows(&routes);
    let shadow = |by: Option<usize>| {
        let by = by?;
        let route = routes.get(by)?;
        Some(Shadow { place: by + 1, object: route.set.origin.to_string(), rule: route.rule_index })
    };
    let requests = routes.iter().zip(&shadows).enumerate();
    let requests = requests.map(|(at, (route, by))| of_requests(world, service, at + 1, route, shadow(*by)));
    let streams = streams_in_precedence(sets.iter().copied());
    let of_streams = streams.iter().enumerate().map(|(at, stream)| of_streams(world, &streams, at, stream));
    requests.chain(of_streams).collect()
}

fn of_requests(world: &World, service: &Service, place: usize, route: &Route<'_>, by: Option<Shadow>) -> Rule {
    let policies = world.request_policies(&requests_of(route, &service.name));
    Rule {
        place,
        object: route.set.origin.to_string(),
        rule: route.rule_index,
        name: route.rule.name.clone(),
        match_index: route.match_index,
        matches: matches(route.matcher),
        does: does(world, route.set, route.rule),
        backends: route.rule.backends.iter().map(|backend| self::backend(world, route.set, backend)).collect(),
        settings: settings(policies.iter().map(|policy| (&policy.origin, policy.rules.said()))),
        shadowed_by: by,
    }
}

fn of_streams(world: &World, all: &[StreamRoute<'_>], at: usize, stream: &StreamRoute<'_>) -> Rule {
    let own: Vec<&str> = stream.own().collect();
    let name = |name: &str| if name.is_empty() { "any".to_owned() } else { format!("server name {name}") };
    let mut parts: Vec<String> = own.iter().map(|own| name(own)).collect();
    // The object that has the first of its names; where it has none of its own it never acts.
    let older = stream.names.iter().find_map(|(_, older)| *older);
    let older = older.and_then(|older| all.iter().position(|other| other.set.origin == older.origin)).zip(older);
    let shadowed_by = older.filter(|_| own.is_empty()).map(|(at, older)| Shadow {
        place: at + 1,
        object: older.origin.to_string(),
        rule: 0,
    });
    if own.is_empty() {
        parts = stream.names.iter().map(|(taken, _)| name(taken)).collect();
    }
    let lost = stream.names.iter().filter(|_| !own.is_empty());
    let does =
        lost.filter_map(|(lost, older)| Some(format!("not {}, which {} has", name(lost), older.as_ref()?.origin)));
    Rule {
        place: at + 1,
        object: stream.set.origin.to_string(),
        rule: 0,
        name: stream.rule.name.clone(),
        match_index: 0,
        matches: parts.join(" or "),
        does: does.collect(),
        backends: stream.rule.backends.iter().map(|backend| self::backend(world, stream.set, backend)).collect(),
        settings: Vec::new(),
        shadowed_by,
    }
}

fn backend(world: &World, set: &RouteSet, backend: &model::Backend) -> Backend {
    let target = &backend.target;
    let service = world.target(set, target);
    Backend {
        service: format!("{}:{}", target.service, target.port),
        weight: backend.weight,
        endpoints: service.map_or(0, |service| endpoints(world, service, target.port)),
        trouble: verdict::missing(world, set, "backendRefs", target).map(|missing| missing.message),
    }
}

/// Which requests it takes, in the proxy's words for the same.
fn matches(matcher: &Matcher) -> String {
    let path = match (&matcher.path, matcher.path.compared()) {
        (_, ComparedPath::Prefix(prefix)) if prefix == "/" => None,
        (PathMatcher::Call { service, method, regex }, _) => {
            let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
            Some(format!("{} {}/{}", if *regex { "calls ~" } else { "calls of" }, name(service), name(method)))
        }
        (_, ComparedPath::Exact(path)) => Some(format!("exact {path}")),
        (_, ComparedPath::Prefix(path)) => Some(format!("prefix {path}")),
        (_, ComparedPath::Regex(regex)) => Some(format!("regex {regex}")),
    };
    let named = |what: &'static str| {
        move |named: &NamedMatcher| {
            let NamedMatcher { name, value, regex } = named;
            format!("{what} {name} {} {value}", if *regex { '~' } else { '=' })
        }
    };
    let headers = matcher.headers.iter().map(named("header"));
    let query = matcher.query.iter().map(named("query"));
    let parts: Vec<String> = path.into_iter().chain(matcher.method.clone()).chain(headers).chain(query).collect();
    if parts.is_empty() { "any".to_owned() } else { parts.join(", ") }
}

/// What a rule does besides sending requests to its backends.
fn does(world: &World, set: &RouteSet, rule: &RouteRule) -> Vec<String> {
    let RouteRule {
        name: _,
        matches: _,
        request_headers,
        response_headers,
        redirect,
        rewrite_host,
        rewrite_path,
        mirrors,
        cors,
        timeout,
        attempt_timeout,
        retry,
        session,
        backends,
    } = rule;
    let changes = |what: &str, changes: &[HeaderChange]| {
        let names: Vec<&str> = changes.iter().map(|change| change.name.as_str()).collect();
        (!names.is_empty()).then(|| format!("changes {what} {}", names.join(", ")))
    };
    let path = rewrite_path.as_ref().map(|path| match path {
        PathChange::Whole(path) => format!("path becomes {path}"),
        PathChange::Prefix(prefix) if prefix.is_empty() => "prefix is taken off".to_owned(),
        PathChange::Prefix(prefix) => format!("prefix becomes {prefix}"),
    });
    let session = session.as_ref().map(|session| match session.by {
        SessionBy::Cookie(_) => "session by cookie".to_owned(),
        SessionBy::Header => "session by header".to_owned(),
    });
    let nowhere = redirect.is_none() && backends.iter().all(|backend| backend.weight == 0);
    let single = [
        redirect.as_ref().map(|redirect| format!("redirect {}", redirect.status)),
        nowhere.then(|| "has nowhere to send to: answers with an error".to_owned()),
        timeout.map(|time| format!("timeout {time:?}")),
        attempt_timeout.map(|time| format!("attempt timeout {time:?}")),
        retry.as_ref().map(|retry| format!("{} retries", retry.attempts)),
        rewrite_host.as_ref().map(|host| format!("host becomes {host}")),
        path,
        changes("request headers", request_headers),
        changes("response headers", response_headers),
        cors.is_some().then(|| "CORS".to_owned()),
        session,
    ];
    let mirrors = mirrors.iter().map(|mirror| {
        let share = if mirror.millionths == ALL_MILLIONTHS { "" } else { "some " };
        let to = format!("{share}copies to {}:{}", mirror.target.service, mirror.target.port);
        match verdict::missing(world, set, "filters", &mirror.target) {
            Some(missing) => format!("{to} ({})", missing.message),
            None => to,
        }
    });
    single.into_iter().flatten().chain(mirrors).collect()
}
