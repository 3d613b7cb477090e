//! When to ask again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from 0.5 s to 30 s.
#[derive(Debug, Default)]
pub(super) struct Backoff(Option<Duration>);

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let next = self.0.map_or(FIRST, |last| last.saturating_mul(2).min(LONGEST));
        self.0 = Some(next);
        next
    }

    /// True where nothing failed since the last success.
    pub(super) fn is_fresh(&self) -> bool {
        self.0.is_none()
    }
}

/// Spreads what many pods would do at one moment (xorshift64*; no secret hangs on it).
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn random() -> Self {
        Self::seeded(RandomState::new().hash_one("jitter"))
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap_or(0);
        f64::from(bits) / f64::from(u32::MAX)
    }

    /// Up to a quarter more.
    pub(super) fn add(&mut self, wait: Duration) -> Duration {
        wait.saturating_add(wait.mul_f64(self.fraction() * 0.25))
    }

    /// Between 45 and 55 % of it.
    pub(super) fn around_half(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(0.45 + self.fraction() * 0.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_fresh());
        let waits: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert!(!backoff.is_fresh());
    }

    #[test]
    fn jitter_keeps_its_bounds_and_spreads() {
        let day = Duration::from_secs(24 * 3600);
        let mut jitter = Jitter::seeded(7);
        let halves: Vec<_> = (0..1000).map(|_| jitter.around_half(day).as_secs()).collect();
        assert!(halves.iter().all(|s| (38_880..=47_520).contains(s)));
        assert!(halves.iter().max().unwrap() - halves.iter().min().unwrap() > 8000);
        assert!((0..1000).all(|_| (1000..=1250).contains(&jitter.add(Duration::from_secs(1)).as_millis())));
    }
}
