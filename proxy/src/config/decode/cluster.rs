//! Clusters: how their endpoints are called, chosen, limited, ejected and checked.

use std::time::Duration;

use weir_xds::envoy::{
    HTTP_OPTIONS, HTTP_OPTIONS_TYPE_URL,
    cluster::{
        CircuitBreakers, Cluster, OutlierDetection,
        circuit_breakers::{Thresholds as Envoys, thresholds::RetryBudget},
        cluster::{CommonLbConfig, LbConfig, LbPolicy, SlowStartConfig, common_lb_config::LocalityConfigSpecifier},
    },
    core::{HealthCheck, RoutingPriority, health_check::HealthChecker},
    protobuf::{Any, UInt32Value, UInt64Value},
    upstream_http::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
    },
};
use weir_xds::prost::Message;

use super::{
    DecodeError, ServiceSpec, service,
    strict::{limit, optional, refuse},
};
use crate::{
    http::Version,
    upstream::{
        Allowance, Balancing, Check, Expected, Keeping, MAX_PLACES, Method, Outlier, Probe, SlowStart, SuccessRate,
        Thresholds,
    },
};

/// Where a cluster says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that a connection may take, whatever a cluster says.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Envoy's places on a ring and in a Maglev table.
const RING: u64 = 1024;
const TABLE: u64 = 65_537;

/// A cluster by its parts.
pub(crate) struct ClusterSpec {
    /// The Service it stands for.
    pub service: Option<ServiceSpec>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// The version of HTTP that is asked for.
    pub version: Option<Version>,
    /// How endpoints are chosen.
    pub balancing: Balancing,
    /// Limits.
    pub thresholds: Thresholds,
    /// What retries are allowed by.
    pub allowance: Allowance,
    /// When endpoints are ejected.
    pub outlier: Option<Outlier>,
    /// How endpoints are checked.
    pub checks: Vec<Check>,
    /// How connections are kept.
    pub keeping: Keeping,
}

/// Decodes a cluster.
///
/// # Errors
/// [`DecodeError`] where it is no cluster, or names the part that is not understood.
#[allow(deprecated)] // fields that are refused
pub(crate) fn cluster(body: &[u8]) -> Result<ClusterSpec, DecodeError> {
    let cluster = Cluster::decode(body)?;
    refuse!(
        cluster,
        max_requests_per_connection,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        lb_subset_config,
        load_balancing_policy,
        transport_socket,
        transport_socket_matches,
        filters,
        upstream_bind_config,
        preconnect_policy,
        connection_pool_per_downstream_connection,
    );
    let connect_timeout = limit("connect_timeout", cluster.connect_timeout.as_ref())?;
    let options = cluster.typed_extension_protocol_options.get(HTTP_OPTIONS).map(options).transpose()?;
    let (version, keeping) = options.unwrap_or_default();
    let (thresholds, allowance) = cluster.circuit_breakers.as_ref().map(breakers).transpose()?.unwrap_or_default();
    Ok(ClusterSpec {
        service: service(cluster.metadata.as_ref()),
        connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT).min(MAX_CONNECT_TIMEOUT),
        version,
        balancing: balancing(&cluster)?,
        thresholds,
        allowance,
        outlier: cluster.outlier_detection.as_ref().map(outlier).transpose()?,
        checks: cluster.health_checks.iter().map(check).collect::<Result<_, _>>()?,
        keeping,
    })
}

/// The version of HTTP that a cluster asks for, and how its connections are kept.
fn options(options: &Any) -> Result<(Option<Version>, Keeping), DecodeError> {
    if options.type_url != HTTP_OPTIONS_TYPE_URL {
        return Err(DecodeError::new("HTTP options of another type"));
    }
    let options = HttpProtocolOptions::decode(&*options.value)?;
    let version = match options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(_)) => Some(Version::Http11),
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Some(Version::Http2),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return Err(DecodeError::new("a cluster that asks for HTTP/3"));
            }
            None => None,
        },
        _ => None,
    };
    let mut keeping = Keeping::default();
    if let Some(common) = &options.common_http_protocol_options {
        refuse!(common, max_connection_duration, max_stream_duration);
        keeping.idle = limit("idle_timeout", common.idle_timeout.as_ref())?;
        keeping.requests = value(common.max_requests_per_connection.as_ref()).filter(|most| *most > 0);
    }
    Ok((version, keeping))
}

fn value(value: Option<&UInt32Value>) -> Option<u32> {
    value.map(|value| value.value)
}

