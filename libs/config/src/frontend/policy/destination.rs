//! Istio's DestinationRule.

use std::collections::BTreeMap;

use super::{Read, Reader};
use crate::{
    istio::{self as api, Simple},
    model::{Balance, HashKey, HashTable, Name, Origin, Outliers, Places, ServicePolicy, UpstreamRules, WarmUp},
    path::FieldPath,
};

const MAX_PORTS: usize = 4096;
const MAX_PLACES: usize = 128;
/// Most places on a ring or in a table that a proxy keeps.
const MAX_TABLE: i64 = 1 << 20;
const ANY: std::ops::RangeInclusive<u32> = 1..=u32::MAX;

/// Reads a DestinationRule.
///
/// # Errors
/// Every problem, by field.
pub fn destination_rule(object: &api::DestinationRule) -> Read {
    let mut reader = Reader::new(&object.metadata);
    let spec = FieldPath::of("spec");
    let service = reader.host(&object.spec.host, &spec.key("host"));
    let at = spec.key("trafficPolicy");
    let Some(policy) = &object.spec.traffic_policy else {
        reader.error(at, "is missing: without it nothing is said of the host");
        return reader.finish(api::DESTINATION_RULE, Vec::new(), Vec::new());
    };
    let parts = (&policy.load_balancer, &policy.connection_pool, &policy.outlier_detection);
    let all = reader.rules(parts, &at);
    let at = at.key("portLevelSettings");
    if policy.port_level_settings.len() > MAX_PORTS {
        reader.error(at.clone(), format!("has more than {MAX_PORTS} entries"));
    }
    let mut ports = BTreeMap::new();
    for (i, port) in policy.port_level_settings.iter().enumerate().take(MAX_PORTS) {
        let at = at.index(i);
        let parts = (&port.load_balancer, &port.connection_pool, &port.outlier_detection);
        let rules = reader.rules(parts, &at);
        let field = at.key("port").key("number");
        match u16::try_from(port.port.number).ok().filter(|number| *number > 0) {
            None => reader.error(field, format!("{} is not a port (1 to 65535)", port.port.number)),
            Some(number) if ports.insert(number, rules).is_some() => reader.error(field, "comes twice"),
            Some(_) => {}
        }
    }
    let policy = service.map(|service| ServicePolicy {
        origin: Origin { kind: api::DESTINATION_RULE, name: reader.name.clone() },
        created: reader.created.clone(),
        service,
        all,
        ports,
    });
    reader.finish(api::DESTINATION_RULE, policy.into_iter().collect(), Vec::new())
}

type Parts<'a> = (&'a Option<api::LoadBalancer>, &'a Option<api::ConnectionPool>, &'a Option<api::OutlierDetection>);

impl Reader {
    /// `NAME` of the rule's own namespace, or `NAME.NAMESPACE.svc` with or without the cluster's domain.
    fn host(&mut self, host: &str, at: &FieldPath) -> Option<Name> {
        let parts: Vec<&str> = host.split('.').collect();
        let label = |part: &&str| {
            !part.is_empty() && part.len() <= 63 && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        let name = match parts.as_slice() {
            [name] => Some(Name::new(self.name.namespace.clone(), *name)),
            [name, namespace, "svc", ..] => Some(Name::new(*namespace, *name)),
            _ => None,
        };
        let name = name.filter(|_| parts.iter().all(label));
        if name.is_none() {
            self.error(at.clone(), format!("{host:?} is no Service: write NAME, or NAME.NAMESPACE.svc.cluster.local"));
        }
        name
    }

    fn rules(&mut self, (balancer, pool, outliers): Parts<'_>, at: &FieldPath) -> UpstreamRules {
        let mut rules = UpstreamRules::default();
        if let Some(balancer) = balancer {
            self.balancer(balancer, &at.key("loadBalancer"), &mut rules);
        }
        if let Some(pool) = pool {
            self.pool(pool, &at.key("connectionPool"), &mut rules);
        }
        if let Some(outliers) = outliers {
            self.outliers(outliers, &at.key("outlierDetection"), &mut rules);
        }
        rules
    }

    fn balancer(&mut self, balancer: &api::LoadBalancer, at: &FieldPath, rules: &mut UpstreamRules) {
        if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
            self.error(at.clone(), "has both simple and consistentHash: leave one of them out");
        }
        rules.balance = match balancer.simple {
            None | Some(Simple::Unspecified) => None,
            Some(Simple::LeastRequest | Simple::LeastConn) => Some(Balance::Least),
            Some(Simple::RoundRobin) => Some(Balance::RoundRobin),
            Some(Simple::Random) => Some(Balance::Random),
            Some(Simple::Passthrough) => {
                self.error(at.key("simple"), "PASSTHROUGH is not supported: call the pod's own address");
                None
            }
        };
        if let Some(hash) = &balancer.consistent_hash {
            rules.balance = self.hash(hash, &at.key("consistentHash"));
        }
        if balancer.warmup.is_some() && balancer.warmup_duration_secs.is_some() {
            self.error(at.key("warmupDurationSecs"), "is beside warmup, which takes its place: leave it out");
        }
        if let Some(warmup) = &balancer.warmup {
            rules.warm_up = self.warm_up(warmup, &at.key("warmup"));
        } else if let Some(time) = &balancer.warmup_duration_secs {
            let warmup = api::Warmup { duration: Some(time.clone()), ..Default::default() };
            rules.warm_up = self.warm_up(&warmup, &at.key("warmupDurationSecs"));
        }
        if rules.warm_up.is_some() && !matches!(rules.balance, None | Some(Balance::Least | Balance::RoundRobin)) {
            self.error(at.clone(), "has a warm-up, which is for LEAST_REQUEST and ROUND_ROBIN");
        }
        if let Some(places) = &balancer.locality_lb_setting {
            rules.places = self.places(places, &at.key("localityLbSetting"));
        }
    }

