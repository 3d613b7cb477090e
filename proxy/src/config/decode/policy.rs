//! What a route asks of its requests beyond their cluster: time-outs, retries, other paths and hosts, copies, hashes, redirects.

use weir_xds::envoy::{
    matcher::RegexMatchAndSubstitute,
    route::{
        RedirectAction, RetryPolicy, RouteAction,
        redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
        route_action::{HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy, hash_policy::PolicySpecifier},
    },
};

use super::{
    DecodeError,
    filters::{checked_cookie, runtime_share},
    strict::{duration, limit, optional, refuse},
};
use crate::{
    http::authority,
    route::{
        Chance, Conditions, KeyFrom, KeyPart, Mirror, PathRewrite, Pause, Policy, Redirect, RedirectPath, Retry,
        Substitution,
    },
};

/// Decodes what a route's action asks.
#[allow(deprecated)] // fields that are refused
pub(super) fn policy(action: &RouteAction) -> Result<Policy<String>, DecodeError> {
    refuse!(
        action,
        metadata_match,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        flush_timeout,
        early_data_policy,
        retry_policy_typed_config,
        priority,
        rate_limits,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
    );
    Ok(Policy {
        timeout: limit("timeout", action.timeout.as_ref())?,
        idle: limit("idle_timeout", action.idle_timeout.as_ref())?,
        retry: action.retry_policy.as_ref().map(retry).transpose()?,
        path: path(&action.prefix_rewrite, action.regex_rewrite.as_ref())?,
        host: action.host_rewrite_specifier.as_ref().map(host).transpose()?,
        key: action.hash_policy.iter().map(key).collect::<Result<_, _>>()?,
        mirrors: action.request_mirror_policies.iter().map(mirror).collect::<Result<_, _>>()?,
        ..Policy::default()
    })
}

fn mirror(mirror: &RequestMirrorPolicy) -> Result<Mirror<String>, DecodeError> {
    refuse!(mirror, cluster_header, request_headers_mutations, host_rewrite_literal);
    Ok(Mirror {
        cluster: mirror.cluster.clone(),
        share: runtime_share(mirror.runtime_fraction.as_ref())?.unwrap_or(Chance::ALWAYS),
        keeps_host: mirror.disable_shadow_host_suffix_append,
    })
}

fn key(policy: &HashPolicy) -> Result<KeyPart, DecodeError> {
    let from = match &policy.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            refuse!(header, regex_rewrite);
            KeyFrom::Header(header.header_name.to_ascii_lowercase().into())
        }
        Some(PolicySpecifier::Cookie(cookie)) => {
            refuse!(cookie, attributes);
            let ttl = optional("ttl", cookie.ttl.as_ref())?;
            let cookie = checked_cookie(&cookie.name, &cookie.path, ttl.unwrap_or_default())?;
            KeyFrom::Cookie { cookie, gives: ttl.is_some() }
        }
        Some(PolicySpecifier::QueryParameter(parameter)) => KeyFrom::Query(parameter.name.as_str().into()),
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => KeyFrom::Source,
        _ => return Err(DecodeError::new("this kind of hash policy is not understood")),
    };
    Ok(KeyPart { from, terminal: policy.terminal })
}

fn retry(policy: &RetryPolicy) -> Result<Retry, DecodeError> {
    refuse!(
        policy,
        per_try_idle_timeout,
        retry_priority,
        retry_options_predicates,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    );
    let statuses = policy.retriable_status_codes.iter().map(|status| {
        let status = u16::try_from(*status).ok().filter(|status| (100..=999).contains(status));
        status.ok_or_else(|| DecodeError::new("retriable_status_codes has something that is no status"))
    });
    let pause = match &policy.retry_back_off {
        None => Pause::Short,
        Some(pauses) => {
            let base = pauses.base_interval.as_ref().ok_or_else(|| DecodeError::new("base_interval is missing"))?;
            let base = duration("base_interval", base)?;
            let max = optional("max_interval", pauses.max_interval.as_ref())?;
            if base.is_zero() || max.is_some_and(|max| max < base) {
                return Err(DecodeError::new("base_interval is 0, or above max_interval"));
            }
            Pause::at_least(base, max)
        }
    };
    Ok(Retry {
        on: Conditions::parse(&policy.retry_on).map_err(DecodeError::new)?,
        statuses: statuses.collect::<Result<_, _>>()?,
        retries: policy.num_retries.as_ref().map_or(1, |number| number.value),
        per_try: limit("per_try_timeout", policy.per_try_timeout.as_ref())?,
        pause,
    })
}