fn balancing(cluster: &Cluster) -> Result<Balancing, DecodeError> {
    let mut balancing = Balancing::default();
    let mut slow = None;
    let mut ring = (RING, MAX_PLACES);
    let mut table = TABLE;
    match &cluster.lb_config {
        None => {}
        Some(LbConfig::LeastRequestLbConfig(config)) => {
            refuse!(config, active_request_bias);
            if value(config.choice_count.as_ref()).is_some_and(|count| count != 2) {
                return Err(DecodeError::new("choice_count is not understood: it is the better of two"));
            }
            slow = config.slow_start_config.as_ref();
        }
        Some(LbConfig::RoundRobinLbConfig(config)) => slow = config.slow_start_config.as_ref(),
        Some(LbConfig::RingHashLbConfig(config)) => {
            let size = |size: &Option<UInt64Value>, default| size.as_ref().map_or(default, |size| size.value);
            ring = (size(&config.minimum_ring_size, RING), size(&config.maximum_ring_size, MAX_PLACES));
            if ring.0 > ring.1 || ring.0 > MAX_PLACES {
                return Err(DecodeError::new(format!(
                    "minimum_ring_size is above maximum_ring_size, or above {MAX_PLACES}"
                )));
            }
        }
        Some(LbConfig::MaglevLbConfig(config)) => {
            table = config.table_size.as_ref().map_or(TABLE, |size| size.value);
            let mut divisors = (2..=table).take_while(|by| by.saturating_mul(*by) <= table);
            if !(2..=MAX_PLACES).contains(&table) || divisors.any(|by| table.is_multiple_of(by)) {
                return Err(DecodeError::new(format!("table_size is no prime up to {MAX_PLACES}")));
            }
        }
        Some(LbConfig::OriginalDstLbConfig(_)) => {
            return Err(DecodeError::new("original_dst_lb_config is not understood"));
        }
    }
    balancing.method = match LbPolicy::try_from(cluster.lb_policy) {
        Ok(LbPolicy::LeastRequest) => Method::LeastRequest,
        Ok(LbPolicy::RoundRobin) => Method::RoundRobin,
        Ok(LbPolicy::Random) => Method::Random,
        Ok(LbPolicy::RingHash) => Method::Ring { least: ring.0, most: ring.1 },
        Ok(LbPolicy::Maglev) => Method::Maglev(table),
        _ => return Err(DecodeError::new("lb_policy is not understood")),
    };
    balancing.slow_start = slow.map(slow_start).transpose()?.flatten();
    if let Some(common) = &cluster.common_lb_config {
        common_config(common, &mut balancing)?;
    }
    Ok(balancing)
}

fn common_config(common: &CommonLbConfig, balancing: &mut Balancing) -> Result<(), DecodeError> {
    refuse!(
        common,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
    );
    if let Some(panic) = &common.healthy_panic_threshold {
        balancing.panic = percent("healthy_panic_threshold", panic.value)?.round() as u32;
    }
    match common.locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => balancing.by_locality = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            return Err(DecodeError::new("zone_aware_lb_config is not understood"));
        }
    }
    Ok(())
}

fn percent(what: &str, value: f64) -> Result<f64, DecodeError> {
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(DecodeError::new(format!("{what} is no percentage"))) }
}

fn slow_start(config: &SlowStartConfig) -> Result<Option<SlowStart>, DecodeError> {
    let Some(window) = limit("slow_start_window", config.slow_start_window.as_ref())? else { return Ok(None) };
    let least = config.min_weight_percent.as_ref().map_or(10.0, |percent| percent.value);
    let aggression = config.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value);
    if !(aggression.is_finite() && aggression >= 0.1) {
        return Err(DecodeError::new("aggression of the slow start is below 0.1"));
    }
    let least = percent("min_weight_percent", least)?.max(1.0) / 100.0;
    Ok(Some(SlowStart { window, least: least as f32, aggression: aggression as f32 }))
}

fn breakers(breakers: &CircuitBreakers) -> Result<(Thresholds, Allowance), DecodeError> {
    refuse!(breakers, per_host_thresholds);
    let mut of_default = None;
    for thresholds in &breakers.thresholds {
        refuse!(thresholds, max_connection_pools);
        match RoutingPriority::try_from(thresholds.priority) {
            Ok(RoutingPriority::Default) if of_default.is_none() => of_default = Some(thresholds),
            Ok(RoutingPriority::High) => {} // no route has that priority
            _ => return Err(DecodeError::new("thresholds of one priority come twice, or of an unknown one")),
        }
    }
    let Some(Envoys { max_connections, max_pending_requests, max_requests, max_retries, retry_budget, .. }) =
        of_default
    else {
        return Ok(Default::default());
    };
    let thresholds = Thresholds {
        connections: value(max_connections.as_ref()),
        pending: value(max_pending_requests.as_ref()),
        requests: value(max_requests.as_ref()),
        retries: value(max_retries.as_ref()),
    };
    Ok((thresholds, retry_budget.as_ref().map(allowance).transpose()?.unwrap_or_default()))
}

fn allowance(budget: &RetryBudget) -> Result<Allowance, DecodeError> {
    refuse!(budget, budget_interval);
    let share = percent("budget_percent", budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value))?;
    let at_once = value(budget.min_retry_concurrency.as_ref()).unwrap_or(3);
    Ok(Allowance { per_thousand: (share * 10.0).round() as u32, at_once })
}

