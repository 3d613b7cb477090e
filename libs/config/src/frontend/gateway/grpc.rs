//! GRPCRoute.

use super::{MAX_ALL_MATCHES, MAX_BACKENDS, MAX_MATCHES, MAX_RULES, Read, Reader, Reference};
use crate::{
    gateway::{
        GRPC_ROUTE, GrpcRoute,
        generated::{GrpcRouteRule, GrpcRouteRuleMatch, GrpcRouteRuleMatchMethod, ValueMatchType},
    },
    model::{Matcher, PathMatcher, RouteRule, Rules},
    path::FieldPath,
};

/// Longest name of a service or method (the API's limit).
const MAX_NAME: usize = 1024;

/// Reads a GRPCRoute.
///
/// # Errors
/// Every problem, by field.
pub fn grpc_route(route: &GrpcRoute) -> Read {
    let mut reader = Reader::new(&route.metadata);
    let spec = &route.spec;
    reader.no_hostnames(&spec.hostnames);
    reader.no_default_gateways(spec.use_default_gateways);
    let parents = reader.parents(&spec.parent_refs);
    let at = FieldPath::of("spec.rules");
    reader.limit(&at, spec.rules.len(), MAX_RULES);
    reader.limit(&at, spec.rules.iter().map(|rule| rule.matches.len()).sum(), MAX_ALL_MATCHES);
    let default = [GrpcRouteRule::default()];
    let rules = if spec.rules.is_empty() { &default[..] } else { &spec.rules };
    let rules = rules.iter().enumerate().map(|(i, rule)| reader.grpc_rule(rule, &at.index(i))).collect();
    reader.rule_names(spec.rules.iter().map(|rule| rule.name.as_ref()));
    reader.finish(GRPC_ROUTE, &route.metadata, parents, Rules::Calls(rules))
}

impl Reader<'_> {
    fn grpc_rule(&mut self, rule: &GrpcRouteRule, at: &FieldPath) -> RouteRule {
        let field = at.key("matches");
        self.limit(&field, rule.matches.len(), MAX_MATCHES);
        let default = [GrpcRouteRuleMatch::default()];
        let matches = if rule.matches.is_empty() { &default[..] } else { &rule.matches };
        let matches =
            matches.iter().enumerate().map(|(i, matcher)| self.grpc_match(matcher, &field.index(i))).collect();
        let filters = self.filters(&rule.filters, &at.key("filters"));
        let field = at.key("backendRefs");
        self.limit(&field, rule.backend_refs.len(), MAX_BACKENDS);
        let mut backends = Vec::new();
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            let at = field.index(i);
            let headers = self.backend_filters(&backend.filters, &at.key("filters"));
            backends.extend(self.backend(&Reference::from(backend), backend.weight, headers, &at));
        }
        let session = rule.session_persistence.as_ref();
        RouteRule {
            name: rule.name.clone(),
            matches,
            request_headers: filters.request.unwrap_or_default(),
            response_headers: filters.response.unwrap_or_default(),
            mirrors: filters.mirrors,
            session: session.and_then(|session| self.session(session, &at.key("sessionPersistence"))),
            backends,
            ..RouteRule::default()
        }
    }

    fn grpc_match(&mut self, matcher: &GrpcRouteRuleMatch, at: &FieldPath) -> Matcher {
        let path = match &matcher.method {
            None => PathMatcher::any(),
            Some(method) => self.call(method, &at.key("method")),
        };
        Matcher {
            path,
            method: None,
            headers: self.named(&matcher.headers, &at.key("headers"), true),
            query: Vec::new(),
        }
    }

    fn call(&mut self, method: &GrpcRouteRuleMatchMethod, at: &FieldPath) -> PathMatcher {
        let regex = method.kind == Some(ValueMatchType::RegularExpression);
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (service, called) = (given(&method.service), given(&method.method));
        if service.is_none() && called.is_none() {
            self.error(at.clone(), "has neither service nor method: leave it out where all calls are meant");
        }
        for (field, name, dots) in [("service", &service, true), ("method", &called, false)] {
            let Some(name) = name else { continue };
            let at = at.key(field);
            if name.len() > MAX_NAME {
                self.error(at, format!("is longer than {MAX_NAME} bytes"));
            } else if regex {
                self.regex(name, &at);
            } else if !is_name(name, dots) {
                self.error(
                    at,
                    format!(
                        "{name:?} is not a name of gRPC: letters, digits and _{}",
                        if dots { ", with dots" } else { "" }
                    ),
                );
            }
        }
        PathMatcher::Call { service, method: called, regex }
    }
}

/// As the API's definition asks: `^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$` for services, one such word for methods.
fn is_name(name: &str, dots: bool) -> bool {
    let word = |word: &str| {
        let first = word.as_bytes().first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
        first && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if dots { name.strip_prefix('.').unwrap_or(name).split('.').all(word) } else { word(name) }
}
