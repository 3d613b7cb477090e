//! Weir's own metrics: a small, fixed set. Label values are words of the program, so the number of series is bounded by it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use super::labels::label;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes both ways.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Metrics of one name, by `N` labels.
#[derive(Debug)]
pub struct Family<T, const N: usize> {
    names: [&'static str; N],
    members: RwLock<Vec<([&'static str; N], Arc<T>)>>,
}

/// Counters of one name.
pub type CounterVec<const N: usize> = Family<Counter, N>;
/// Gauges of one name.
pub type GaugeVec<const N: usize> = Family<Gauge, N>;

impl<T: Default, const N: usize> Family<T, N> {
    fn new(names: [&'static str; N]) -> Self {
        Self { names, members: RwLock::default() }
    }

    /// The member with these label values, in the order of the names. Keep it where it is used often.
    pub fn with(&self, values: [&'static str; N]) -> Arc<T> {
        let find = |members: &[([&'static str; N], Arc<T>)]| {
            members.iter().find(|(known, _)| *known == values).map(|(_, member)| member.clone())
        };
        let members = self.members.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(member) = find(&members) {
            return member;
        }
        drop(members);
        let mut members = self.members.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(member) = find(&members) {
            return member;
        }
        let member = Arc::new(T::default());
        members.push((values, member.clone()));
        member
    }

    pub(super) fn each(&self, mut visit: impl FnMut(&str, &T)) {
        let members = self.members.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (values, member) in members.iter() {
            let mut labels = String::new();
            for (name, value) in self.names.iter().zip(values) {
                label(&mut labels, name, value);
            }
            labels.pop();
            visit(&labels, member);
        }
    }
}

impl<const N: usize> CounterVec<N> {
    /// Adds one to the member with these label values.
    pub fn inc(&self, values: [&'static str; N]) {
        self.with(values).inc();
    }
}

impl<const N: usize> GaugeVec<N> {
    /// Sets the member with these label values.
    pub fn set(&self, values: [&'static str; N], value: i64) {
        self.with(values).set(value);
    }
}

/// What rules of users' objects did, by object and rule. Their names come from outside, so that there is a bound.
#[derive(Debug)]
pub struct RuleCounters {
    names: [&'static str; 3],
    counters: RwLock<BTreeMap<[String; 3], u64>>,
}

/// Most objects and rules that are counted apart; a pod has a handful.
const MAX_RULES: usize = 256;

impl RuleCounters {
    fn new(names: [&'static str; 3]) -> Self {
        Self { names, counters: RwLock::default() }
    }

    /// Adds one for an object, its rule and the reason.
    pub fn inc(&self, object: String, rule: &str, reason: &str) {
        let mut counters = self.counters.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut key = [object, rule.to_owned(), reason.to_owned()];
        if counters.len() >= MAX_RULES && !counters.contains_key(&key) {
            key = [super::labels::OTHER.to_owned(), String::new(), reason.to_owned()];
        }
        let counter = counters.entry(key).or_default();
        *counter = counter.saturating_add(1);
    }

    fn each(&self, mut visit: impl FnMut(&str, u64)) {
        let counters = self.counters.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (values, count) in counters.iter() {
            let mut labels = String::new();
            for (name, value) in self.names.iter().zip(values) {
                label(&mut labels, name, value);
            }
            labels.pop();
            visit(&labels, *count);
        }
    }
}

macro_rules! own_metrics {
    ($($field:ident: $kind:ident$(<$n:literal>)?, $name:literal $([$($label:literal),*])?, $help:literal;)*) => {
        /// Weir's own metrics, by field.
        #[derive(Debug)]
        pub struct ProxyMetrics {
            $(#[doc = concat!("`", $name, "`: ", $help)] pub $field: Arc<$kind$(<$n>)?>,)*
        }

        impl Default for ProxyMetrics {
            fn default() -> Self {
                Self { $($field: Arc::new(own_metrics!(@new $kind $([$($label),*])?)),)* }
            }
        }

        impl ProxyMetrics {
            pub(super) fn encode(&self, text: &mut String) {
                $(own_metrics!(@encode $kind, text, self.$field, $name, $help);)*
            }
        }
    };
    (@new CounterVec [$($label:literal),*]) => { CounterVec::new([$($label),*]) };
    (@new GaugeVec [$($label:literal),*]) => { GaugeVec::new([$($label),*]) };
    (@new RuleCounters [$($label:literal),*]) => { RuleCounters::new([$($label),*]) };
    (@new $kind:ident) => { $kind::default() };
    (@encode Counter, $text:ident, $value:expr, $name:literal, $help:literal) => {{
        head($text, $name, "counter", $help);
        line($text, $name, "", $value.get());
    }};
    (@encode Gauge, $text:ident, $value:expr, $name:literal, $help:literal) => {{
        head($text, $name, "gauge", $help);
        line($text, $name, "", $value.get());
    }};
    (@encode CounterVec, $text:ident, $value:expr, $name:literal, $help:literal) => {{
        head($text, $name, "counter", $help);
        $value.each(|labels, counter| line($text, $name, labels, counter.get()));
    }};
    (@encode RuleCounters, $text:ident, $value:expr, $name:literal, $help:literal) => {{
        head($text, $name, "counter", $help);
        $value.each(|labels, count| line($text, $name, labels, count));
    }};
    (@encode GaugeVec, $text:ident, $value:expr, $name:literal, $help:literal) => {{
        head($text, $name, "gauge", $help);
        $value.each(|labels, gauge| line($text, $name, labels, gauge.get()));
    }};
}

own_metrics! {
    detection: CounterVec<3>, "weir_detection_total" ["direction", "protocol", "reason"],
        "Connections by the protocol found and what decided it.";
    refused: CounterVec<2>, "weir_connections_refused_total" ["direction", "reason"],
        "Connections that the proxy refused.";
    access_refused: RuleCounters, "weir_access_refused_total" ["policy", "rule", "reason"],
        "Connections and requests that an access rule refused.";
    retries: CounterVec<1>, "weir_retries_total" ["reason"],
        "Requests tried again on another endpoint.";
    rule_answers: RuleCounters, "weir_rule_answers_total" ["object", "route", "response_flags"],
        "Requests that the proxy answered or cut itself, by the route that they took.";
    ejections: CounterVec<1>, "weir_ejections_total" ["reason"],
        "Endpoints that were left out for what they answered.";
    health_checks: CounterVec<1>, "weir_health_checks_total" ["result"],
        "Checks of endpoints.";
    mirrored: CounterVec<1>, "weir_mirrored_requests_total" ["result"],
        "Copies of requests, sent or left out.";
    downstream_connections: GaugeVec<1>, "weir_downstream_connections" ["direction"],
        "Open connections that the proxy accepted.";
    upstream_connections: GaugeVec<2>, "weir_upstream_connections" ["direction", "state"],
        "Open connections that the proxy made.";
    upstream_connects: CounterVec<2>, "weir_upstream_connects_total" ["direction", "result"],
        "Connections that the proxy tried to make.";
    tls_handshakes: CounterVec<2>, "weir_tls_handshakes_total" ["direction", "result"],
        "Mutual TLS handshakes by result.";
    label_sets_dropped: CounterVec<1>, "weir_label_sets_dropped_total" ["metric"],
        "Label sets beyond the bound, counted under the label value other.";
    access_log_dropped: Counter, "weir_access_log_dropped_total",
        "Access log lines dropped because the output was too slow.";
    config_connected: Gauge, "weir_config_connected",
        "1 while a stream to the control plane is open.";
    config_disconnects: CounterVec<1>, "weir_config_disconnects_total" ["reason"],
        "Streams to the control plane that ended.";
    config_updates: CounterVec<1>, "weir_config_updates_total" ["type"],
        "Resources taken over from the control plane.";
    config_rejected: CounterVec<1>, "weir_config_rejected_total" ["type"],
        "Resources of the control plane that were refused.";
    config_resources: GaugeVec<1>, "weir_config_resources" ["type"],
        "Resources in use.";
    config_last_update: Gauge, "weir_config_last_update_timestamp_seconds",
        "When the last resource was taken over.";
    certificate_expiry: Gauge, "weir_certificate_expiry_timestamp_seconds",
        "When the certificate in use expires.";
    certificate_issued: Gauge, "weir_certificate_not_before_timestamp_seconds",
        "From when the certificate in use is valid.";
    root_expiry: Gauge, "weir_root_certificate_expiry_timestamp_seconds",
        "When the first of the mesh's root certificates in use expires.";
    certificate_renewals: Counter, "weir_certificate_renewals_total",
        "Certificates obtained.";
    certificate_renew_failures: CounterVec<1>, "weir_certificate_renew_failures_total" ["reason"],
        "Attempts to obtain a certificate that failed.";
    app_scrape_failures: CounterVec<1>, "weir_app_scrape_failures_total" ["reason"],
        "Scrapes of the application's own metrics that failed.";
    app_scrape_lines_dropped: Counter, "weir_app_scrape_lines_dropped_total",
        "Lines of the application's metrics that are not valid.";
    app_probes: CounterVec<2>, "weir_app_probes_total" ["kind", "result"],
        "Probes and hooks performed for the kubelet.";
    overload: Gauge, "weir_overload",
        "1 while nothing new is taken because memory runs out.";
    ready: Gauge, "weir_ready",
        "1 while the proxy is ready.";
}

pub(super) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
        text.push_str(part);
    }
}

pub(super) fn line(text: &mut String, name: &str, labels: &str, value: impl itoa::Integer) {
    text.push_str(name);
    if !labels.is_empty() {
        text.push('{');
        text.push_str(labels);
        text.push('}');
    }
    text.push(' ');
    text.push_str(itoa::Buffer::new().format(value));
    text.push('\n');
}
