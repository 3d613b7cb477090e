//! What is in force, as `/config_dump` shows it: names, addresses, numbers and identities; no key and no token is ever in here.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Answer, Entry, Inbound, RouteCell};
use crate::{
    policy::{Access, Rule},
    route::{Action, Policy, Route},
    upstream::{Backend, Cluster, ClusterInfo, Endpoint, Method, Outlier, Probe},
};

/// A destination that workers have asked for.
pub(super) fn destination(entry: &Entry) -> Value {
    match entry.answer().as_ref() {
        Answer::Waiting => json!({"address": entry.address, "state": "waiting"}),
        Answer::Unknown => json!({"address": entry.address, "state": "unknown"}),
        Answer::Known(known) => json!({
            "address": entry.address,
            "state": "known",
            "protocol": known.protocol.as_str(),
            "routes": known.routes.as_ref().map(|cell| &*cell.name),
            "clusters": known.streams.as_ref().map(|streams| streams.clusters()),
        }),
    }
}

/// The pod's own ports, and what holds for all others.
pub(super) fn inbound(inbound: &Inbound) -> Vec<Value> {
    let mut ports: Vec<_> = inbound.ports.iter().collect();
    ports.sort_by_key(|(port, _)| **port);
    let ports = ports.into_iter().map(|(number, port)| {
        json!({"port": number, "protocol": port.protocol.as_str(), "service": port.service.host(),
            "access": access(&port.access)})
    });
    ports.chain([json!({"port": "others", "access": access(&inbound.others)})]).collect()
}

fn access(access: &Access) -> Value {
    let names = |rules: &[Rule]| -> Vec<String> {
        rules.iter().map(|rule| format!("{}/{}", rule.policy, rule.index)).collect()
    };
    json!({
        "plaintext_refused_by": access.strict.as_deref(),
        "deny": names(&access.rules.deny),
        "allow": access.rules.allow.as_deref().map(names),
    })
}

/// A route table; its rules in the order in which they are tried.
pub(super) fn routes(cell: &RouteCell, clusters: &[String], waits: bool) -> Value {
    let rules: Vec<Value> = cell.table().map(|table| table.routes().iter().map(rule).collect()).unwrap_or_default();
    json!({"name": &*cell.name, "rules": rules, "clusters": clusters, "waits_for_clusters": waits})
}

fn rule(route: &Route<Backend>) -> Value {
    let action = match route.action() {
        Action::Forward(split) => {
            let targets = split.targets().iter();
            let to: Vec<Value> =
                targets.map(|target| json!({"cluster": target.name(), "weight": target.weight()})).collect();
            json!({ "forward": to })
        }
        Action::Respond(status) => json!({ "respond": status }),
        Action::Redirect(redirect) => json!({ "redirect": redirect.status }),
    };
    json!({
        "name": route.name(),
        "object": route.object(),
        "matches": route.matches(),
        "action": action,
        "asks": route.policy().map(asks).unwrap_or_default(),
    })
}

/// What a rule asks besides, in a few words each.
fn asks(policy: &Policy<Backend>) -> Vec<String> {
    let Policy { timeout, idle, retry, path, host, key, session, mirrors, cors, injection, rate, max_body } = policy;
    let time = |what: &str, time: &Option<Duration>| time.map(|time| format!("{what} {time:?}"));
    let is = |what: &str, there: bool| there.then(|| what.to_owned());
    let mirror = mirrors.iter().filter_map(|mirror| Some(format!("mirror {}", mirror.cluster.cluster.as_ref()?.name)));
    [
        time("timeout", timeout),
        time("idle timeout", idle),
        retry.as_ref().and_then(|retry| time("attempt timeout", &retry.per_try)),
        retry.as_ref().map(|retry| format!("retries {}", retry.retries)),
        is("path rewrite", path.is_some()),
        host.as_ref().map(|host| format!("host {}", String::from_utf8_lossy(host))),
        is("hash key", !key.is_empty()),
        is("session", session.is_some()),
        is("CORS", cors.is_some()),
        is("delay fault", injection.is_some_and(|injection| injection.delay.is_some())),
        is("abort fault", injection.is_some_and(|injection| injection.abort.is_some())),
        is("rate limit", rate.is_some()),
        max_body.map(|bytes| format!("body limit {bytes}")),
    ]
    .into_iter()
    .flatten()
    .chain(mirror)
    .collect()
}

/// A cluster: how its endpoints are called, what is counted for its limits, and the endpoints.
pub(super) fn cluster(cluster: &Cluster) -> Value {
    let now = Instant::now();
    let endpoints = cluster.endpoints();
    let endpoints = endpoints.as_ref().map(|set| set.endpoints.iter().map(|one| endpoint(one, now)).collect());
    let endpoints: Vec<Value> = endpoints.unwrap_or_default();
    let info = cluster.info();
    let ClusterInfo { service, connect_timeout, version, balancing, breaker, allowance, outlier, checks, keeping } =
        &**info;
    let limits: Vec<Value> =
        breaker.usage().map(|(name, most, now)| json!({"name": name, "most": most, "now": now})).collect();
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| json!({"asks": probe(&check.probe), "interval_ms": millis(check.interval), "timeout_ms": millis(check.timeout)}))
        .collect();
    json!({
        "name": &*cluster.name,
        "service": service.as_ref().map(|service| service.host()),
        "connect_timeout_ms": millis(*connect_timeout),
        "http_version": version.map(|version| format!("{version:?}")),
        "balancing": method(balancing.method),
        "slow_start_ms": balancing.slow_start.map(|slow| millis(slow.window)),
        "by_locality": balancing.by_locality,
        "panic_percent": balancing.panic,
        "limits": limits,
        "retries_per_thousand": allowance.per_thousand,
        "outlier_detection": outlier.as_ref().map(detection),
        "health_checks": checks,
        "idle_timeout_ms": keeping.idle.map(millis),
        "requests_per_connection": keeping.requests,
        "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Endpoint, now: Instant) -> Value {
    json!({
        "address": endpoint.address,
        "identity": endpoint.mesh.as_ref().map(ToString::to_string),
        "pod": endpoint.workload.pod,
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "locality": endpoint.locality.name,
        "locality_weight": endpoint.locality.weight,
        "ejected": endpoint.standing.is_ejected(),
        "well": endpoint.healthy && endpoint.standing.is_well(),
        "avoided": endpoint.state.is_avoided(now),
        "in_flight": endpoint.state.in_flight(),
    })
}

fn method(method: Method) -> &'static str {
    match method {
        Method::LeastRequest => "least_request",
        Method::RoundRobin => "round_robin",
        Method::Random => "random",
        Method::Ring { .. } => "ring_hash",
        Method::Maglev(_) => "maglev",
    }
}

fn probe(probe: &Probe) -> String {
    match probe {
        Probe::Tcp => "tcp".into(),
        Probe::Http { path, .. } => format!("http {path}"),
        Probe::Grpc { service } => format!("grpc {service}").trim_end().to_owned(),
    }
}

fn detection(outlier: &Outlier) -> Value {
    json!({
        "consecutive_5xx": outlier.consecutive_5xx,
        "consecutive_gateway_failure": outlier.gateway,
        "consecutive_local_origin_failure": outlier.local,
        "interval_ms": millis(outlier.interval),
        "base_ejection_time_ms": millis(outlier.base),
        "max_ejection_percent": outlier.share,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
