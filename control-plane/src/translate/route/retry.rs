//! Retries and the time of an attempt.

use std::time::Duration;

use weir_config::model::RouteRule;
use weir_xds::envoy::{
    protobuf::UInt32Value,
    route::{RetryPolicy, retry_policy::RetryBackOff},
};

use crate::translate::encode::duration;

/// No answer at all, in Envoy's words: wherever a retry is asked for it is asked for that as well (Gateway API, "HTTPRouteRetry":
/// disconnect, reset, timeout, TCP failure).
const UNANSWERED: &str = "connect-failure,refused-stream,reset";
/// Statuses of the policy's own list, in Envoy's words.
const STATUSES: &str = "retriable-status-codes";
/// The pause grows up to this many times the first one (Envoy's default).
const MAX_GROWTH: u32 = 10;

/// Also where no retry is asked for: it holds the time of an attempt.
pub(super) fn policy(rule: &RouteRule) -> Option<RetryPolicy> {
    let each = rule.attempt_timeout.filter(|each| !each.is_zero());
    let Some(retry) = &rule.retry else {
        return each.map(|each| RetryPolicy {
            num_retries: Some(UInt32Value { value: 0 }),
            per_try_timeout: Some(duration(each)),
            ..Default::default()
        });
    };
    let on = if retry.statuses.is_empty() { UNANSWERED.to_owned() } else { format!("{UNANSWERED},{STATUSES}") };
    let back_off = |pause: Duration| RetryBackOff {
        base_interval: Some(duration(pause)),
        max_interval: Some(duration(pause.saturating_mul(MAX_GROWTH))),
    };
    Some(RetryPolicy {
        retry_on: on,
        num_retries: Some(UInt32Value { value: retry.attempts }),
        per_try_timeout: each.map(duration),
        retriable_status_codes: retry.statuses.iter().copied().map(u32::from).collect(),
        retry_back_off: retry.pause.map(back_off),
        ..Default::default()
    })
}
