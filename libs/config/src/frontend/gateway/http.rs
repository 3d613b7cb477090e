//! HTTPRoute.

use std::time::Duration;

use super::{MAX_ALL_MATCHES, MAX_BACKENDS, MAX_MATCHES, MAX_RULES, Read, Reader, Reference};
use crate::{
    gateway::{
        HTTP_ROUTE, HttpRoute,
        generated::{
            HttpRouteRule, HttpRouteRuleMatch, HttpRouteRuleMatchMethod, LifetimeType, PathMatch, PathMatchType,
            Retry as ApiRetry, SessionPersistence, SessionType,
        },
    },
    model::{Matcher, PathChange, PathMatcher, Retry, RouteRule, Rules, Session, SessionBy},
    path::FieldPath,
};

/// Attempts of a retry that says no number: as many as Istio's.
const DEFAULT_ATTEMPTS: i64 = 2;
/// More would be a load of their own; the budget bounds them besides.
const MAX_ATTEMPTS: i64 = 100;
const MAX_CODES: usize = 200;
const MAX_SESSION_NAME: usize = 128;

/// Reads an HTTPRoute.
///
/// # Errors
/// Every problem, by field.
pub fn http_route(route: &HttpRoute) -> Read {
    let mut reader = Reader::new(&route.metadata);
    let spec = &route.spec;
    reader.no_hostnames(&spec.hostnames);
    reader.no_default_gateways(spec.use_default_gateways);
    let parents = reader.parents(&spec.parent_refs);
    let at = FieldPath::of("spec.rules");
    reader.limit(&at, spec.rules.len(), MAX_RULES);
    reader.limit(&at, spec.rules.iter().map(|rule| rule.matches.len()).sum(), MAX_ALL_MATCHES);
    let default = [HttpRouteRule::default()];
    let rules = if spec.rules.is_empty() { &default[..] } else { &spec.rules };
    let rules = rules.iter().enumerate().map(|(i, rule)| reader.http_rule(rule, &at.index(i))).collect();
    reader.rule_names(spec.rules.iter().map(|rule| rule.name.as_ref()));
    reader.finish(HTTP_ROUTE, &route.metadata, parents, Rules::Requests(rules))
}

