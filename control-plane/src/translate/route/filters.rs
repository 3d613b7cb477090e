//! What filters of Envoy do for one route: CORS, sessions, faults, rates and sizes.

use prost::{Message, Name};
use sha2::{Digest as _, Sha256};
use weir_config::model::{
    Abort, AbortWith, Cors, Delay, PathMatcher, Rate, RequestRules, Route as Rule, Session, SessionBy,
};
use weir_xds::envoy::{
    self,
    buffer::{Buffer, BufferPerRoute, buffer_per_route},
    common_fault::{FaultDelay, fault_delay::FaultDelaySecifier},
    cookie_session::CookieBasedSessionState,
    core::{RuntimeFractionalPercent, TypedExtensionConfig},
    cors::CorsPolicy,
    fault::{FaultAbort, HttpFault, fault_abort::ErrorType},
    header_session::HeaderBasedSessionState,
    http_kinds::Cookie,
    kinds::{FractionalPercent, TokenBucket, fractional_percent::DenominatorType},
    local_ratelimit::LocalRateLimit,
    matcher::{StringMatcher, string_matcher::MatchPattern},
    protobuf::{Any, BoolValue, UInt32Value},
    stateful_session::{StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override},
};

use super::regex;
use crate::translate::encode::{append, duration};

/// A share of everything.
const ALL_MILLIONTHS: u32 = 1_000_000;
/// Prefix of Envoy's own counters.
const RATE_STATS: &str = "rate_limit";
/// Bytes of the hash in a session's name.
const NAME_BYTES: usize = 6;

/// An entry of a map from a filter's name to its configuration: maps are encoded by hand, in the order of names.
pub(super) fn entry(name: &str, config: &Any) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, 1, name.as_bytes());
    append(&mut bytes, 2, &config.encode_to_vec());
    bytes
}

/// A message with its type.
fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: envoy::type_url::<M>(), value: message.encode_to_vec() }
}

/// Configurations of what a rule says, by the filter's name.
pub(super) fn of_rule(rule: &Rule<'_>) -> Vec<(&'static str, Any)> {
    let cors = rule.rule.cors.as_ref().map(|cors| (envoy::CORS, any(&self::cors(cors))));
    let session = rule.rule.session.as_ref();
    let session = session.map(|session| (envoy::STATEFUL_SESSION, any(&self::session(rule, session))));
    cors.into_iter().chain(session).collect()
}

/// Configurations of what policies say, by the filter's name.
pub(super) fn of_requests(rules: &RequestRules) -> Vec<(&'static str, Any)> {
    let mut configs = Vec::new();
    if let Some(max) = rules.max_body {
        let buffer = Buffer { max_request_bytes: Some(UInt32Value { value: max }) };
        let route = BufferPerRoute { r#override: Some(buffer_per_route::Override::Buffer(buffer)) };
        configs.push((envoy::BUFFER, any(&route)));
    }
    if rules.delay.is_some() || rules.abort.is_some() {
        let fault = HttpFault { delay: rules.delay.map(delay), abort: rules.abort.map(abort), ..Default::default() };
        configs.push((envoy::FAULT, any(&fault)));
    }
    if let Some(rate) = rules.rate {
        configs.push((envoy::LOCAL_RATE_LIMIT, any(&limit(rate))));
    }
    configs
}

fn share(millionths: u32) -> FractionalPercent {
    FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() }
}

fn delay(delay: Delay) -> FaultDelay {
    FaultDelay {
        percentage: Some(share(delay.millionths)),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(duration(delay.time))),
    }
}

fn abort(abort: Abort) -> FaultAbort {
    let error = match abort.with {
        AbortWith::Http(status) => ErrorType::HttpStatus(status.into()),
        AbortWith::Grpc(status) => ErrorType::GrpcStatus(status.into()),
    };
    FaultAbort { percentage: Some(share(abort.millionths)), error_type: Some(error), ..Default::default() }
}

/// Without a word Envoy's filter looks at no request and refuses none.
fn limit(rate: Rate) -> LocalRateLimit {
    let all = || RuntimeFractionalPercent { default_value: Some(share(ALL_MILLIONTHS)), runtime_key: String::new() };
    LocalRateLimit {
        stat_prefix: RATE_STATS.to_owned(),
        token_bucket: Some(TokenBucket {
            max_tokens: rate.burst,
            tokens_per_fill: Some(UInt32Value { value: rate.requests }),
            fill_interval: Some(duration(rate.per)),
        }),
        filter_enabled: Some(all()),
        filter_enforced: Some(all()),
        ..Default::default()
    }
}

fn cors(cors: &Cors) -> CorsPolicy {
    let list = |list: &[String]| list.join(", ");
    CorsPolicy {
        allow_origin_string_match: cors.origins.iter().map(|text| origin(text)).collect(),
        allow_methods: list(&cors.methods),
        allow_headers: list(&cors.headers),
        expose_headers: list(&cors.exposed),
        max_age: cors.max_age.to_string(),
        allow_credentials: Some(BoolValue { value: cors.credentials }),
        ..Default::default()
    }
}

/// Browsers send origins in lower case (RFC 6454).
fn origin(text: &str) -> StringMatcher {
    let text = text.to_ascii_lowercase();
    let pattern = if text.contains('*') {
        let mut pattern = String::new();
        for c in text.chars() {
            match c {
                '*' => pattern.push_str(".*"),
                '.' => pattern.push_str("\\."),
                c => pattern.push(c),
            }
        }
        MatchPattern::SafeRegex(regex(&pattern))
    } else {
        MatchPattern::Exact(text)
    };
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn session(rule: &Rule<'_>, session: &Session) -> StatefulSessionPerRoute {
    let name = session.name.clone().unwrap_or_else(|| {
        let id = format!("{}/{}", rule.set.origin, rule.rule_index);
        let hash = Sha256::digest(id.as_bytes());
        hash.iter().take(NAME_BYTES).fold("weir-session-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
    });
    let (state, config) = match session.by {
        SessionBy::Header => (envoy::HEADER_SESSION, any(&HeaderBasedSessionState { name })),
        SessionBy::Cookie(life) => {
            let cookie = Cookie { name, ttl: life.map(duration), path: path(rule), ..Default::default() };
            (envoy::COOKIE_SESSION, any(&CookieBasedSessionState { cookie: Some(cookie) }))
        }
    };
    let state = TypedExtensionConfig { name: state.to_owned(), typed_config: Some(config) };
    let session = StatefulSession { session_state: Some(state), ..Default::default() };
    StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(session)) }
}

/// A browser sends a cookie to paths below its own: the rule's, where it has a single one.
fn path(rule: &Rule<'_>) -> String {
    match rule.rule.matches.as_slice() {
        [single] => match &single.path {
            PathMatcher::Exact(path) | PathMatcher::Prefix(path) => path.clone(),
            PathMatcher::Regex(_) | PathMatcher::Call { .. } => "/".into(),
        },
        _ => "/".into(),
    }
}