    fn hash(&mut self, hash: &api::ConsistentHash, at: &FieldPath) -> Option<Balance> {
        let mut keys = Vec::new();
        if let Some(name) = &hash.http_header_name {
            self.token(name, at.key("httpHeaderName"));
            keys.push(HashKey::Header(name.to_ascii_lowercase()));
        }
        if let Some(cookie) = &hash.http_cookie {
            let at = at.key("httpCookie");
            self.token(&cookie.name, at.key("name"));
            let path = cookie.path.clone().unwrap_or_default();
            if !path.is_empty()
                && (!path.starts_with('/') || path.contains(|c: char| !c.is_ascii_graphic() || c == ';'))
            {
                self.error(at.key("path"), format!("{path:?} is no path"));
            }
            // Istio takes 0s for a cookie until the browser ends.
            let ttl = match cookie.ttl.as_deref() {
                None => None,
                Some(text) => match super::duration(text).filter(|ttl| *ttl <= super::MAX_DURATION) {
                    None => {
                        self.error(at.key("ttl"), format!("{text:?} is not a duration such as 0s or 1h"));
                        None
                    }
                    ttl => ttl,
                },
            };
            keys.push(HashKey::Cookie { name: cookie.name.clone(), path, ttl });
        }
        if hash.use_source_ip == Some(true) {
            keys.push(HashKey::SourceIp);
        }
        if let Some(name) = &hash.http_query_parameter_name {
            if name.is_empty() {
                self.error(at.key("httpQueryParameterName"), "is empty");
            }
            keys.push(HashKey::Query(name.clone()));
        }
        let ring = hash.ring_hash.as_ref().map(|ring| ("ringHash.minimumRingSize", ring.minimum_ring_size));
        let ring = ring.or(hash.minimum_ring_size.map(|size| ("minimumRingSize", Some(size))));
        if ring.is_some() && hash.maglev.is_some() {
            self.error(at.clone(), "has both a ring and maglev: leave one of them out");
        }
        let table = match (&hash.maglev, ring) {
            (Some(maglev), _) => {
                let size = self.size(maglev.table_size, MAX_TABLE, at.key("maglev").key("tableSize"));
                if size.is_some_and(|size| !is_prime(size)) {
                    self.error(at.key("maglev").key("tableSize"), "is no prime number");
                }
                HashTable::Maglev(size)
            }
            (None, Some((field, size))) => {
                let field = field.split('.').fold(at.clone(), |at, key| at.key(key));
                HashTable::Ring(self.size(size, MAX_TABLE, field))
            }
            (None, None) => HashTable::Ring(None),
        };
        if keys.len() != 1 {
            let message = "needs exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
            self.error(at.clone(), message);
        }
        Some(Balance::Hash { key: keys.pop()?, table })
    }

    fn size(&mut self, size: Option<i64>, max: i64, at: FieldPath) -> Option<u64> {
        let size = size?;
        if !(1..=max).contains(&size) {
            self.error(at, format!("{size} is not a size from 1 to {max}"));
        }
        u64::try_from(size).ok()
    }