impl Reader<'_> {
    fn http_rule(&mut self, rule: &HttpRouteRule, at: &FieldPath) -> RouteRule {
        let field = at.key("matches");
        self.limit(&field, rule.matches.len(), MAX_MATCHES);
        let default = [HttpRouteRuleMatch::default()];
        let matches = if rule.matches.is_empty() { &default[..] } else { &rule.matches };
        let matches: Vec<Matcher> =
            matches.iter().enumerate().map(|(i, matcher)| self.http_match(matcher, &field.index(i))).collect();
        let filters = self.filters(&rule.filters, &at.key("filters"));
        let (rewrite_host, rewrite_path) = filters.rewrite.unwrap_or_default();
        let changed = filters.redirect.as_ref().and_then(|redirect| redirect.path.as_ref()).or(rewrite_path.as_ref());
        if matches!(changed, Some(PathChange::Prefix(_)))
            && !matches.iter().all(|matcher| matches!(matcher.path, PathMatcher::Prefix(_)))
        {
            let message = "replacePrefixMatch needs a prefix: give each match of the rule a path of type PathPrefix";
            self.error(at.key("filters"), message);
        }
        let field = at.key("backendRefs");
        self.limit(&field, rule.backend_refs.len(), MAX_BACKENDS);
        if filters.redirect.is_some() && !rule.backend_refs.is_empty() {
            self.error(field.clone(), "is beside a RequestRedirect: such a rule sends nothing anywhere; leave it out");
        }
        let mut backends = Vec::new();
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            let at = field.index(i);
            let headers = self.backend_filters(&backend.filters, &at.key("filters"));
            backends.extend(self.backend(&Reference::from(backend), backend.weight, headers, &at));
        }
        let (timeout, attempt_timeout) = self.timeouts(rule, at);
        RouteRule {
            name: rule.name.clone(),
            matches,
            request_headers: filters.request.unwrap_or_default(),
            response_headers: filters.response.unwrap_or_default(),
            redirect: filters.redirect,
            rewrite_host,
            rewrite_path,
            mirrors: filters.mirrors,
            cors: filters.cors,
            timeout,
            attempt_timeout,
            retry: rule.retry.as_ref().map(|retry| self.retry(retry, &at.key("retry"))),
            session: rule
                .session_persistence
                .as_ref()
                .and_then(|session| self.session(session, &at.key("sessionPersistence"))),
            backends,
        }
    }

    fn http_match(&mut self, matcher: &HttpRouteRuleMatch, at: &FieldPath) -> Matcher {
        Matcher {
            path: self.http_path(matcher.path.as_ref(), &at.key("path").key("value")),
            method: matcher.method.map(|method| method_name(method).to_owned()),
            headers: self.named(&matcher.headers, &at.key("headers"), true),
            query: self.named(&matcher.query_params, &at.key("queryParams"), false),
        }
    }

    fn http_path(&mut self, path: Option<&PathMatch>, field: &FieldPath) -> PathMatcher {
        let Some(path) = path else { return PathMatcher::any() };
        let value = path.value.as_deref().unwrap_or("/");
        match path.kind.unwrap_or(PathMatchType::PathPrefix) {
            PathMatchType::RegularExpression => {
                self.regex(value, field);
                PathMatcher::Regex(value.to_owned())
            }
            PathMatchType::Exact => {
                self.path(value, field);
                PathMatcher::Exact(value.to_owned())
            }
            PathMatchType::PathPrefix => {
                self.path(value, field);
                let trimmed = value.trim_end_matches('/');
                if trimmed.is_empty() { PathMatcher::any() } else { PathMatcher::Prefix(trimmed.to_owned()) }
            }
        }
    }

    fn timeouts(&mut self, rule: &HttpRouteRule, at: &FieldPath) -> (Option<Duration>, Option<Duration>) {
        let Some(timeouts) = &rule.timeouts else { return (None, None) };
        let at = at.key("timeouts");
        let request = timeouts.request.as_deref().and_then(|text| self.duration(text, at.key("request")));
        let attempt =
            timeouts.backend_request.as_deref().and_then(|text| self.duration(text, at.key("backendRequest")));
        if let (Some(request), Some(attempt)) = (request, attempt)
            && !request.is_zero()
            && attempt > request
        {
            self.error(at.key("backendRequest"), "is longer than request, which ends before it");
        }
        (request, attempt)
    }

    fn retry(&mut self, retry: &ApiRetry, at: &FieldPath) -> Retry {
        self.limit(&at.key("codes"), retry.codes.len(), MAX_CODES);
        let mut statuses = Vec::new();
        for (i, code) in retry.codes.iter().enumerate() {
            match u16::try_from(*code).ok().filter(|code| (400..=599).contains(code)) {
                Some(code) if statuses.contains(&code) => {
                    self.error(at.key("codes").index(i), format!("{code} comes twice"))
                }
                Some(code) => statuses.push(code),
                None => {
                    self.error(at.key("codes").index(i), format!("{code} is not a status of a failure (400 to 599)"))
                }
            }
        }
        let attempts = retry.attempts.unwrap_or(DEFAULT_ATTEMPTS);
        let known = u32::try_from(attempts).ok().filter(|_| (1..=MAX_ATTEMPTS).contains(&attempts));
        if known.is_none() {
            self.error(at.key("attempts"), format!("{attempts} is not a number of attempts (1 to {MAX_ATTEMPTS})"));
        }
        let pause = retry.backoff.as_deref().and_then(|text| self.duration(text, at.key("backoff")));
        Retry { statuses, attempts: known.unwrap_or_default(), pause: pause.filter(|pause| !pause.is_zero()) }
    }

    pub(super) fn session(&mut self, session: &SessionPersistence, at: &FieldPath) -> Option<Session> {
        let name = session.session_name.clone();
        if let Some(name) = &name {
            self.changeable(name, at.key("sessionName"));
            if name.len() > MAX_SESSION_NAME {
                self.error(at.key("sessionName"), format!("is longer than {MAX_SESSION_NAME} bytes"));
            }
        }
        let field = at.key("absoluteTimeout");
        let timeout = session.absolute_timeout.as_deref().and_then(|text| self.duration(text, field.clone()));
        let lifetime = session.cookie_config.as_ref().and_then(|config| config.lifetime_type);
        let by = match session.kind.unwrap_or(SessionType::Cookie) {
            SessionType::Header => {
                if session.cookie_config.is_some() {
                    self.error(at.key("cookieConfig"), "is for type Cookie");
                }
                if timeout.is_some() {
                    self.error(field, "is not supported for type Header: a header has no life time; leave it out");
                }
                SessionBy::Header
            }
            SessionType::Cookie => match (lifetime.unwrap_or(LifetimeType::Session), timeout) {
                (LifetimeType::Session, None) => SessionBy::Cookie(None),
                (LifetimeType::Session, Some(_)) => {
                    let message = "is not supported for a cookie that lives as long as the browser: use cookieConfig.lifetimeType Permanent";
                    self.error(field, message);
                    return None;
                }
                (LifetimeType::Permanent, Some(life)) if !life.is_zero() => SessionBy::Cookie(Some(life)),
                (LifetimeType::Permanent, _) => {
                    self.error(field, "is missing: a permanent cookie needs a life time");
                    return None;
                }
            },
        };
        Some(Session { name, by })
    }
}

fn method_name(method: HttpRouteRuleMatchMethod) -> &'static str {
    use HttpRouteRuleMatchMethod as Method;
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
    }
}
