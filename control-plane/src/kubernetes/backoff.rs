//! How long to wait before the next try.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// First pause after a failure.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause: an API server that is back is noticed within it, and replicas by the dozen do not hurt it.
const LONGEST: Duration = Duration::from_secs(10);

/// Pauses that grow, each with jitter, so that replicas and watches do not come back all at once.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It went well: the next failure is the first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Number of failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// It failed: how long to wait.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        spread(pause)
    }
}

/// Between half of this and all of it.
pub(crate) fn spread(whole: Duration) -> Duration {
    // Every RandomState has keys of its own, so this is a random number without a crate for them.
    let random = (RandomState::new().build_hasher().finish() >> 32) as u32;
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST, "{pauses:?}");
        assert!(pauses[39] >= LONGEST / 2 && pauses.iter().all(|pause| *pause <= LONGEST), "{pauses:?}");
        assert!(pauses[20..].windows(2).any(|two| two[0] != two[1]), "{pauses:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
