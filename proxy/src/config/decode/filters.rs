//! What filters do for one route: `typed_per_filter_config`.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use weir_xds::{
    envoy::{
        self,
        buffer::{BufferPerRoute, buffer_per_route},
        common_fault::{FaultDelay, fault_delay::FaultDelaySecifier},
        cookie_session::CookieBasedSessionState,
        core::RuntimeFractionalPercent,
        cors::CorsPolicy,
        fault::{FaultAbort, HttpFault, fault_abort::ErrorType},
        header_session::HeaderBasedSessionState,
        kinds::{FractionalPercent, fractional_percent::DenominatorType},
        local_ratelimit::LocalRateLimit,
        matcher::{StringMatcher, string_matcher::MatchPattern},
        protobuf::Any,
        stateful_session::{StatefulSession, StatefulSessionPerRoute, stateful_session_per_route},
    },
    prost::{Message, Name},
};

use super::{
    DecodeError,
    strict::{duration, limit, refuse},
};
use crate::{
    http,
    route::{
        Abort, Bucket, Chance, Cookie, Cors, Injection, Origin, OriginPattern, Policy, RateLimit, Session, SessionIn,
    },
};

/// Shortest time in which tokens are filled up, as Envoy has it.
const SHORTEST_FILL: Duration = Duration::from_millis(50);

/// Adds what filters ask to what the route asks.
pub(super) fn add(policy: &mut Policy<String>, filters: &HashMap<String, Any>) -> Result<(), DecodeError> {
    // In one order, so that of several errors the same one is told.
    let mut names: Vec<&String> = filters.keys().collect();
    names.sort_unstable();
    for name in names {
        let Some(config) = filters.get(name) else { continue };
        let named = |error: DecodeError| DecodeError::new(format!("{name}: {error}"));
        match name.as_str() {
            envoy::CORS => policy.cors = Some(cors(&read::<CorsPolicy>(config).map_err(named)?).map_err(named)?),
            envoy::FAULT => policy.injection = Some(fault(&read::<HttpFault>(config).map_err(named)?).map_err(named)?),
            envoy::LOCAL_RATE_LIMIT => {
                policy.rate = rate(&read::<LocalRateLimit>(config).map_err(named)?).map_err(named)?;
            }
            envoy::BUFFER => {
                policy.max_body = buffer(&read::<BufferPerRoute>(config).map_err(named)?).map_err(named)?
            }
            envoy::STATEFUL_SESSION => {
                policy.session = session(&read::<StatefulSessionPerRoute>(config).map_err(named)?).map_err(named)?;
            }
            other => return Err(DecodeError::new(format!("the configuration of {other} is not understood"))),
        }
    }
    Ok(())
}

fn read<M: Message + Name + Default>(config: &Any) -> Result<M, DecodeError> {
    if config.type_url != envoy::type_url::<M>() {
        return Err(DecodeError::new(format!("a configuration of another type: {}", config.type_url)));
    }
    Ok(M::decode(config.value.as_slice())?)
}

/// A share; `None` where the message says nothing.
pub(super) fn share(percent: Option<&FractionalPercent>) -> Result<Option<Chance>, DecodeError> {
    let Some(percent) = percent else { return Ok(None) };
    let of = match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(DecodeError::new("the denominator of a percentage is not understood")),
    };
    Ok(Some(Chance::new(percent.numerator, of)))
}

/// The same of one that a runtime could change; there is none, so the default value holds.
pub(super) fn runtime_share(percent: Option<&RuntimeFractionalPercent>) -> Result<Option<Chance>, DecodeError> {
    share(percent.and_then(|percent| percent.default_value.as_ref()))
}

fn cors(policy: &CorsPolicy) -> Result<Cors, DecodeError> {
    refuse!(policy, shadow_enabled, allow_private_network_access);
    if runtime_share(policy.filter_enabled.as_ref())?.is_some_and(|share| share != Chance::ALWAYS) {
        return Err(DecodeError::new("filter_enabled is understood as 100 % only"));
    }
    let visible = |what: &str, text: &str| match text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        true => Ok(text.into()),
        false => Err(DecodeError::new(format!("{what} has what no header has"))),
    };
    Ok(Cors {
        origins: policy.allow_origin_string_match.iter().map(origin).collect::<Result<_, _>>()?,
        methods: visible("allow_methods", &policy.allow_methods)?,
        headers: visible("allow_headers", &policy.allow_headers)?,
        expose: visible("expose_headers", &policy.expose_headers)?,
        max_age: visible("max_age", &policy.max_age)?,
        credentials: policy.allow_credentials.as_ref().is_some_and(|allow| allow.value),
        forwards_others: policy.forward_not_matching_preflights.as_ref().is_none_or(|forward| forward.value),
    })
}

fn origin(matcher: &StringMatcher) -> Result<Origin, DecodeError> {
    if matcher.ignore_case {
        return Err(DecodeError::new("ignore_case of an origin is not understood"));
    }
    Ok(match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) if text == "*" => Origin::Any,
        Some(MatchPattern::Exact(text)) => Origin::Exact(text.as_str().into()),
        Some(MatchPattern::Prefix(text)) => Origin::Prefix(text.as_str().into()),
        Some(MatchPattern::Suffix(text)) => Origin::Suffix(text.as_str().into()),
        Some(MatchPattern::SafeRegex(regex)) => {
            Origin::Pattern(OriginPattern::new(&regex.regex).map_err(DecodeError::new)?)
        }
        _ => return Err(DecodeError::new("this kind of match of an origin is not understood")),
    })
}

