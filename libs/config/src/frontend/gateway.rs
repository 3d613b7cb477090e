//! HTTPRoute to the model's rules; everything wrong with a route is said by field.

use regex_automata::meta;
use weir_mesh::headers::OF_THE_CONNECTION;

use crate::{
    gateway::{self as api, Filter, HeaderModifier, HttpRoute, NameMatch, PathMatchType, ValueMatchType},
    model::{
        Backend, HeaderChange, HeaderOp, Matcher, Name, NamedMatcher, PathMatcher, RouteParent, RouteRule, RouteSet,
    },
    path::FieldPath,
};

/// Limits of Gateway API v1.
const MAX_PARENTS: usize = 32;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_NAMED_MATCHES: usize = 16;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: i64 = 1_000_000;
const MAX_PATH: usize = 1024;
const MAX_VALUE: usize = 4096;
const MAX_HEADER_NAME: usize = 256;
/// Largest compiled regular expression, in bytes: enough for any that a person wrote.
const MAX_REGEX_BYTES: usize = 256 * 1024;
/// Methods that Gateway API knows.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A problem of one field.
pub type FieldError = (FieldPath, String);

/// Reads a route.
///
/// # Errors
/// Every problem, by field.
pub fn routes(route: &HttpRoute) -> Result<RouteSet, Vec<FieldError>> {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let mut reader = Reader { namespace, errors: Vec::new() };
    let spec = FieldPath::of("spec");
    let parents = reader.parents(&route.spec.parent_refs, &spec.key("parentRefs"));
    let at = spec.key("rules");
    reader.limit(&at, route.spec.rules.len(), MAX_RULES);
    let default = [api::Rule::default()];
    let rules = if route.spec.rules.is_empty() { &default[..] } else { &route.spec.rules };
    let rules: Vec<RouteRule> = rules.iter().enumerate().map(|(i, rule)| reader.rule(rule, &at.index(i))).collect();
    for (i, rule) in route.spec.rules.iter().enumerate() {
        let same = |other: &api::Rule| other.name.is_some() && other.name == rule.name;
        if route.spec.rules.iter().take(i).any(same) {
            reader.error(at.index(i).key("name"), "is the name of an earlier rule");
        }
    }
    if !reader.errors.is_empty() {
        return Err(reader.errors);
    }
    let created = route.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
    let name = Name::new(namespace, route.metadata.name.as_deref().unwrap_or_default());
    Ok(RouteSet { name, created, parents, rules })
}

struct Reader<'a> {
    namespace: &'a str,
    errors: Vec<FieldError>,
}