    fn token(&mut self, name: &str, at: FieldPath) {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
            self.error(at, "must be 1 to 256 letters, digits or !#$%&'*+-.^_`|~");
        }
    }

    fn warm_up(&mut self, warmup: &api::Warmup, at: &FieldPath) -> Option<WarmUp> {
        let Some(time) = self.duration(warmup.duration.as_deref(), at.key("duration")) else {
            if warmup.duration.is_none() {
                self.error(at.key("duration"), "is missing");
            }
            return None;
        };
        let percent = warmup.minimum_percent.unwrap_or(10.0);
        let aggression = warmup.aggression.unwrap_or(1.0);
        if !(1.0..=100.0).contains(&percent) {
            self.error(at.key("minimumPercent"), format!("{percent} is not a share (1 to 100)"));
            return None;
        }
        if !(1.0..=1000.0).contains(&aggression) {
            self.error(at.key("aggression"), format!("{aggression} is not from 1 to 1000"));
            return None;
        }
        // Both are in bounds of which nothing is cut off.
        Some(WarmUp { time, from_percent: percent as u32, aggression_thousandths: (aggression * 1000.0) as u32 })
    }

    fn places(&mut self, setting: &api::LocalitySetting, at: &FieldPath) -> Option<Places> {
        if setting.enabled == Some(false) {
            return Some(Places::Anywhere);
        }
        if !setting.distribute.is_empty() && !setting.failover.is_empty() {
            self.error(at.clone(), "has both distribute and failover: leave one of them out");
        }
        if setting.distribute.len().max(setting.failover.len()) > MAX_PLACES {
            self.error(at.clone(), format!("has more than {MAX_PLACES} entries"));
            return None;
        }
        if setting.distribute.is_empty() {
            let mut regions = BTreeMap::new();
            for (i, failover) in setting.failover.iter().enumerate() {
                let at = at.key("failover").index(i);
                if failover.from.is_empty() || failover.to.is_empty() || failover.from == failover.to {
                    self.error(at.clone(), "needs two different regions, from and to");
                }
                if regions.insert(failover.from.clone(), failover.to.clone()).is_some() {
                    self.error(at.key("from"), "comes twice");
                }
            }
            return Some(Places::Near(regions));
        }
        let mut spread = BTreeMap::new();
        for (i, distribute) in setting.distribute.iter().enumerate() {
            let at = at.key("distribute").index(i);
            self.place(&distribute.from, at.key("from"));
            let mut shares = BTreeMap::new();
            for (place, percent) in &distribute.to {
                let at = at.key("to").key(place.as_str());
                self.place(place, at.clone());
                shares.extend(self.number(Some(*percent), 1..=100, at).map(|percent| (place.clone(), percent)));
            }
            if shares.values().sum::<u32>() != 100 {
                self.error(at.key("to"), "does not make up 100 percent");
            }
            if spread.insert(distribute.from.clone(), shares).is_some() {
                self.error(at.key("from"), "comes twice");
            }
        }
        Some(Places::Spread(spread))
    }

    /// `region/zone`, `region/*`, `region` or `*`.
    fn place(&mut self, place: &str, at: FieldPath) {
        let parts: Vec<&str> = place.split('/').collect();
        let good = match parts.as_slice() {
            ["*"] => true,
            [region] => !region.is_empty() && !region.contains('*'),
            [region, zone] => !region.is_empty() && !region.contains('*') && !zone.is_empty(),
            _ => false,
        };
        if !good || parts.get(1).is_some_and(|zone| zone.contains('*') && *zone != "*") {
            self.error(at, format!("{place:?} is no place: REGION/ZONE, REGION/*, REGION or *"));
        }
    }

    fn pool(&mut self, pool: &api::ConnectionPool, at: &FieldPath, rules: &mut UpstreamRules) {
        if let Some(tcp) = &pool.tcp {
            let at = at.key("tcp");
            rules.max_connections = self.number(tcp.max_connections, ANY, at.key("maxConnections"));
            rules.connect_timeout = self.duration(tcp.connect_timeout.as_deref(), at.key("connectTimeout"));
        }
        if let Some(http) = &pool.http {
            let at = at.key("http");
            rules.max_pending = self.number(http.http1_max_pending_requests, ANY, at.key("http1MaxPendingRequests"));
            rules.max_requests = self.number(http.http2_max_requests, ANY, at.key("http2MaxRequests"));
            rules.max_retries = self.number(http.max_retries, 0..=u32::MAX, at.key("maxRetries"));
            // Zero is "no limit" there, as it is without the field.
            let each = self.number(http.max_requests_per_connection, 0..=u32::MAX, at.key("maxRequestsPerConnection"));
            rules.requests_per_connection = each.filter(|each| *each > 0);
            rules.idle_timeout = self.duration(http.idle_timeout.as_deref(), at.key("idleTimeout"));
        }
    }

    fn outliers(&mut self, detection: &api::OutlierDetection, at: &FieldPath, rules: &mut UpstreamRules) {
        let all = 0..=u32::MAX;
        rules.outliers = Some(Outliers {
            consecutive_5xx: self.number(detection.consecutive_5xx_errors, all.clone(), at.key("consecutive5xxErrors")),
            consecutive_gateway: self.number(
                detection.consecutive_gateway_errors,
                all.clone(),
                at.key("consecutiveGatewayErrors"),
            ),
            consecutive_local: self.number(
                detection.consecutive_local_origin_failures,
                all,
                at.key("consecutiveLocalOriginFailures"),
            ),
            split_local: detection.split_external_local_origin_errors.unwrap_or_default(),
            interval: self.duration(detection.interval.as_deref(), at.key("interval")),
            ejection: self.duration(detection.base_ejection_time.as_deref(), at.key("baseEjectionTime")),
            max_percent: self.number(detection.max_ejection_percent, 0..=100, at.key("maxEjectionPercent")),
        });
        if detection.consecutive_local_origin_failures.is_some()
            && detection.split_external_local_origin_errors != Some(true)
        {
            let message = "counts only with splitExternalLocalOriginErrors: true";
            self.error(at.key("consecutiveLocalOriginFailures"), message);
        }
        rules.min_healthy_percent = self.number(detection.min_health_percent, 0..=100, at.key("minHealthPercent"));
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|n| n * n <= number).all(|n| !number.is_multiple_of(n))
}
