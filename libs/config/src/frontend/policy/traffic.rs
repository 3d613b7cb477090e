//! Weir's TrafficPolicy.

use std::{collections::BTreeMap, time::Duration};

use super::{ALL_MILLIONTHS, Read, Reader};
use crate::{
    gateway::{self, GRPC_ROUTE, HTTP_ROUTE},
    model::{
        Abort, AbortWith, CheckBy, Delay, HealthCheck, Name, Origin, Rate, RequestPolicy, RequestRules, RequestsOf,
        RetryBudget, ServicePolicy, UpstreamRules,
    },
    path::FieldPath,
    traffic::{self as api, CheckType},
};

const MAX_TARGETS: usize = 16;
const MAX_CHECKS: usize = 8;
const MAX_STATUSES: usize = 32;
/// Where nothing was said.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
const CHECK_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
const UNHEALTHY: u32 = 3;
const HEALTHY: u32 = 1;
const BUDGET_MILLIONTHS: u32 = 200_000;
const BUDGET_MIN: u32 = 3;
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// Reads a TrafficPolicy.
///
/// # Errors
/// Every problem, by field.
pub fn traffic_policy(object: &api::TrafficPolicy) -> Read {
    let mut reader = Reader::new(&object.metadata);
    let spec = &object.spec;
    let at = FieldPath::of("spec");
    let upstream = reader.upstream(spec, &at);
    let requests = reader.requests(spec, &at);
    let nothing = upstream == UpstreamRules::default() && requests == RequestRules::default();
    if nothing && reader.errors.is_empty() {
        reader.error(at.clone(), "says nothing: healthChecks, retryBudget, fault, rateLimit or limits");
    }
    let field = at.key("targetRefs");
    if spec.target_refs.is_empty() {
        reader.error(field.clone(), "is empty: name Services or routes of this namespace");
    }
    if spec.target_refs.len() > MAX_TARGETS {
        reader.error(field.clone(), format!("has more than {MAX_TARGETS} entries"));
    }
    let origin = Origin { kind: api::TRAFFIC_POLICY, name: reader.name.clone() };
    let (mut services, mut policies) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    for (i, target) in spec.target_refs.iter().enumerate().take(MAX_TARGETS) {
        let at = field.index(i);
        let Some(of) = reader.target(target, &at) else { continue };
        if !seen.insert(of.clone()) {
            reader.error(at.clone(), "is the same as an earlier one");
        }
        if let RequestsOf::Service(service) = &of {
            if upstream != UpstreamRules::default() {
                services.push(ServicePolicy {
                    origin: origin.clone(),
                    created: reader.created.clone(),
                    service: service.clone(),
                    all: upstream.clone(),
                    ports: BTreeMap::new(),
                });
            }
        } else if upstream != UpstreamRules::default() {
            reader.error(
                at.key("kind"),
                "is a route, and healthChecks and retryBudget are for Services: write a policy for each",
            );
        }
        if requests != RequestRules::default() {
            policies.push(RequestPolicy {
                origin: origin.clone(),
                created: reader.created.clone(),
                of,
                rules: requests.clone(),
            });
        }
    }
    reader.finish(api::TRAFFIC_POLICY, services, policies)
}