fn path(prefix: &str, regex: Option<&RegexMatchAndSubstitute>) -> Result<Option<PathRewrite>, DecodeError> {
    match (prefix, regex) {
        ("", None) => Ok(None),
        (prefix, None) => Ok(Some(PathRewrite::Matched(prefix.as_bytes().into()))),
        ("", Some(regex)) => Ok(Some(PathRewrite::Pattern(substitution(regex)?))),
        _ => Err(DecodeError::new("prefix_rewrite and regex_rewrite exclude each other")),
    }
}

fn substitution(regex: &RegexMatchAndSubstitute) -> Result<Substitution, DecodeError> {
    let pattern = regex.pattern.as_ref().map_or("", |pattern| &*pattern.regex);
    Substitution::new(pattern, &regex.substitution).map_err(|why| DecodeError::new(format!("regex_rewrite: {why}")))
}

fn host(specifier: &HostRewriteSpecifier) -> Result<Box<[u8]>, DecodeError> {
    let HostRewriteSpecifier::HostRewriteLiteral(host) = specifier else {
        return Err(DecodeError::new("only the literal form of a host rewrite is understood"));
    };
    authority::split(host.as_bytes()).map_err(|why| DecodeError::new(format!("host_rewrite_literal: {why}")))?;
    Ok(host.as_bytes().into())
}

/// Decodes a redirect.
pub(super) fn redirect(action: &RedirectAction) -> Result<Redirect, DecodeError> {
    let status = match RedirectResponseCode::try_from(action.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return Err(DecodeError::new("response_code of a redirect is not understood")),
    };
    let scheme = match &action.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https"),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => match scheme.as_str() {
            scheme @ ("http" | "https") => Some(scheme),
            _ => return Err(DecodeError::new("scheme_redirect is neither http nor https")),
        },
    };
    if !action.host_redirect.is_empty() {
        match authority::split(action.host_redirect.as_bytes()) {
            Ok((_, None)) => {}
            Ok((_, Some(_))) => return Err(DecodeError::new("host_redirect has a port: port_redirect is for that")),
            Err(why) => return Err(DecodeError::new(format!("host_redirect: {why}"))),
        }
    }
    let path = match &action.path_rewrite_specifier {
        None => RedirectPath::Same,
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.starts_with('/') && is_visible(path) => {
            RedirectPath::Whole(path.as_str().into())
        }
        Some(PathRewriteSpecifier::PathRedirect(_)) => {
            return Err(DecodeError::new("path_redirect does not begin with a slash, or has what no path has"));
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            RedirectPath::Changed(PathRewrite::Matched(prefix.as_bytes().into()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            RedirectPath::Changed(PathRewrite::Pattern(substitution(regex)?))
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Err(DecodeError::new("path_rewrite is not understood")),
    };
    let port = u16::try_from(action.port_redirect).map_err(|_| DecodeError::new("port_redirect is no port"))?;
    Ok(Redirect {
        status,
        scheme: scheme.map(Into::into),
        host: Some(action.host_redirect.as_str()).filter(|host| !host.is_empty()).map(Into::into),
        port: Some(port).filter(|port| *port != 0),
        path,
        strip_query: action.strip_query,
    })
}

/// Nothing in it could end a header line, or a target.
fn is_visible(path: &str) -> bool {
    path.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'#')
}
