//! Filters of rules and backends.

use super::{
    Reader, Reference,
    values::{MAX_PATH, MAX_VALUE, is_host},
};
use crate::{
    gateway::generated::{
        AllowMethod, Cors as ApiCors, GrpcRouteRuleFilter, GrpcRouteRuleFilterType, HeaderModifier,
        HttpRouteRuleFilter, HttpRouteRuleFilterType, PathModifier, PathModifierType, RequestMirror, RequestRedirect,
        Scheme, UrlRewrite,
    },
    model::{Cors, HeaderChange, HeaderOp, Mirror, PathChange, Redirect},
    path::FieldPath,
};

const MAX_FILTERS: usize = 16;
const MAX_ORIGINS: usize = 64;
/// A share of everything.
const ALL_MILLIONTHS: u32 = 1_000_000;
const MAX_INT: i64 = i32::MAX as i64;
/// Seconds that a browser remembers an answer to a preflight where nothing was said (the API's default).
const DEFAULT_MAX_AGE: u32 = 5;
/// Status of a redirect where nothing was said (the API's default).
const DEFAULT_REDIRECT: i64 = 302;

/// What the filters of one place do.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) request: Option<Vec<HeaderChange>>,
    pub(super) response: Option<Vec<HeaderChange>>,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Option<(Option<String>, Option<PathChange>)>,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) cors: Option<Cors>,
}

impl Filters {
    /// Only headers: what a backend can have.
    pub(super) fn of_headers(self) -> (Vec<HeaderChange>, Vec<HeaderChange>) {
        (self.request.unwrap_or_default(), self.response.unwrap_or_default())
    }
}

/// A filter of any kind of route.
pub(super) struct Filter<'a> {
    /// `type`
    name: &'static str,
    /// The field of its type.
    own: &'static str,
    /// A field of another type that is written all the same.
    strange: Option<&'static str>,
    does: Does<'a>,
}