fn fault(fault: &HttpFault) -> Result<Injection, DecodeError> {
    refuse!(fault, upstream_cluster, headers, downstream_nodes, max_active_faults, response_rate_limit);
    Ok(Injection {
        delay: fault.delay.as_ref().map(delay).transpose()?,
        abort: fault.abort.as_ref().map(abort).transpose()?,
    })
}

fn delay(delay: &FaultDelay) -> Result<(Chance, Duration), DecodeError> {
    let Some(FaultDelaySecifier::FixedDelay(time)) = &delay.fault_delay_secifier else {
        return Err(DecodeError::new("a delay that is not fixed is not understood"));
    };
    // Envoy's share is none where it is not said.
    Ok((share(delay.percentage.as_ref())?.unwrap_or(Chance::new(0, 1)), duration("fixed_delay", time)?))
}

fn abort(abort: &FaultAbort) -> Result<(Chance, Abort), DecodeError> {
    refuse!(abort, response_body);
    let how = match abort.error_type {
        Some(ErrorType::HttpStatus(status)) => u16::try_from(status)
            .ok()
            .filter(|status| (200..=599).contains(status))
            .map(Abort::Http)
            .ok_or_else(|| DecodeError::new("http_status of an abort is none"))?,
        Some(ErrorType::GrpcStatus(status)) => u8::try_from(status)
            .ok()
            .filter(|status| *status <= 16)
            .map(Abort::Grpc)
            .ok_or_else(|| DecodeError::new("grpc_status of an abort is none"))?,
        _ => return Err(DecodeError::new("this kind of abort is not understood")),
    };
    Ok((share(abort.percentage.as_ref())?.unwrap_or(Chance::new(0, 1)), how))
}

fn rate(rate: &LocalRateLimit) -> Result<Option<RateLimit>, DecodeError> {
    refuse!(
        rate,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors,
    );
    let Some(bucket) = &rate.token_bucket else { return Ok(None) };
    let interval = limit("fill_interval", bucket.fill_interval.as_ref())?.unwrap_or_default();
    if interval < SHORTEST_FILL || bucket.max_tokens == 0 {
        return Err(DecodeError::new("token_bucket holds nothing, or is filled more often than every 50 ms"));
    }
    let fill = bucket.tokens_per_fill.as_ref().map_or(1, |fill| fill.value);
    let status = rate.status.as_ref().map_or(0, |status| status.code);
    let status = u16::try_from(status).ok().filter(|status| (400..=599).contains(status)).unwrap_or(429);
    let enforced = runtime_share(rate.filter_enforced.as_ref())?;
    let enabled = runtime_share(rate.filter_enabled.as_ref())?;
    let share = match (enabled, enforced) {
        (Some(one), Some(other)) if one != Chance::ALWAYS && other != Chance::ALWAYS => {
            return Err(DecodeError::new("only one of filter_enabled and filter_enforced may be below 100 %"));
        }
        (Some(one), Some(other)) => {
            if one == Chance::ALWAYS {
                other
            } else {
                one
            }
        }
        (one, other) => one.or(other).unwrap_or(Chance::ALWAYS),
    };
    let bucket = Bucket::new(bucket.max_tokens, fill, interval, Instant::now());
    Ok(Some(RateLimit { bucket: bucket.into(), status, share }))
}

fn buffer(buffer: &BufferPerRoute) -> Result<Option<u64>, DecodeError> {
    match &buffer.r#override {
        Some(buffer_per_route::Override::Buffer(buffer)) => {
            Ok(buffer.max_request_bytes.as_ref().map(|most| u64::from(most.value)))
        }
        _ => Ok(None),
    }
}

fn session(session: &StatefulSessionPerRoute) -> Result<Option<Session>, DecodeError> {
    let Some(stateful_session_per_route::Override::StatefulSession(session)) = &session.r#override else {
        return Ok(None);
    };
    let StatefulSession { session_state, strict, status_on_strict_destination_not_found: status, .. } = session;
    let Some(state) = session_state.as_ref().and_then(|state| state.typed_config.as_ref()) else {
        return Ok(None);
    };
    let kept = if state.type_url == envoy::type_url::<CookieBasedSessionState>() {
        let cookie = read::<CookieBasedSessionState>(state)?.cookie;
        let cookie = cookie.ok_or_else(|| DecodeError::new("a session without its cookie"))?;
        refuse!(cookie, attributes);
        let ttl = limit("ttl", cookie.ttl.as_ref())?.unwrap_or_default();
        SessionIn::Cookie(checked_cookie(&cookie.name, &cookie.path, ttl)?)
    } else {
        let name = read::<HeaderBasedSessionState>(state)?.name;
        http::Name::new(&name).map_err(|error| DecodeError::new(format!("header {name:?} {error}")))?;
        SessionIn::Header(name.to_ascii_lowercase().into())
    };
    let status = u16::try_from(*status).ok().filter(|status| (400..=599).contains(status)).unwrap_or(503);
    Ok(Some(Session { kept, strict: strict.then_some(status) }))
}

/// A cookie whose name and path are what such are (RFC 6265, 4.1.1).
pub(super) fn checked_cookie(name: &str, path: &str, ttl: Duration) -> Result<Cookie, DecodeError> {
    let is_name = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
    let is_path = |byte: u8| matches!(byte, b' '..=b'~') && byte != b';';
    if name.is_empty() || name.len() > 256 || !name.bytes().all(is_name) || !path.bytes().all(is_path) {
        return Err(DecodeError::new("a cookie whose name or path is none"));
    }
    Ok(Cookie { name: name.into(), path: path.into(), ttl })
}
