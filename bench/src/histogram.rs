//! Latencies in buckets of at most 1.6 % width, from one microsecond to a minute.

use std::time::Duration;

/// Buckets in each power of two.
const STEPS: usize = 64;
/// Powers of two above the first `STEPS` values.
const POWERS: usize = 30;

/// Counts by latency in microseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; STEPS * (POWERS + 1)], total: 0 }
    }
}

impl Histogram {
    /// Counts one latency. What is beyond the last bucket counts in it.
    pub fn add(&mut self, latency: Duration) {
        let micros = usize::try_from(latency.as_micros()).unwrap_or(usize::MAX);
        let index = index(micros).min(self.counts.len() - 1);
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Number of latencies counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// True where nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The latency in milliseconds that `share` (0 to 1) of all do not exceed: the upper end of its bucket.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = ((self.total as f64) * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper(index) as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// The first `STEPS` values have a bucket each; after that every power of two has `STEPS` buckets.
fn index(micros: usize) -> usize {
    if micros < STEPS {
        return micros;
    }
    let power = micros.ilog2() as usize - STEPS.ilog2() as usize;
    (power + 1) * STEPS + (micros >> power) - STEPS
}

fn upper(index: usize) -> usize {
    if index < STEPS {
        return index;
    }
    let power = index / STEPS - 1;
    ((index % STEPS + STEPS + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_near_it() {
        for micros in (0..2_000).chain((2_000..60_000_000).step_by(9_973)) {
            let upper = upper(index(micros));
            assert!(upper >= micros, "{micros} in a bucket that ends at {upper}");
            assert!((upper - micros) as f64 <= micros as f64 * 0.016, "{micros} in a bucket that ends at {upper}");
        }
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::default();
        assert!(histogram.is_empty());
        for micros in 1..=10_000 {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.len(), 10_000);
        assert!((histogram.quantile_ms(0.5) - 5.0).abs() < 0.1);
        assert!((histogram.quantile_ms(0.99) - 9.9).abs() < 0.2);
        histogram.add(Duration::from_secs(1_000_000));
        assert!(histogram.quantile_ms(1.0) > 60_000.0);
    }
}