enum Does<'a> {
    Request(Option<&'a HeaderModifier>),
    Response(Option<&'a HeaderModifier>),
    Redirect(Option<&'a RequestRedirect>),
    Rewrite(Option<&'a UrlRewrite>),
    Mirror(Option<&'a RequestMirror>),
    Cors(Option<&'a ApiCors>),
    /// Not supported, with what to do instead.
    Nothing(&'static str),
}

/// A field that is there and is not the type's own.
fn strange(own: &str, all: &[(&'static str, bool)]) -> Option<&'static str> {
    all.iter().find(|(name, there)| *there && *name != own).map(|(name, _)| *name)
}

impl<'a> From<&'a HttpRouteRuleFilter> for Filter<'a> {
    fn from(filter: &'a HttpRouteRuleFilter) -> Self {
        use HttpRouteRuleFilterType as Type;
        let all = [
            ("cors", filter.cors.is_some()),
            ("extensionRef", filter.extension_ref.is_some()),
            ("externalAuth", filter.external_auth.is_some()),
            ("requestHeaderModifier", filter.request_header_modifier.is_some()),
            ("requestMirror", filter.request_mirror.is_some()),
            ("requestRedirect", filter.request_redirect.is_some()),
            ("responseHeaderModifier", filter.response_header_modifier.is_some()),
            ("urlRewrite", filter.url_rewrite.is_some()),
        ];
        let (name, own, does) = match filter.kind {
            Type::RequestHeaderModifier => (
                "RequestHeaderModifier",
                "requestHeaderModifier",
                Does::Request(filter.request_header_modifier.as_ref()),
            ),
            Type::ResponseHeaderModifier => (
                "ResponseHeaderModifier",
                "responseHeaderModifier",
                Does::Response(filter.response_header_modifier.as_ref()),
            ),
            Type::RequestMirror => ("RequestMirror", "requestMirror", Does::Mirror(filter.request_mirror.as_ref())),
            Type::RequestRedirect => {
                ("RequestRedirect", "requestRedirect", Does::Redirect(filter.request_redirect.as_ref()))
            }
            Type::UrlRewrite => ("URLRewrite", "urlRewrite", Does::Rewrite(filter.url_rewrite.as_ref())),
            Type::Cors => ("CORS", "cors", Does::Cors(filter.cors.as_ref())),
            Type::ExtensionRef => ("ExtensionRef", "extensionRef", Does::Nothing(NO_EXTENSION)),
            Type::ExternalAuth => ("ExternalAuth", "externalAuth", Does::Nothing("use an AuthorizationPolicy")),
        };
        Self { name, own, strange: strange(own, &all), does }
    }
}

/// Why no filter of another kind is taken.
const NO_EXTENSION: &str = "what Weir adds to a route is a TrafficPolicy with the route in its targetRefs";

impl<'a> From<&'a GrpcRouteRuleFilter> for Filter<'a> {
    fn from(filter: &'a GrpcRouteRuleFilter) -> Self {
        use GrpcRouteRuleFilterType as Type;
        let all = [
            ("extensionRef", filter.extension_ref.is_some()),
            ("requestHeaderModifier", filter.request_header_modifier.is_some()),
            ("requestMirror", filter.request_mirror.is_some()),
            ("responseHeaderModifier", filter.response_header_modifier.is_some()),
        ];
        let (name, own, does) = match filter.kind {
            Type::RequestHeaderModifier => (
                "RequestHeaderModifier",
                "requestHeaderModifier",
                Does::Request(filter.request_header_modifier.as_ref()),
            ),
            Type::ResponseHeaderModifier => (
                "ResponseHeaderModifier",
                "responseHeaderModifier",
                Does::Response(filter.response_header_modifier.as_ref()),
            ),
            Type::RequestMirror => ("RequestMirror", "requestMirror", Does::Mirror(filter.request_mirror.as_ref())),
            Type::ExtensionRef => ("ExtensionRef", "extensionRef", Does::Nothing(NO_EXTENSION)),
        };
        Self { name, own, strange: strange(own, &all), does }
    }
}

impl Reader<'_> {
    /// Filters of a rule.
    pub(super) fn filters<'f, F>(&mut self, list: &'f [F], at: &FieldPath) -> Filters
    where
        Filter<'f>: From<&'f F>,
    {
        self.limit(at, list.len(), MAX_FILTERS);
        let mut filters = Filters::default();
        for (i, filter) in list.iter().enumerate() {
            let at = at.index(i);
            let filter = Filter::from(filter);
            if let Some(strange) = filter.strange {
                self.error(at.key(strange), format!("does not belong to type {}", filter.name));
            }
            if self.filter(&filter, &at, &mut filters) {
                self.error(at.key("type"), format!("{} comes twice; the API allows it once", filter.name));
            }
        }
        if filters.redirect.is_some() && filters.rewrite.is_some() {
            self.error(
                at.clone(),
                "has both RequestRedirect and URLRewrite: nothing is sent anywhere that could be rewritten",
            );
        }
        if filters.redirect.is_some() && !filters.mirrors.is_empty() {
            self.error(
                at.clone(),
                "has both RequestRedirect and RequestMirror: nothing is sent anywhere that could be copied",
            );
        }
        filters
    }

    /// Filters of a backend: what follows for its share alone is a change of headers.
    pub(super) fn backend_filters<'f, F>(
        &mut self,
        list: &'f [F],
        at: &FieldPath,
    ) -> (Vec<HeaderChange>, Vec<HeaderChange>)
    where
        Filter<'f>: From<&'f F>,
    {
        for (i, filter) in list.iter().enumerate() {
            let filter = Filter::from(filter);
            if !matches!(filter.does, Does::Request(_) | Does::Response(_) | Does::Nothing(_)) {
                let message =
                    format!("{} is not supported for one backend: write it in the rule's own filters", filter.name);
                self.error(at.index(i).key("type"), message);
            }
        }
        self.filters(list, at).of_headers()
    }

    /// Reads one filter; true where it comes a second time and may not.
    fn filter(&mut self, filter: &Filter<'_>, at: &FieldPath, into: &mut Filters) -> bool {
        match filter.does {
            Does::Nothing(instead) => {
                self.error(at.key("type"), format!("{} is not supported: {instead}", filter.name));
                false
            }
            Does::Request(Some(modifier)) => {
                let changes = self.modifier(modifier, &at.key("requestHeaderModifier"));
                into.request.replace(changes).is_some()
            }
            Does::Response(Some(modifier)) => {
                let changes = self.modifier(modifier, &at.key("responseHeaderModifier"));
                into.response.replace(changes).is_some()
            }
            Does::Redirect(Some(redirect)) => {
                let redirect = self.redirect(redirect, &at.key("requestRedirect"));
                into.redirect.replace(redirect).is_some()
            }
            Does::Rewrite(Some(rewrite)) => {
                let rewrite = self.rewrite(rewrite, &at.key("urlRewrite"));
                into.rewrite.replace(rewrite).is_some()
            }
            Does::Cors(Some(cors)) => {
                let cors = self.cors(cors, &at.key("cors"));
                into.cors.replace(cors).is_some()
            }
            Does::Mirror(Some(mirror)) => {
                let mirror = self.mirror(mirror, &at.key("requestMirror"));
                into.mirrors.extend(mirror);
                false
            }
            Does::Request(None)
            | Does::Response(None)
            | Does::Redirect(None)
            | Does::Rewrite(None)
            | Does::Cors(None)
            | Does::Mirror(None) => {
                self.error(at.key(filter.own), format!("is missing for type {}", filter.name));
                false
            }
        }
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

    fn redirect(&mut self, redirect: &RequestRedirect, at: &FieldPath) -> Redirect {
        if let Some(host) = &redirect.hostname {
            self.host(host, at.key("hostname"));
        }
        let status = redirect.status_code.unwrap_or(DEFAULT_REDIRECT);
        let known = u16::try_from(status).ok().filter(|status| [301, 302, 303, 307, 308].contains(status));
        if known.is_none() {
            self.error(at.key("statusCode"), format!("{status} is not one of 301, 302, 303, 307 and 308"));
        }
        Redirect {
            scheme: redirect.scheme.map(|scheme| match scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            }),
            host: redirect.hostname.clone(),
            port: redirect.port.and_then(|port| self.port(port, at.key("port"))),
            path: redirect.path.as_ref().and_then(|path| self.path_change(path, &at.key("path"))),
            status: known.unwrap_or_default(),
        }
    }

    fn rewrite(&mut self, rewrite: &UrlRewrite, at: &FieldPath) -> (Option<String>, Option<PathChange>) {
        if let Some(host) = &rewrite.hostname {
            self.host(host, at.key("hostname"));
        }
        (rewrite.hostname.clone(), rewrite.path.as_ref().and_then(|path| self.path_change(path, &at.key("path"))))
    }

    fn path_change(&mut self, path: &PathModifier, at: &FieldPath) -> Option<PathChange> {
        let (field, value, other) = match path.kind {
            PathModifierType::ReplaceFullPath => {
                ("replaceFullPath", &path.replace_full_path, &path.replace_prefix_match)
            }
            PathModifierType::ReplacePrefixMatch => {
                ("replacePrefixMatch", &path.replace_prefix_match, &path.replace_full_path)
            }
        };
        if other.is_some() {
            self.error(at.clone(), format!("has another field than {field}, which its type asks for"));
        }
        let Some(value) = value else {
            self.error(at.key(field), "is missing for this type");
            return None;
        };
        let at = at.key(field);
        if value.len() > MAX_PATH {
            self.error(at.clone(), format!("is longer than {MAX_PATH} bytes"));
        }
        if !(value.is_empty() || value.starts_with('/')) {
            self.error(at.clone(), format!("{value:?} must start with /"));
        }
        let bad = |c: char| !c.is_ascii_graphic() || matches!(c, '?' | '#');
        if value.contains(bad) {
            self.error(at.clone(), "has a character that no path has: percent-encode it");
        }
        if value.split('/').any(|segment| segment == "." || segment == "..") {
            self.error(at, format!("{value:?} has a segment . or ..: write the path that is meant"));
        }
        Some(match path.kind {
            PathModifierType::ReplaceFullPath if value.is_empty() => PathChange::Whole("/".into()),
            PathModifierType::ReplaceFullPath => PathChange::Whole(value.clone()),
            PathModifierType::ReplacePrefixMatch => PathChange::Prefix(value.trim_end_matches('/').to_owned()),
        })
    }

    fn mirror(&mut self, mirror: &RequestMirror, at: &FieldPath) -> Option<Mirror> {
        let millionths = match (mirror.percent, &mirror.fraction) {
            (Some(_), Some(_)) => {
                self.error(at.clone(), "has both percent and fraction: leave one of them out");
                0
            }
            (Some(percent), None) => {
                if !(0..=100).contains(&percent) {
                    self.error(at.key("percent"), format!("{percent} is not a share (0 to 100)"));
                }
                millionths(percent, 100)
            }
            (None, Some(fraction)) => {
                let (part, whole) = (fraction.numerator, fraction.denominator.unwrap_or(100));
                if !(1..=MAX_INT).contains(&whole) || !(0..=whole).contains(&part) {
                    self.error(at.key("fraction"), format!("{part}/{whole} is not a share between 0 and 1"));
                }
                millionths(part, whole)
            }
            (None, None) => ALL_MILLIONTHS,
        };
        let target = self.target(&Reference::from(&mirror.backend_ref), &at.key("backendRef"))?;
        Some(Mirror { target, millionths })
    }

    fn cors(&mut self, cors: &ApiCors, at: &FieldPath) -> Cors {
        for (field, len) in [
            ("allowOrigins", cors.allow_origins.len()),
            ("allowHeaders", cors.allow_headers.len()),
            ("exposeHeaders", cors.expose_headers.len()),
        ] {
            self.limit(&at.key(field), len, MAX_ORIGINS);
        }
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            if !is_origin(origin) {
                let message =
                    format!("{origin:?} is no origin: SCHEME://HOST[:PORT] with http or https, *. before a host, or *");
                self.error(at.key("allowOrigins").index(i), message);
            }
        }
        let methods: Vec<String> = cors.allow_methods.iter().map(|method| method_name(*method).to_owned()).collect();
        for (field, list) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
            for (i, name) in list.iter().enumerate() {
                self.name(name, at.key(field).index(i));
            }
        }
        for (field, list) in [
            ("allowOrigins", &cors.allow_origins),
            ("allowMethods", &methods),
            ("allowHeaders", &cors.allow_headers),
            ("exposeHeaders", &cors.expose_headers),
        ] {
            if list.len() > 1 && list.iter().any(|entry| entry == "*") {
                self.error(at.key(field), "has * beside others: * alone is all of them");
            }
        }
        let max_age = cors.max_age.map_or(Some(DEFAULT_MAX_AGE), |age| u32::try_from(age).ok().filter(|age| *age > 0));
        if max_age.is_none() || cors.max_age.is_some_and(|age| age > MAX_INT) {
            self.error(at.key("maxAge"), "is not a number of seconds, 1 or more");
        }
        Cors {
            origins: cors.allow_origins.clone(),
            credentials: cors.allow_credentials.unwrap_or_default(),
            methods,
            headers: cors.allow_headers.clone(),
            exposed: cors.expose_headers.clone(),
            max_age: max_age.unwrap_or_default(),
        }
    }
}

/// Rounded, but never to nothing.
fn millionths(part: i64, whole: i64) -> u32 {
    let (part, whole) = (i128::from(part.max(0)), i128::from(whole.max(1)));
    let share = (part * i128::from(ALL_MILLIONTHS) + whole / 2) / whole;
    let share = if part > 0 { share.max(1) } else { share };
    u32::try_from(share).unwrap_or(ALL_MILLIONTHS).min(ALL_MILLIONTHS)
}

fn is_origin(origin: &str) -> bool {
    if origin == "*" {
        return true;
    }
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let port = port.is_none_or(|port| port == "*" || port.parse::<u16>().is_ok_and(|port| port > 0));
    let host = host.to_ascii_lowercase();
    let host = host == "*" || is_host(host.strip_prefix("*.").unwrap_or(&host));
    matches!(scheme, "http" | "https") && host && port
}

fn method_name(method: AllowMethod) -> &'static str {
    match method {
        AllowMethod::Get => "GET",
        AllowMethod::Head => "HEAD",
        AllowMethod::Post => "POST",
        AllowMethod::Put => "PUT",
        AllowMethod::Delete => "DELETE",
        AllowMethod::Connect => "CONNECT",
        AllowMethod::Options => "OPTIONS",
        AllowMethod::Trace => "TRACE",
        AllowMethod::Patch => "PATCH",
        AllowMethod::Any => "*",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(
            [millionths(1, 3), millionths(1, i64::from(i32::MAX)), millionths(0, 5), millionths(9, 5)],
            [333_333, 1, 0, 1_000_000]
        );
    }

    #[test]
    fn origins() {
        for origin in ["*", "https://a.example", "http://*.a.example:8080", "https://*", "http://a:*"] {
            assert!(is_origin(origin), "{origin}");
        }
        for origin in [
            "",
            "a.example",
            "ftp://a",
            "https://",
            "https://a/b",
            "https://a:0",
            "https://a:x",
            "https://*a",
            "https://a.*",
        ] {
            assert!(!is_origin(origin), "{origin}");
        }
    }
}