impl Reader<'_> {
    fn error(&mut self, field: FieldPath, message: impl Into<String>) {
        self.errors.push((field, message.into()));
    }

    fn limit(&mut self, field: &FieldPath, len: usize, max: usize) {
        if len > max {
            self.error(field.clone(), format!("has {len} entries; at most {max} are allowed"));
        }
    }

    fn parents(&mut self, parents: &[api::ParentRef], at: &FieldPath) -> Vec<RouteParent> {
        self.limit(at, parents.len(), MAX_PARENTS);
        if parents.is_empty() {
            self.error(at.clone(), "is empty: name the Service whose requests the rules are for");
        }
        let mut list = Vec::new();
        for (i, parent) in parents.iter().enumerate() {
            let at = at.index(i);
            let group = parent.group.as_deref().unwrap_or(api::GROUP);
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            if kind != "Service" {
                self.error(at.key("kind"), format!("{kind} is not supported yet: use kind: Service with group: \"\""));
            } else if !group.is_empty() && group != "core" {
                self.error(at.key("group"), format!("a Service is of group \"\", not {group}"));
            }
            self.own_namespace(parent.namespace.as_deref(), &at, "a rule for a Service of another namespace");
            let port = parent.port.and_then(|port| self.port(port, at.key("port")));
            let parent = RouteParent { service: Name::new(self.namespace, parent.name.as_str()), port };
            if list.contains(&parent) {
                self.error(at.clone(), "is the same as an earlier one");
            }
            list.push(parent);
        }
        list
    }

    fn own_namespace(&mut self, namespace: Option<&str>, at: &FieldPath, what: &str) {
        if namespace.is_some_and(|namespace| namespace != self.namespace) {
            self.error(
                at.key("namespace"),
                format!("{what} is not supported yet: leave it out or use {}", self.namespace),
            );
        }
    }

    fn port(&mut self, port: i64, field: FieldPath) -> Option<u16> {
        let number = u16::try_from(port).ok().filter(|&port| port > 0);
        if number.is_none() {
            self.error(field, format!("{port} is not a port (1 to 65535)"));
        }
        number
    }

    fn rule(&mut self, rule: &api::Rule, at: &FieldPath) -> RouteRule {
        let field = at.key("matches");
        self.limit(&field, rule.matches.len(), MAX_MATCHES);
        let default = [api::Match::default()];
        let matches = if rule.matches.is_empty() { &default[..] } else { &rule.matches };
        let matches = matches.iter().enumerate().map(|(i, matcher)| self.matcher(matcher, &field.index(i))).collect();
        let (request_headers, response_headers) = self.filters(&rule.filters, &at.key("filters"));
        let field = at.key("backendRefs");
        self.limit(&field, rule.backend_refs.len(), MAX_BACKENDS);
        let backends = rule.backend_refs.iter().enumerate();
        let backends = backends.filter_map(|(i, backend)| self.backend(backend, &field.index(i))).collect();
        RouteRule { matches, request_headers, response_headers, backends }
    }

    fn matcher(&mut self, matcher: &api::Match, at: &FieldPath) -> Matcher {
        if let Some(method) = &matcher.method
            && !METHODS.contains(&method.as_str())
        {
            self.error(at.key("method"), format!("{method:?} is not one of {}", METHODS.join(", ")));
        }
        Matcher {
            path: self.path(matcher.path.as_ref(), &at.key("path").key("value")),
            method: matcher.method.clone(),
            headers: self.named(&matcher.headers, &at.key("headers"), true),
            query: self.named(&matcher.query_params, &at.key("queryParams"), false),
        }
    }

    fn path(&mut self, path: Option<&api::PathMatch>, field: &FieldPath) -> PathMatcher {
        let Some(path) = path else { return PathMatcher::Prefix("/".into()) };
        let value = path.value.as_str();
        if value.len() > MAX_PATH {
            self.error(field.clone(), format!("is longer than {MAX_PATH} bytes"));
        }
        if path.kind == PathMatchType::RegularExpression {
            self.regex(value, field);
            return PathMatcher::Regex(value.to_owned());
        }
        if !value.starts_with('/') {
            self.error(field.clone(), format!("{value:?} must start with /"));
        }
        // Proxies compare normalised paths, which never hold any of these.
        let lower = value.to_ascii_lowercase();
        let never = ["//", "/./", "/../", "%2f", "#", "?"].into_iter().find(|never| lower.contains(never));
        let never = never.or_else(|| ["/..", "/."].into_iter().find(|end| value.ends_with(end)));
        if let Some(never) = never {
            self.error(field.clone(), format!("{value:?} holds {never:?}, which no path has once it is normalised"));
        }
        if value.chars().any(|c| c.is_control() || c == ' ' || !c.is_ascii()) {
            self.error(field.clone(), "has a character that no path has: percent-encode it");
        }
        match path.kind {
            PathMatchType::Exact => PathMatcher::Exact(value.to_owned()),
            _ => {
                let trimmed = value.trim_end_matches('/');
                PathMatcher::Prefix(if trimmed.is_empty() { "/".into() } else { trimmed.to_owned() })
            }
        }
    }

    /// Names that come twice (header names in any case) are taken once, as the API says.
    fn named(&mut self, list: &[NameMatch], at: &FieldPath, headers: bool) -> Vec<NamedMatcher> {
        self.limit(at, list.len(), MAX_NAMED_MATCHES);
        let mut named: Vec<NamedMatcher> = Vec::new();
        for (i, entry) in list.iter().enumerate() {
            let at = at.index(i);
            self.name(&entry.name, at.key("name"));
            let regex = entry.kind == ValueMatchType::RegularExpression;
            let field = at.key("value");
            if entry.value.is_empty() || entry.value.len() > MAX_VALUE {
                self.error(field, format!("must have 1 to {MAX_VALUE} bytes"));
            } else if regex {
                self.regex(&entry.value, &field);
            } else if headers {
                self.value(&entry.value, field);
            }
            let name = if headers { entry.name.to_ascii_lowercase() } else { entry.name.clone() };
            if !named.iter().any(|earlier| earlier.name == name) {
                named.push(NamedMatcher { name, value: entry.value.clone(), regex });
            }
        }
        named
    }

    /// A header name (RFC 9110, "token"); the API asks the same of query parameters.
    fn name(&mut self, name: &str, field: FieldPath) {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(token) {
            self.error(field, format!("must be 1 to {MAX_HEADER_NAME} letters, digits or !#$%&'*+-.^_`|~"));
        }
    }

    fn value(&mut self, value: &str, field: FieldPath) {
        if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            self.error(field, "has a control character");
        }
    }

    fn regex(&mut self, regex: &str, field: &FieldPath) {
        let config = meta::Config::new().nfa_size_limit(Some(MAX_REGEX_BYTES)).onepass(false).backtrack(false);
        if let Err(error) = meta::Builder::new().configure(config).build(regex) {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let cause = cause.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            self.error(
                field.clone(),
                format!("is no regular expression of RE2's syntax (no look-around, no back-references): {cause}"),
            );
        }
    }

    fn filters(&mut self, filters: &[Filter], at: &FieldPath) -> (Vec<HeaderChange>, Vec<HeaderChange>) {
        self.limit(at, filters.len(), MAX_FILTERS);
        let (mut request, mut response) = (None, None);
        for (i, filter) in filters.iter().enumerate() {
            let at = at.index(i);
            let (slot, field, wanted, other) = match filter.kind.as_str() {
                "RequestHeaderModifier" => (
                    &mut request,
                    "requestHeaderModifier",
                    &filter.request_header_modifier,
                    &filter.response_header_modifier,
                ),
                "ResponseHeaderModifier" => (
                    &mut response,
                    "responseHeaderModifier",
                    &filter.response_header_modifier,
                    &filter.request_header_modifier,
                ),
                kind => {
                    self.error(
                        at.key("type"),
                        format!("{kind} is not supported yet; RequestHeaderModifier and ResponseHeaderModifier are"),
                    );
                    continue;
                }
            };
            if other.is_some() {
                self.error(at.clone(), format!("has a field that does not belong to type {}", filter.kind));
            }
            let Some(modifier) = wanted else {
                self.error(at.key(field), format!("is missing for type {}", filter.kind));
                continue;
            };
            if slot.is_some() {
                self.error(at.key("type"), format!("{} comes twice; the API allows it once", filter.kind));
            }
            let changes = self.modifier(modifier, &at.key(field));
            *slot = Some(changes);
        }
        (request.unwrap_or_default(), response.unwrap_or_default())
    }

    fn modifier(&mut self, modifier: &HeaderModifier, at: &FieldPath) -> Vec<HeaderChange> {
        let mut changes: Vec<HeaderChange> = Vec::new();
        for (field, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
            self.limit(&at.key(field), headers.len(), MAX_FILTERS);
            for (i, header) in headers.iter().enumerate() {
                let at = at.key(field).index(i);
                self.changeable(&header.name, at.key("name"));
                if header.value.is_empty() || header.value.len() > MAX_VALUE {
                    self.error(at.key("value"), format!("must have 1 to {MAX_VALUE} bytes"));
                }
                self.value(&header.value, at.key("value"));
                let op = if field == "set" { HeaderOp::Set } else { HeaderOp::Add };
                changes.push(HeaderChange { name: header.name.to_ascii_lowercase(), op: op(header.value.clone()) });
            }
        }
        self.limit(&at.key("remove"), modifier.remove.len(), MAX_FILTERS);
        for (i, name) in modifier.remove.iter().enumerate() {
            self.changeable(name, at.key("remove").index(i));
            changes.push(HeaderChange { name: name.to_ascii_lowercase(), op: HeaderOp::Remove });
        }
        for (i, change) in changes.iter().enumerate() {
            if changes.iter().take(i).any(|earlier| earlier.name == change.name) {
                self.error(
                    at.clone(),
                    format!("names {} twice; each name may be in one of set, add and remove", change.name),
                );
            }
        }
        changes
    }

    /// Framing belongs to the proxy: a rule that changes it would let requests be read in two ways.
    fn changeable(&mut self, name: &str, field: FieldPath) {
        self.name(name, field.clone());
        if OF_THE_CONNECTION.contains(&name.to_ascii_lowercase().as_str()) {
            self.error(field, format!("{name} can not be changed by a rule"));
        }
    }

    fn backend(&mut self, backend: &api::BackendRef, at: &FieldPath) -> Option<Backend> {
        let kind = backend.kind.as_deref().unwrap_or("Service");
        let group = backend.group.as_deref().unwrap_or_default();
        if kind != "Service" || !(group.is_empty() || group == "core") {
            self.error(at.key("kind"), format!("{kind} of group {group:?} is not supported yet: use a Service"));
        }
        self.own_namespace(backend.namespace.as_deref(), at, "a backend in another namespace");
        let weight = backend.weight.unwrap_or(1);
        if !(0..=MAX_WEIGHT).contains(&weight) {
            self.error(at.key("weight"), format!("{weight} is not a weight (0 to {MAX_WEIGHT})"));
        }
        let (request_headers, response_headers) = self.filters(&backend.filters, &at.key("filters"));
        let port = match backend.port {
            Some(port) => self.port(port, at.key("port")),
            None => {
                self.error(at.key("port"), "is missing: a Service needs one");
                None
            }
        };
        Some(Backend {
            service: Name::new(self.namespace, backend.name.as_str()),
            port: port?,
            weight: u32::try_from(weight).ok()?,
            request_headers,
            response_headers,
        })
    }
}
