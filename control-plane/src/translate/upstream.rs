//! How endpoints are called, as a cluster says it: balancing, limits, outliers, health checks.

use prost::Message;
use weir_config::model::{
    Balance, CheckBy, HashTable, HealthCheck, HttpVersion, Outliers, Places, UpstreamRules, WarmUp,
};
use weir_xds::envoy::{
    HTTP_OPTIONS, HTTP_OPTIONS_TYPE_URL,
    cluster::{
        CircuitBreakers, Cluster, OutlierDetection,
        circuit_breakers::{Thresholds, thresholds::RetryBudget},
        cluster::{
            CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
            RoundRobinLbConfig, SlowStartConfig,
            common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
        },
    },
    core::{
        self, HttpProtocolOptions as CommonHttpOptions, RoutingPriority, RuntimeDouble,
        health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck},
    },
    kinds::{Int64Range, Percent},
    protobuf::{Any, UInt32Value, UInt64Value},
    upstream_http::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
        },
    },
};

use super::encode::duration;

/// "No limit": without a word Envoy has one for each, as soon as it has one for any.
const UNLIMITED: u32 = u32::MAX;
/// Percent of a detection that is done.
const ALWAYS: u32 = 100;
const MILLIONTHS_OF_A_PERCENT: f64 = 10_000.0;

/// Writes the rules into a cluster.
pub(super) fn apply(rules: &UpstreamRules, version: Option<HttpVersion>, cluster: &mut Cluster) {
    balance(rules, cluster);
    if let Some(time) = rules.connect_timeout {
        cluster.connect_timeout = Some(duration(time));
    }
    cluster.circuit_breakers = breakers(rules);
    cluster.outlier_detection = rules.outliers.as_ref().map(outliers);
    cluster.health_checks = rules.checks.iter().map(check).collect();
    cluster.typed_extension_protocol_options = options(rules, version).into_iter().collect();
}

fn balance(rules: &UpstreamRules, cluster: &mut Cluster) {
    let slow = rules.warm_up.as_ref().map(slow_start);
    let (policy, config) = match &rules.balance {
        None | Some(Balance::Least) => {
            let config = LeastRequestLbConfig { slow_start_config: slow, ..Default::default() };
            (LbPolicy::LeastRequest, rules.warm_up.map(|_| LbConfig::LeastRequestLbConfig(config)))
        }
        Some(Balance::RoundRobin) => {
            let config = RoundRobinLbConfig { slow_start_config: slow };
            (LbPolicy::RoundRobin, rules.warm_up.map(|_| LbConfig::RoundRobinLbConfig(config)))
        }
        Some(Balance::Random) => (LbPolicy::Random, None),
        Some(Balance::Hash { table: HashTable::Ring(size), .. }) => {
            let minimum_ring_size = size.map(|value| UInt64Value { value });
            let config = RingHashLbConfig { minimum_ring_size, ..Default::default() };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        Some(Balance::Hash { table: HashTable::Maglev(size), .. }) => {
            let config = MaglevLbConfig { table_size: size.map(|value| UInt64Value { value }) };
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)))
        }
    };
    cluster.lb_policy = policy.into();
    cluster.lb_config = config;
    let spread = matches!(rules.places, Some(Places::Spread(_)));
    if spread || rules.min_healthy_percent.is_some() {
        cluster.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: rules.min_healthy_percent.map(|value| Percent { value: value.into() }),
            locality_config_specifier: spread
                .then_some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})),
            ..Default::default()
        });
    }
}

fn slow_start(warm_up: &WarmUp) -> SlowStartConfig {
    SlowStartConfig {
        slow_start_window: Some(duration(warm_up.time)),
        aggression: Some(RuntimeDouble {
            default_value: f64::from(warm_up.aggression_thousandths) / 1000.0,
            runtime_key: String::new(),
        }),
        min_weight_percent: Some(Percent { value: warm_up.from_percent.into() }),
    }
}