fn outlier(detection: &OutlierDetection) -> Result<Outlier, DecodeError> {
    refuse!(
        detection,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        max_ejection_time_jitter,
        monitors,
        detect_degraded_hosts,
    );
    let time = |what, time: Option<&_>, default: u64| {
        Ok::<_, DecodeError>(limit(what, time)?.unwrap_or(Duration::from_secs(default)))
    };
    // In percent of the cases; all or none is what is understood.
    let enforced = |what: &str, percent: Option<&UInt32Value>| match value(percent) {
        None | Some(100) => Ok(true),
        Some(0) => Ok(false),
        Some(_) => Err(DecodeError::new(format!("{what} is understood as 0 or 100"))),
    };
    let fives = enforced("enforcing_consecutive_5xx", detection.enforcing_consecutive_5xx.as_ref())?;
    let gateway =
        enforced("enforcing_consecutive_gateway_failure", detection.enforcing_consecutive_gateway_failure.as_ref())?;
    let local = enforced(
        "enforcing_consecutive_local_origin_failure",
        detection.enforcing_consecutive_local_origin_failure.as_ref(),
    )?;
    let rate = enforced("enforcing_success_rate", detection.enforcing_success_rate.as_ref())?;
    enforced("enforcing_local_origin_success_rate", detection.enforcing_local_origin_success_rate.as_ref())?;
    // 0 in a row is what others write for "not at all".
    let in_a_row = |count: Option<u32>| count.filter(|count| *count > 0);
    Ok(Outlier {
        consecutive_5xx: in_a_row(Some(value(detection.consecutive_5xx.as_ref()).unwrap_or(5))).filter(|_| fives),
        gateway: in_a_row(value(detection.consecutive_gateway_failure.as_ref())).filter(|_| gateway),
        local: in_a_row(Some(value(detection.consecutive_local_origin_failure.as_ref()).unwrap_or(5)))
            .filter(|_| local),
        split: detection.split_external_local_origin_errors,
        interval: time("interval", detection.interval.as_ref(), 10)?,
        base: time("base_ejection_time", detection.base_ejection_time.as_ref(), 30)?,
        longest: time("max_ejection_time", detection.max_ejection_time.as_ref(), 300)?,
        share: value(detection.max_ejection_percent.as_ref()).unwrap_or(10).min(100),
        success_rate: rate.then(|| SuccessRate {
            hosts: value(detection.success_rate_minimum_hosts.as_ref()).unwrap_or(5),
            requests: value(detection.success_rate_request_volume.as_ref()).unwrap_or(100),
            factor: value(detection.success_rate_stdev_factor.as_ref()).unwrap_or(1900),
        }),
    })
}

/// Shortest time between two checks of an endpoint, and longest for one.
const CHECKS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

fn check(check: &HealthCheck) -> Result<Check, DecodeError> {
    refuse!(
        check,
        alt_port,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        tls_options,
        transport_socket_match_criteria,
    );
    let time = |what: &str, time: Option<&_>| {
        let time = optional(what, time)?.ok_or_else(|| DecodeError::new(format!("a health check without {what}")))?;
        Ok::<_, DecodeError>(time.clamp(*CHECKS.start(), *CHECKS.end()))
    };
    let probe = match &check.health_checker {
        Some(HealthChecker::TcpHealthCheck(tcp)) => {
            refuse!(tcp, send, receive, proxy_protocol_config);
            Probe::Tcp
        }
        Some(HealthChecker::HttpHealthCheck(http)) => {
            refuse!(
                http,
                send,
                receive,
                request_headers_to_add,
                request_headers_to_remove,
                retriable_statuses,
                codec_client_type,
                service_name_matcher,
                method,
            );
            let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
            if !http.path.starts_with('/') || !visible(&http.path) || !visible(&http.host) {
                return Err(DecodeError::new("a health check whose path or host is none"));
            }
            // The end of the range is not part of it.
            let range = |range: &weir_xds::envoy::kinds::Int64Range| {
                let (start, end) = (u16::try_from(range.start).ok()?, u16::try_from(range.end).ok()?);
                (start < end).then(|| start..=end.saturating_sub(1))
            };
            let expected = http.expected_statuses.iter().map(range).collect::<Option<Box<[_]>>>();
            Probe::Http {
                path: http.path.as_str().into(),
                host: Some(http.host.as_str()).filter(|host| !host.is_empty()).map(Into::into),
                expected: Expected(expected.ok_or_else(|| DecodeError::new("expected_statuses has no range"))?),
            }
        }
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            refuse!(grpc, initial_metadata, authority);
            Probe::Grpc { service: grpc.service_name.as_str().into() }
        }
        _ => return Err(DecodeError::new("this kind of health check is not understood")),
    };
    Ok(Check {
        probe,
        timeout: time("timeout", check.timeout.as_ref())?,
        interval: time("interval", check.interval.as_ref())?,
        unhealthy: value(check.unhealthy_threshold.as_ref()).unwrap_or(3),
        healthy: value(check.healthy_threshold.as_ref()).unwrap_or(2),
    })
}
