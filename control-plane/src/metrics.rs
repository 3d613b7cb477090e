//! Counters, gauges and histograms of the control plane, in Prometheus' text form. Label values come from fixed sets only.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A number that goes up, or up and down.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Subtracts.
    pub fn subtract(&self, n: usize) {
        self.0.fetch_sub(n as u64, Ordering::Relaxed);
    }

    /// Sets.
    pub fn set(&self, n: usize) {
        self.0.store(n as u64, Ordering::Relaxed);
    }

    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers by one label.
#[derive(Debug, Default)]
pub struct Labelled(Mutex<BTreeMap<&'static str, u64>>);

impl Labelled {
    /// Adds.
    pub fn add(&self, label: &'static str, n: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += n as u64;
    }

    /// Sets.
    pub fn set(&self, label: &'static str, n: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(label, n as u64);
    }

    fn read(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Upper bounds of the histograms' buckets, in microseconds: from one translation to "something is wrong".
const BUCKETS_US: [u64; 13] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// Times.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one time.
    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        for (bucket, bound) in self.buckets.iter().zip(BUCKETS_US) {
            if us <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Open streams.
    pub streams: Number,
    /// Resources that somebody asks for.
    pub resources: Number,
    /// Objects, by kind.
    pub objects: Labelled,
    /// Responses, by kind of resource.
    pub pushes: Labelled,
    /// Resources and removals in them, by kind.
    pub pushed_resources: Labelled,
    /// Refused responses, by kind.
    pub nacks: Labelled,
    /// Callers that were refused.
    pub refused_callers: Number,
    /// Names that were not served because of a limit.
    pub refused_names: Number,
    /// Files that hold up the start.
    pub unread_files: Number,
    /// Places with problems.
    pub config_errors: Number,
    /// Access rules that are not accepted, and closed.
    pub refused_policies: Number,
    /// Certificates that were made.
    pub certificates_issued: Number,
    /// Requests for certificates that were put off.
    pub certificates_deferred: Number,
    /// Requests for certificates that were refused.
    pub certificates_refused: Number,
    /// Failed tries to read a kind from the API server, by kind.
    pub watch_failures: Labelled,
    /// Tokens that the API server was asked about, by its answer.
    pub token_reviews: Labelled,
    /// 1 while this replica is the leader.
    pub leader: Number,
    /// Time that a batch of changes took.
    pub apply_seconds: Histogram,
    /// Time from a change to the response that carries it.
    pub push_seconds: Histogram,
    /// Time from a response to its answer.
    pub ack_seconds: Histogram,
}

impl Metrics {
    /// Prometheus' text form.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(8192);
        let mut one = |name: &str, kind: &str, help: &str, value: &Number| {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", value.get()).ok();
        };
        one("weir_control_connected_proxies", "gauge", "Open streams of proxies.", &self.streams);
        one("weir_control_resources", "gauge", "Resources that a proxy asks for.", &self.resources);
        one(
            "weir_control_config_errors",
            "gauge",
            "Files and routes with problems; /debug/problems lists them.",
            &self.config_errors,
        );
        one(
            "weir_control_unread_files",
            "gauge",
            "Files that have not parsed since the start: above 0 no proxy is answered; /healthz names them.",
            &self.unread_files,
        );
        one(
            "weir_control_refused_callers_total",
            "counter",
            "Callers with a bad token or node id.",
            &self.refused_callers,
        );
        one(
            "weir_control_refused_policies",
            "gauge",
            "Access rules that are not accepted, and closed: /debug/problems says which and why.",
            &self.refused_policies,
        );
        one("weir_control_refused_names_total", "counter", "Names beyond the limits of a stream.", &self.refused_names);
        one("weir_control_certificates_issued_total", "counter", "Certificates made.", &self.certificates_issued);
        one(
            "weir_control_certificates_deferred_total",
            "counter",
            "Requests for certificates before the source was read or the pod known.",
            &self.certificates_deferred,
        );
        one(
            "weir_control_certificates_refused_total",
            "counter",
            "Refused requests for certificates.",
            &self.certificates_refused,
        );
        one("weir_control_leader", "gauge", "1 on the replica that writes the status of routes.", &self.leader);
        let mut many = |name: &str, kind: &str, help: &str, label: &str, values: &Labelled| {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
            for (value, number) in values.read() {
                writeln!(out, "{name}{{{label}=\"{value}\"}} {number}").ok();
            }
        };
        many("weir_control_objects", "gauge", "Objects of the source.", "kind", &self.objects);
        many("weir_control_pushes_total", "counter", "Responses sent to proxies.", "type", &self.pushes);
        many(
            "weir_control_pushed_resources_total",
            "counter",
            "Resources and removals in them.",
            "type",
            &self.pushed_resources,
        );
        many("weir_control_nacks_total", "counter", "Responses that a proxy refused.", "type", &self.nacks);
        many(
            "weir_control_watch_failures_total",
            "counter",
            "Failed tries to read a kind from the API server.",
            "kind",
            &self.watch_failures,
        );
        many(
            "weir_control_token_reviews_total",
            "counter",
            "Tokens that the API server was asked about.",
            "answer",
            &self.token_reviews,
        );
        let mut times = |name: &str, help: &str, histogram: &Histogram| {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram").ok();
            for (bucket, bound) in histogram.buckets.iter().zip(BUCKETS_US) {
                let seconds = Duration::from_micros(bound).as_secs_f64();
                writeln!(out, "{name}_bucket{{le=\"{seconds}\"}} {}", bucket.load(Ordering::Relaxed)).ok();
            }
            let count = histogram.count.load(Ordering::Relaxed);
            let sum = Duration::from_micros(histogram.sum_us.load(Ordering::Relaxed)).as_secs_f64();
            writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}").ok();
        };
        times("weir_control_apply_seconds", "Time that a batch of changes took.", &self.apply_seconds);
        times(
            "weir_control_push_seconds",
            "Time from a change, or a request, to the response that carries it.",
            &self.push_seconds,
        );
        times("weir_control_ack_seconds", "Time from a response to its answer.", &self.ack_seconds);
        out
    }
}
