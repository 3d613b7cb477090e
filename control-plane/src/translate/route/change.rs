//! Redirects, rewrites and mirrors.

use weir_config::model::{PathChange, PathMatcher, Redirect, Route as Rule};
use weir_xds::envoy::{
    core::RuntimeFractionalPercent,
    kinds::{FractionalPercent, fractional_percent::DenominatorType},
    matcher::RegexMatchAndSubstitute,
    route::{
        RedirectAction, RouteAction,
        redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
        route_action::{HostRewriteSpecifier, RequestMirrorPolicy},
    },
};

use super::regex;

/// A regular expression for every path.
const WHOLE: &str = "^/.*$";

/// What becomes of the path that a route has matched.
enum Change {
    /// The prefix that was matched becomes this.
    Prefix(String),
    /// What the regular expression finds becomes this.
    Found { pattern: String, by: String },
}

fn change(change: &PathChange, matched: &PathMatcher) -> Change {
    match (change, matched) {
        (PathChange::Whole(path), _) => Change::Found { pattern: WHOLE.into(), by: literal(path) },
        // Envoy puts the new prefix before what is left, which begins with a slash, but for these two.
        (PathChange::Prefix(prefix), PathMatcher::Prefix(matched)) if matched == "/" => {
            Change::Found { pattern: "^/".into(), by: format!("{}/", literal(prefix)) }
        }
        (PathChange::Prefix(prefix), PathMatcher::Prefix(matched)) if prefix.is_empty() => {
            Change::Found { pattern: format!("^{}/*", escaped(matched)), by: "/".into() }
        }
        (PathChange::Prefix(prefix), _) => Change::Prefix(prefix.clone()),
    }
}

fn substitution(pattern: &str, by: String) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: by }
}

/// A text that stands for itself in a substitution.
fn literal(text: &str) -> String {
    text.replace('\\', "\\\\")
}

/// A text that stands for itself in a regular expression.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// What the backend sees of host and path.
pub(super) fn rewrite(rule: &Rule<'_>, action: &mut RouteAction) {
    action.host_rewrite_specifier = rule.rule.rewrite_host.clone().map(HostRewriteSpecifier::HostRewriteLiteral);
    match rule.rule.rewrite_path.as_ref().map(|path| change(path, &rule.matcher.path)) {
        Some(Change::Prefix(prefix)) => action.prefix_rewrite = prefix,
        Some(Change::Found { pattern, by }) => action.regex_rewrite = Some(substitution(&pattern, by)),
        None => {}
    }
}

pub(super) fn redirect(redirect: &Redirect, matched: &PathMatcher, called: u16) -> RedirectAction {
    let status = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = redirect.path.as_ref().map(|path| match path {
        PathChange::Whole(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
        path => match change(path, matched) {
            Change::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            Change::Found { pattern, by } => PathRewriteSpecifier::RegexRewrite(substitution(&pattern, by)),
        },
    });
    RedirectAction {
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: port(redirect, called).map_or(0, u32::from),
        scheme_rewrite_specifier: redirect.scheme.map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.into())),
        path_rewrite_specifier: path,
        response_code: status.into(),
        ..Default::default()
    }
}

/// The port that a Location has to name. Gateway API: the one that is given, else the well-known one of a scheme that is given, else
/// the one that was called; the well-known one is not named, unless the request's Host may carry another.
fn port(redirect: &Redirect, called: u16) -> Option<u16> {
    let known = |scheme| if scheme == "https" { 443 } else { 80 };
    let usual = known(redirect.scheme.unwrap_or("http"));
    let port = redirect.port.or(redirect.scheme.map(known)).unwrap_or(called);
    let host_may_have_another = redirect.host.is_none() && called != port;
    (port != usual || host_may_have_another).then_some(port)
}

pub(super) fn mirror(cluster: String, millionths: u32) -> RequestMirrorPolicy {
    let share = FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() };
    RequestMirrorPolicy {
        cluster,
        runtime_fraction: Some(RuntimeFractionalPercent { default_value: Some(share), runtime_key: String::new() }),
        // A copy is the request as it is; without this Envoy would change its host.
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}
