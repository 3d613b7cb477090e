//! The numbers behind one label set. Recording is a few relaxed additions; nothing is allocated, locked or formatted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Envoy's default bounds, in the unit of the histogram (milliseconds or bytes), as they are written.
pub(super) const BOUNDS: [&str; 19] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
    "300000", "600000", "1800000", "3600000",
];
/// [`BOUNDS`] for durations, in microseconds.
const MICROS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];
/// [`BOUNDS`] for bytes, rounded down: nothing lies between 0 and 0.5.
const BYTES: [u64; 19] = [
    0, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];
/// Bounds of the route latencies, in milliseconds: finer where a call inside a cluster lies, so that percentiles mean something.
pub(super) const ROUTE_BOUNDS: [&str; 16] =
    ["0.25", "0.5", "1", "2", "3", "5", "7.5", "10", "25", "50", "100", "250", "500", "1000", "5000", "10000"];
const ROUTE_MICROS: [u64; 16] = [
    250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000, 10_000_000,
];

/// Counts by bucket (not cumulative) and the sum. `N` is the number of bounds and one.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; N], sum: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    fn record(&self, bounds: &[u64], value: u64) {
        let bucket = bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    /// Counts by bucket and the sum, in the unit of recording.
    pub(super) fn read(&self) -> ([u64; N], u64) {
        let mut counts = [0; N];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
        }
        (counts, self.sum.load(Relaxed))
    }
}

pub(super) type Standard = Histogram<20>;

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Requests of one label set.
#[derive(Debug)]
#[repr(align(64))] // so that two busy series never share a cache line
pub struct HttpSeries {
    pub(super) labels: Arc<str>,
    pub(super) requests: AtomicU64,
    pub(super) duration: Standard,
    pub(super) request_bytes: Standard,
    pub(super) response_bytes: Standard,
}

impl HttpSeries {
    pub(super) fn new(labels: Arc<str>) -> Self {
        Self {
            labels,
            requests: AtomicU64::new(0),
            duration: Standard::default(),
            request_bytes: Standard::default(),
            response_bytes: Standard::default(),
        }
    }

    /// A request that came to its end. Bytes are those on the caller's wire, heads included.
    pub fn record(&self, duration: Duration, request_bytes: u64, response_bytes: u64) {
        self.record_incomplete(request_bytes, response_bytes);
        self.duration.record(&MICROS, micros(duration));
    }

    /// A request that was cut short: it counts, its duration would mislead.
    pub fn record_incomplete(&self, request_bytes: u64, response_bytes: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.request_bytes.record(&BYTES, request_bytes);
        self.response_bytes.record(&BYTES, response_bytes);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

/// Connections of one label set.
#[derive(Debug)]
#[repr(align(64))]
pub struct TcpSeries {
    pub(super) labels: Arc<str>,
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl TcpSeries {
    pub(super) fn new(labels: Arc<str>) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// A connection was opened.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    /// A connection was closed.
    pub fn closed(&self) {
        self.closed.fetch_add(1, Relaxed);
    }

    /// Bytes moved since the last call: `sent` went to the caller, `received` came from it, on both reporters. Call it now and
    /// then while a connection lives (Istio: each 5 s) and at its end.
    pub fn moved(&self, sent: u64, received: u64) {
        self.sent.fetch_add(sent, Relaxed);
        self.received.fetch_add(received, Relaxed);
    }
}

/// Requests of one declared route.
#[derive(Debug)]
#[repr(align(64))]
pub struct RouteSeries {
    pub(super) labels: Arc<str>,
    pub(super) success: Histogram<17>,
    pub(super) failure: Histogram<17>,
}

impl RouteSeries {
    pub(super) fn new(labels: Arc<str>) -> Self {
        Self { labels, success: Histogram::default(), failure: Histogram::default() }
    }

    /// A request of the route; `success` is the caller's judgement (for HTTP: below 500 and answered).
    pub fn record(&self, success: bool, duration: Duration) {
        let histogram = if success { &self.success } else { &self.failure };
        histogram.record(&ROUTE_MICROS, micros(duration));
    }
}
