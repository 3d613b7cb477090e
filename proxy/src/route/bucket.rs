//! A local rate limit: a bucket of tokens, shared by all workers, which a change of other rules leaves as full as it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Chance;

/// A limit on a route's requests.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Tokens.
    pub bucket: Arc<Bucket>,
    /// What requests without a token are answered.
    pub status: u16,
    /// The share of the requests that need a token.
    pub share: Chance,
}

/// Tokens, of which each request takes one.
#[derive(Debug)]
#[repr(align(128))]
pub struct Bucket {
    tokens: AtomicU64,
    /// Fills so far.
    fills: AtomicU64,
    size: u64,
    fill: u64,
    interval: Duration,
    epoch: Instant,
}

impl Bucket {
    /// A full one; every `interval` it gets `fill` tokens, and never has more than `size`.
    pub fn new(size: u32, fill: u32, interval: Duration, now: Instant) -> Self {
        let (size, fill) = (u64::from(size), u64::from(fill));
        Self { tokens: AtomicU64::new(size), fills: AtomicU64::new(0), size, fill, interval, epoch: now }
    }

    /// True where there is a token, which is gone then.
    pub fn take(&self, now: Instant) -> bool {
        let interval = self.interval.as_nanos().max(1);
        let due = now.saturating_duration_since(self.epoch).as_nanos() / interval;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        let done = self.fills.load(Relaxed);
        // The worker that counts the fills up is the one that fills.
        if due > done && self.fills.compare_exchange(done, due, Relaxed, Relaxed).is_ok() {
            let more = self.fill.saturating_mul(due - done);
            let _ = self.tokens.fetch_update(Relaxed, Relaxed, |now| Some(now.saturating_add(more).min(self.size)));
        }
        self.tokens.fetch_update(Relaxed, Relaxed, |now| now.checked_sub(1)).is_ok()
    }

    /// True for another one by the same rule.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.size, self.fill, self.interval) == (other.size, other.fill, other.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_four_threads_take_each_once() {
        let now = Instant::now();
        let bucket = Arc::new(Bucket::new(1000, 100, Duration::from_secs(1), now));
        let taken = |at: Instant| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let bucket = bucket.clone();
                    std::thread::spawn(move || (0..2000).filter(|_| bucket.take(at)).count())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        };
        assert_eq!(taken(now), 1000);
        assert_eq!(taken(now + Duration::from_millis(999)), 0);
        assert_eq!(taken(now + Duration::from_millis(2500)), 200);
        assert_eq!(taken(now + Duration::from_secs(3600)), 1000, "no more than it holds");
        assert_eq!(taken(now), 0, "time never goes back");
    }
}
