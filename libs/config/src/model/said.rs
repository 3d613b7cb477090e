//! What policies say, field by field, in the words of the objects that say it.

use std::time::Duration;

use super::{
    AbortWith, Balance, CheckBy, HashKey, HashTable, HealthCheck, Outliers, Places, RequestRules, UpstreamRules,
};

/// A field's path and its value.
pub type Said = (&'static str, String);

impl UpstreamRules {
    /// The fields that are set.
    pub fn said(&self) -> Vec<Said> {
        let Self {
            balance,
            warm_up,
            places,
            max_connections,
            max_pending,
            max_requests,
            max_retries,
            requests_per_connection,
            connect_timeout,
            idle_timeout,
            outliers,
            min_healthy_percent,
            retry_budget,
            checks,
        } = self;
        let number = |field, number: &Option<u32>| number.map(|number| (field, number.to_string()));
        let warm_up = warm_up.map(|warm| format!("{} from {} %", time(warm.time), warm.from_percent));
        let budget = retry_budget.map(|budget| format!("{}, {} at once", share(budget.millionths), budget.min));
        let checks: Vec<String> = checks.iter().map(check).collect();
        let all = [
            balance.as_ref().map(|balance| ("loadBalancer", self::balance(balance))),
            warm_up.map(|text| ("loadBalancer.warmup", text)),
            places.as_ref().map(|places| ("loadBalancer.localityLbSetting", self::places(places).to_owned())),
            number("connectionPool.tcp.maxConnections", max_connections),
            connect_timeout.map(|limit| ("connectionPool.tcp.connectTimeout", time(limit))),
            number("connectionPool.http.http1MaxPendingRequests", max_pending),
            number("connectionPool.http.http2MaxRequests", max_requests),
            number("connectionPool.http.maxRetries", max_retries),
            number("connectionPool.http.maxRequestsPerConnection", requests_per_connection),
            idle_timeout.map(|limit| ("connectionPool.http.idleTimeout", time(limit))),
            outliers.as_ref().map(|outliers| ("outlierDetection", self::outliers(outliers))),
            number("outlierDetection.minHealthPercent", min_healthy_percent),
            budget.map(|text| ("retryBudget", text)),
            (!checks.is_empty()).then(|| ("healthChecks", checks.join("; "))),
        ];
        all.into_iter().flatten().collect()
    }
}

impl RequestRules {
    /// The fields that are set.
    pub fn said(&self) -> Vec<Said> {
        let Self { delay, abort, rate, max_body } = self;
        let abort = abort.map(|abort| {
            let with = match abort.with {
                AbortWith::Http(status) => format!("status {status}"),
                AbortWith::Grpc(status) => format!("gRPC status {status}"),
            };
            (with, abort.millionths)
        });
        let all = [
            delay.map(|delay| ("fault.delay", format!("{} for {}", time(delay.time), share(delay.millionths)))),
            abort.map(|(with, millionths)| ("fault.abort", format!("{with} for {}", share(millionths)))),
            rate.map(|rate| ("rateLimit", format!("{} in {}, burst {}", rate.requests, time(rate.per), rate.burst))),
            max_body.map(|bytes| ("limits.requestBodyBytes", bytes.to_string())),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Such as `1.5s`.
pub(super) fn time(time: Duration) -> String {
    format!("{time:?}")
}

/// Millionths in percent.
pub(super) fn share(millionths: u32) -> String {
    let (whole, rest) = (millionths / 10_000, millionths % 10_000);
    let rest = format!("{rest:04}");
    match rest.trim_end_matches('0') {
        "" => format!("{whole} %"),
        rest => format!("{whole}.{rest} %"),
    }
}

fn balance(balance: &Balance) -> String {
    match balance {
        Balance::Least => "LEAST_REQUEST".into(),
        Balance::RoundRobin => "ROUND_ROBIN".into(),
        Balance::Random => "RANDOM".into(),
        Balance::Hash { key, table } => {
            let key = match key {
                HashKey::Header(name) => format!("header {name}"),
                HashKey::Cookie { name, .. } => format!("cookie {name}"),
                HashKey::Query(name) => format!("query {name}"),
                HashKey::SourceIp => "source address".into(),
            };
            let table = match table {
                HashTable::Ring(_) => "ring",
                HashTable::Maglev(_) => "maglev",
            };
            format!("consistent hash of {key} ({table})")
        }
    }
}

fn places(places: &Places) -> &'static str {
    match places {
        Places::Near(_) => "failover",
        Places::Spread(_) => "distribute",
        Places::Anywhere => "disabled",
    }
}

fn outliers(outliers: &Outliers) -> String {
    let Outliers {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local,
        split_local,
        interval,
        ejection,
        max_percent,
    } = outliers;
    let number = |name: &str, number: &Option<u32>| number.map(|number| format!("{name} {number}"));
    let parts = [
        number("consecutive5xxErrors", consecutive_5xx),
        number("consecutiveGatewayErrors", consecutive_gateway),
        number("consecutiveLocalOriginFailures", consecutive_local),
        split_local.then(|| "splitExternalLocalOriginErrors".to_owned()),
        interval.map(|limit| format!("interval {}", time(limit))),
        ejection.map(|limit| format!("baseEjectionTime {}", time(limit))),
        number("maxEjectionPercent", max_percent),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "with its defaults".into() } else { parts.join(", ") }
}

fn check(check: &HealthCheck) -> String {
    let asks = match &check.by {
        CheckBy::Http { path, .. } => format!("HTTP {path}"),
        CheckBy::Grpc(service) if service.is_empty() => "GRPC".into(),
        CheckBy::Grpc(service) => format!("GRPC {service}"),
        CheckBy::Tcp => "TCP".into(),
    };
    format!("{asks} every {}", time(check.interval))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Delay, Rate, RetryBudget};

    fn upstream() -> impl Strategy<Value = UpstreamRules> {
        let number = || proptest::option::of(1..9_u32);
        let time = || proptest::option::of((1..9_u64).prop_map(Duration::from_secs));
        let numbers = (number(), number(), number(), number(), number(), number(), number());
        (numbers, time(), time(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |((a, b, c, d, e, f, g), connect_timeout, idle_timeout, balances, checked, detects)| UpstreamRules {
                balance: balances.then_some(Balance::RoundRobin),
                max_connections: a,
                max_pending: b,
                max_requests: c,
                max_retries: d,
                requests_per_connection: e,
                min_healthy_percent: f,
                retry_budget: g.map(|min| RetryBudget { millionths: 200_000, min }),
                connect_timeout,
                idle_timeout,
                outliers: detects.then(|| Outliers { max_percent: a, ..Outliers::default() }),
                checks: checked
                    .then(|| HealthCheck {
                        by: CheckBy::Tcp,
                        timeout: Duration::from_secs(1),
                        interval: Duration::from_secs(u64::from(a.unwrap_or(1))),
                        unhealthy: 3,
                        healthy: 1,
                    })
                    .into_iter()
                    .collect(),
                ..UpstreamRules::default()
            },
        )
    }

    /// What the first of two policies leaves out is as the second one says.
    fn merged(first: Vec<Said>, second: Vec<Said>) -> Vec<Said> {
        let rest: Vec<Said> =
            second.into_iter().filter(|(field, _)| !first.iter().any(|(own, _)| own == field)).collect();
        let mut all: Vec<Said> = first.into_iter().chain(rest).collect();
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn a_field_is_the_first_policys_that_says_it(first in upstream(), second in upstream()) {
            let mut both = first.clone().or(&second).said();
            both.sort();
            prop_assert_eq!(both, merged(first.said(), second.said()));
        }

        #[test]
        fn so_is_one_of_requests(bytes in proptest::option::of(1..9_u32), other in proptest::option::of(1..9_u32), waits: bool) {
            let delay = Delay { time: Duration::from_secs(1), millionths: 500_000 };
            let rate = Rate { requests: 1, per: Duration::from_secs(1), burst: 1 };
            let first = RequestRules { max_body: bytes, delay: waits.then_some(delay), ..RequestRules::default() };
            let second = RequestRules { max_body: other, rate: Some(rate), delay: Some(delay), ..RequestRules::default() };
            let mut both = first.clone().or(&second).said();
            both.sort();
            prop_assert_eq!(both, merged(first.said(), second.said()));
        }
    }

    #[test]
    fn shares_are_percent() {
        for (millionths, text) in
            [(0, "0 %"), (500_000, "50 %"), (1_000_000, "100 %"), (125_000, "12.5 %"), (1, "0.0001 %")]
        {
            assert_eq!(share(millionths), text);
        }
    }
}