fn breakers(rules: &UpstreamRules) -> Option<CircuitBreakers> {
    let limits = [rules.max_connections, rules.max_pending, rules.max_requests, rules.max_retries];
    if limits.iter().all(Option::is_none) && rules.retry_budget.is_none() {
        return None;
    }
    let limit = |limit: Option<u32>| Some(UInt32Value { value: limit.unwrap_or(UNLIMITED) });
    let threshold = Thresholds {
        priority: RoutingPriority::Default.into(),
        max_connections: limit(rules.max_connections),
        max_pending_requests: limit(rules.max_pending),
        max_requests: limit(rules.max_requests),
        max_retries: limit(rules.max_retries),
        retry_budget: rules.retry_budget.map(|budget| RetryBudget {
            budget_percent: Some(Percent { value: f64::from(budget.millionths) / MILLIONTHS_OF_A_PERCENT }),
            min_retry_concurrency: Some(UInt32Value { value: budget.min }),
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(CircuitBreakers { thresholds: vec![threshold], ..Default::default() })
}

/// A count of zero turns its detection off; so does none for gateway errors and for what no rule speaks of.
fn outliers(outliers: &Outliers) -> OutlierDetection {
    let number = |value| Some(UInt32Value { value });
    let on = |count: Option<u32>| number(if count == Some(0) { 0 } else { ALWAYS });
    let count = |count: Option<u32>| count.filter(|count| *count > 0).map(|value| UInt32Value { value });
    OutlierDetection {
        consecutive_5xx: count(outliers.consecutive_5xx),
        enforcing_consecutive_5xx: on(outliers.consecutive_5xx),
        consecutive_gateway_failure: count(outliers.consecutive_gateway),
        enforcing_consecutive_gateway_failure: on(outliers.consecutive_gateway.or(Some(0))),
        split_external_local_origin_errors: outliers.split_local,
        consecutive_local_origin_failure: count(outliers.consecutive_local),
        enforcing_consecutive_local_origin_failure: on(outliers.consecutive_local),
        interval: outliers.interval.map(duration),
        base_ejection_time: outliers.ejection.map(duration),
        max_ejection_percent: outliers.max_percent.map(|value| UInt32Value { value }),
        enforcing_success_rate: number(0),
        enforcing_local_origin_success_rate: number(0),
        ..Default::default()
    }
}

fn check(check: &HealthCheck) -> core::HealthCheck {
    let checker = match &check.by {
        CheckBy::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        CheckBy::Grpc(service) => {
            HealthChecker::GrpcHealthCheck(GrpcHealthCheck { service_name: service.clone(), ..Default::default() })
        }
        CheckBy::Http { path, host, statuses } => {
            let range = |status: &u16| Int64Range { start: i64::from(*status), end: i64::from(*status) + 1 };
            HealthChecker::HttpHealthCheck(HttpHealthCheck {
                path: path.clone(),
                host: host.clone().unwrap_or_default(),
                expected_statuses: statuses.iter().map(range).collect(),
                ..Default::default()
            })
        }
    };
    core::HealthCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(check.interval)),
        unhealthy_threshold: Some(UInt32Value { value: check.unhealthy }),
        healthy_threshold: Some(UInt32Value { value: check.healthy }),
        health_checker: Some(checker),
        ..Default::default()
    }
}

/// The version of HTTP that endpoints are called in, where one was said, and what connections are used for.
fn options(rules: &UpstreamRules, version: Option<HttpVersion>) -> Option<(String, Any)> {
    let common = (rules.idle_timeout.is_some() || rules.requests_per_connection.is_some()).then(|| CommonHttpOptions {
        idle_timeout: rules.idle_timeout.map(duration),
        max_requests_per_connection: rules.requests_per_connection.map(|value| UInt32Value { value }),
        ..Default::default()
    });
    if version.is_none() && common.is_none() {
        return None;
    }
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let protocol = match version {
        Some(HttpVersion::Http1) => explicit(ProtocolConfig::HttpProtocolOptions(Default::default())),
        Some(HttpVersion::Http2) => explicit(ProtocolConfig::Http2ProtocolOptions(Default::default())),
        None => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Default::default()),
            http2_protocol_options: Some(Default::default()),
            ..Default::default()
        }),
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    };
    Some((HTTP_OPTIONS.to_owned(), Any { type_url: HTTP_OPTIONS_TYPE_URL.to_owned(), value: options.encode_to_vec() }))
}
