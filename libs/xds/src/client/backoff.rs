//! Waits between tries: doubled up to a limit, with jitter, so that the proxies of a mesh do not come back all at once.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    seed: u64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        // The standard library's hasher is seeded by the system: random enough for jitter, and no crate more.
        Self { min, max, next: min, seed: RandomState::new().hash_one(0) }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    /// The next wait: 50 to 100 % of the current step.
    pub(super) fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = step.saturating_mul(2).min(self.max);
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let percent = 50 + u32::try_from((self.seed >> 33) % 51).unwrap_or(50);
        step.saturating_mul(percent) / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_with_jitter_up_to_the_limit() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        let mut step = min;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
            step = (step * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
