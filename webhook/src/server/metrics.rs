//! Counters of the webhook, as Prometheus text.

use std::{
    fmt::Write,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::review::Judgement;

/// Upper bounds of the histogram of own work, in microseconds; the goal is 10 ms for the slowest of a hundred.
const BOUNDS_US: [u64; 12] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000];
const RESULTS: [Judgement; 6] = [
    Judgement::Injected,
    Judgement::Repaired,
    Judgement::Unchanged,
    Judgement::Skipped,
    Judgement::Accepted,
    Judgement::Refused,
];
/// HTTP answers that are no review.
const REJECTIONS: [u16; 8] = [400, 404, 405, 408, 413, 415, 500, 503];

/// All counters. One for the process.
#[derive(Debug, Default)]
pub struct Metrics {
    reviews: [AtomicU64; RESULTS.len()],
    rejections: [AtomicU64; REJECTIONS.len()],
    buckets: [AtomicU64; BOUNDS_US.len()],
    work_count: AtomicU64,
    work_sum_us: AtomicU64,
    /// Open connections.
    pub(crate) connections: AtomicU64,
    /// Handshakes that failed or took too long.
    pub(crate) handshake_failures: AtomicU64,
    /// Certificates that were taken into use after the first.
    pub(crate) reloads: AtomicU64,
    /// Certificates that could not be taken into use.
    pub(crate) reload_failures: AtomicU64,
    /// When the certificate in use ends, in seconds since 1970.
    pub(crate) certificate_expiry: AtomicI64,
}

impl Metrics {
    /// Counts an answered review and the time that it took.
    pub(crate) fn reviewed(&self, result: Judgement, took: Duration) {
        for (known, counter) in RESULTS.iter().zip(&self.reviews) {
            counter.fetch_add(u64::from(*known == result), Relaxed);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        for (bound, counter) in BOUNDS_US.iter().zip(&self.buckets) {
            counter.fetch_add(u64::from(us <= *bound), Relaxed);
        }
        self.work_count.fetch_add(1, Relaxed);
        self.work_sum_us.fetch_add(us, Relaxed);
    }

    /// Counts a request that was not answered by a review.
    pub(crate) fn rejected(&self, status: u16) {
        for (known, counter) in REJECTIONS.iter().zip(&self.rejections) {
            counter.fetch_add(u64::from(*known == status), Relaxed);
        }
    }

    /// The Prometheus text format, version 0.0.4.
    pub(crate) fn render(&self) -> String {
        let mut text = String::with_capacity(4096);
        let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, String)]| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let count = |counter: &AtomicU64| counter.load(Relaxed).to_string();
        let one = |value: String| vec![(String::new(), value)];
        let reviews =
            RESULTS.iter().zip(&self.reviews).map(|(r, c)| (format!("{{result=\"{}\"}}", r.as_str()), count(c)));
        family("weir_webhook_reviews_total", "counter", "Reviews answered.", &reviews.collect::<Vec<_>>());
        let rejections = REJECTIONS.iter().zip(&self.rejections).map(|(r, c)| (format!("{{code=\"{r}\"}}"), count(c)));
        family(
            "weir_webhook_rejected_requests_total",
            "counter",
            "Requests answered by an HTTP error.",
            &rejections.collect::<Vec<_>>(),
        );
        family("weir_webhook_connections", "gauge", "Open connections.", &one(count(&self.connections)));
        family(
            "weir_webhook_handshake_failures_total",
            "counter",
            "TLS handshakes that failed or took too long.",
            &one(count(&self.handshake_failures)),
        );
        let loads = [("ok", &self.reloads), ("error", &self.reload_failures)];
        let loads = loads.map(|(result, counter)| (format!("{{result=\"{result}\"}}"), count(counter)));
        family("weir_webhook_certificate_reloads_total", "counter", "Certificates re-read after a change.", &loads);
        family(
            "weir_webhook_certificate_expiry_timestamp_seconds",
            "gauge",
            "When the certificate in use ends.",
            &one(self.certificate_expiry.load(Relaxed).to_string()),
        );
        let name = "weir_webhook_review_duration_seconds";
        let _ = write!(text, "# HELP {name} Own work for one review.\n# TYPE {name} histogram\n");
        let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
        for (bound, counter) in BOUNDS_US.iter().zip(&self.buckets) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {}", seconds(*bound), counter.load(Relaxed));
        }
        let total = self.work_count.load(Relaxed);
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(text, "{name}_sum {}", seconds(self.work_sum_us.load(Relaxed)));
        let _ = writeln!(text, "{name}_count {total}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_counted() {
        let metrics = Metrics::default();
        metrics.reviewed(Judgement::Injected, Duration::from_micros(300));
        metrics.rejected(413);
        let text = metrics.render();
        for line in [
            "weir_webhook_reviews_total{result=\"injected\"} 1",
            "weir_webhook_reviews_total{result=\"refused\"} 0",
            "weir_webhook_rejected_requests_total{code=\"413\"} 1",
            "weir_webhook_review_duration_seconds_bucket{le=\"0.00025\"} 0",
            "weir_webhook_review_duration_seconds_bucket{le=\"0.0005\"} 1",
            "weir_webhook_review_duration_seconds_bucket{le=\"+Inf\"} 1",
            "weir_webhook_review_duration_seconds_sum 0.0003",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