impl Reader {
    fn target(&mut self, target: &api::TargetRef, at: &FieldPath) -> Option<RequestsOf> {
        let name = Name::new(self.name.namespace.clone(), target.name.as_str());
        if target.name.is_empty() {
            self.error(at.key("name"), "is missing");
        }
        let routes = |kind| Origin { kind, name: name.clone() };
        let of = match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") if target.section_name.is_some() => {
                self.error(at.key("sectionName"), "names a rule of a route, and a Service has none: leave it out");
                return None;
            }
            ("" | "core", "Service") => return Some(RequestsOf::Service(name)),
            (gateway::GROUP, "HTTPRoute") => routes(HTTP_ROUTE),
            (gateway::GROUP, "GRPCRoute") => routes(GRPC_ROUTE),
            (group, kind) => {
                let message = format!(
                    "{kind:?} of group {group:?} is no target: Service of group \"\", HTTPRoute or GRPCRoute of {}",
                    gateway::GROUP
                );
                self.error(at.key("kind"), message);
                return None;
            }
        };
        Some(match &target.section_name {
            None => RequestsOf::Routes(of),
            Some(rule) => RequestsOf::Rule(of, rule.clone()),
        })
    }

    fn upstream(&mut self, spec: &api::TrafficPolicySpec, at: &FieldPath) -> UpstreamRules {
        let field = at.key("healthChecks");
        if spec.health_checks.len() > MAX_CHECKS {
            self.error(field.clone(), format!("has more than {MAX_CHECKS} entries"));
        }
        let checks = spec.health_checks.iter().enumerate().take(MAX_CHECKS);
        let checks = checks.map(|(i, check)| self.check(check, &field.index(i))).collect();
        let retry_budget = spec.retry_budget.as_ref().map(|budget| {
            let at = at.key("retryBudget");
            let min = self.number(budget.min_concurrency, 0..=u32::MAX, at.key("minConcurrency"));
            RetryBudget {
                millionths: self.percent(budget.percent, BUDGET_MILLIONTHS, at.key("percent")),
                min: min.unwrap_or(BUDGET_MIN),
            }
        });
        UpstreamRules { checks, retry_budget, ..UpstreamRules::default() }
    }

    fn check(&mut self, check: &api::HealthCheck, at: &FieldPath) -> HealthCheck {
        for (field, there, kind) in
            [("http", check.http.is_some(), CheckType::Http), ("grpc", check.grpc.is_some(), CheckType::Grpc)]
        {
            if there && check.kind != kind {
                self.error(at.key(field), "does not belong to this type");
            }
        }
        let by = match check.kind {
            CheckType::Tcp => CheckBy::Tcp,
            CheckType::Grpc => {
                CheckBy::Grpc(check.grpc.as_ref().and_then(|grpc| grpc.service.clone()).unwrap_or_default())
            }
            CheckType::Http => {
                let at = at.key("http");
                let http = check.http.clone().unwrap_or_default();
                let path = http.path.unwrap_or_else(|| "/".into());
                if !path.starts_with('/') || path.len() > 1024 || path.contains(|c: char| !c.is_ascii_graphic()) {
                    self.error(
                        at.key("path"),
                        format!("{path:?} is no path: it starts with / and has at most 1024 characters"),
                    );
                }
                if http
                    .host
                    .as_ref()
                    .is_some_and(|host| host.is_empty() || host.contains(|c: char| !c.is_ascii_graphic()))
                {
                    self.error(at.key("host"), "is no host");
                }
                if http.statuses.len() > MAX_STATUSES {
                    self.error(at.key("statuses"), format!("has more than {MAX_STATUSES} entries"));
                }
                let statuses = http.statuses.iter().enumerate().take(MAX_STATUSES);
                let statuses = statuses.filter_map(|(i, status)| {
                    let status = self.number(Some(*status), 100..=599, at.key("statuses").index(i))?;
                    u16::try_from(status).ok()
                });
                CheckBy::Http { path, host: http.host, statuses: statuses.collect() }
            }
        };
        let interval = self.duration(check.interval.as_deref(), at.key("interval")).unwrap_or(CHECK_INTERVAL);
        if !CHECK_INTERVALS.contains(&interval) {
            self.error(at.key("interval"), "is not from 100ms to 1h: each proxy asks each endpoint so often");
        }
        HealthCheck {
            by,
            interval,
            timeout: self.duration(check.timeout.as_deref(), at.key("timeout")).unwrap_or(CHECK_TIMEOUT),
            unhealthy: self
                .number(check.unhealthy_threshold, 1..=1000, at.key("unhealthyThreshold"))
                .unwrap_or(UNHEALTHY),
            healthy: self.number(check.healthy_threshold, 1..=1000, at.key("healthyThreshold")).unwrap_or(HEALTHY),
        }
    }

    fn requests(&mut self, spec: &api::TrafficPolicySpec, at: &FieldPath) -> RequestRules {
        let mut rules = RequestRules::default();
        if let Some(fault) = &spec.fault {
            let at = at.key("fault");
            if fault.delay.is_none() && fault.abort.is_none() {
                self.error(at.clone(), "is empty: delay, abort or both");
            }
            rules.delay = fault.delay.as_ref().and_then(|delay| {
                let at = at.key("delay");
                let time = self.duration(Some(&delay.fixed_delay), at.key("fixedDelay"));
                let millionths = self.percent(delay.percent, ALL_MILLIONTHS, at.key("percent"));
                Some(Delay { time: time?, millionths })
            });
            rules.abort = fault.abort.as_ref().and_then(|abort| self.abort(abort, &at.key("abort")));
        }
        if let Some(limit) = &spec.rate_limit {
            let at = at.key("rateLimit");
            let requests = self.number(Some(limit.requests), 1..=1_000_000_000, at.key("requests"));
            let per = self.duration(limit.interval.as_deref(), at.key("interval")).unwrap_or(RATE_INTERVAL);
            if per < Duration::from_millis(50) {
                self.error(at.key("interval"), "is shorter than 50ms, which is the grain of such a limit");
            }
            let burst = self.number(limit.burst, 1..=1_000_000_000, at.key("burst"));
            rules.rate = requests.map(|requests| Rate { requests, per, burst: burst.unwrap_or(requests) });
            if let Some(rate) = rules.rate
                && rate.burst < rate.requests
            {
                self.error(at.key("burst"), "is less than requests, which are added at once");
            }
        }
        if let Some(limits) = &spec.limits {
            let at = at.key("limits").key("requestBodyBytes");
            if limits.request_body_bytes.is_none() {
                self.error(at.clone(), "is missing");
            }
            rules.max_body = self.number(limits.request_body_bytes, 1..=u32::MAX, at);
        }
        rules
    }

    fn abort(&mut self, abort: &api::Abort, at: &FieldPath) -> Option<Abort> {
        let millionths = self.percent(abort.percent, ALL_MILLIONTHS, at.key("percent"));
        let with = match (abort.http_status, abort.grpc_status) {
            (Some(status), None) => {
                let status = self.number(Some(status), 200..=599, at.key("httpStatus"))?;
                AbortWith::Http(u16::try_from(status).ok()?)
            }
            (None, Some(status)) => {
                let status = self.number(Some(status), 1..=16, at.key("grpcStatus"))?;
                AbortWith::Grpc(u8::try_from(status).ok()?)
            }
            _ => {
                self.error(at.clone(), "needs exactly one of httpStatus and grpcStatus");
                return None;
            }
        };
        Some(Abort { with, millionths })
    }
}
