//! What a cluster thinks of one of its endpoints: whether it was ejected, what active checks say, since when it takes part.
//!
//! One for each cluster and endpoint, shared by all workers, and kept through every change of the configuration. Times are milliseconds
//! since it was made.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// How long the one request may take that an ejected endpoint gets at the end of its time, before another one is tried.
const PROBATION: Duration = Duration::from_secs(10);

/// A cluster's view of an endpoint.
#[derive(Debug)]
#[repr(align(128))]
pub struct Standing {
    /// 0 while it takes part. Else twice the time until which it does not; odd while a single request is on probation.
    out: AtomicU64,
    /// Ejections that make the next one longer.
    pub(super) times: AtomicU32,
    /// When the last ejection ended, or will.
    pub(super) back: AtomicU64,
    /// Answers in a row that count against it: 5xx, of gateways, and none at all.
    pub(super) failures: [AtomicU32; 3],
    /// Requests since the last look, and those that went well.
    pub(super) requests: AtomicU32,
    pub(super) good: AtomicU32,
    /// Active checks say that it is not well.
    unwell: AtomicBool,
    /// Checks in a row that said otherwise than what counts.
    pub(super) checks: AtomicU32,
    /// Since when it takes part.
    since: AtomicU64,
    epoch: Instant,
}

/// Whether an endpoint takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It does.
    In,
    /// Its time outside is over: one request may show whether it is well.
    Due,
    /// It does not.
    Out,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            out: AtomicU64::new(0),
            times: AtomicU32::new(0),
            back: AtomicU64::new(0),
            failures: Default::default(),
            requests: AtomicU32::new(0),
            good: AtomicU32::new(0),
            unwell: AtomicBool::new(false),
            checks: AtomicU32::new(0),
            since: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }
}

impl Standing {
    /// Whether it takes part now.
    pub fn part(&self, now: Instant) -> Part {
        if self.unwell.load(Relaxed) {
            return Part::Out;
        }
        match self.out.load(Relaxed) {
            0 => Part::In,
            until if self.millis(now) < until >> 1 => Part::Out,
            _ => Part::Due,
        }
    }

    /// True for the one who may send the request on probation.
    pub fn claim(&self, now: Instant) -> bool {
        let until = self.out.load(Relaxed);
        let probing = self.millis(now + PROBATION) << 1 | 1;
        until != 0
            && self.millis(now) >= until >> 1
            && self.out.compare_exchange(until, probing, Relaxed, Relaxed).is_ok()
    }

    /// True while the request on probation is under way.
    pub(super) fn is_probing(&self) -> bool {
        self.out.load(Relaxed) & 1 == 1
    }

    /// True where it was ejected, whether its time is over or not.
    pub fn is_ejected(&self) -> bool {
        self.out.load(Relaxed) != 0
    }

    /// It takes no part for so long.
    pub(super) fn eject(&self, now: Instant, pause: Duration) {
        let until = self.millis(now + pause);
        self.out.store(until << 1, Relaxed);
        self.back.store(until, Relaxed);
        self.forget();
    }

    /// It takes part again.
    pub(super) fn readmit(&self, now: Instant) {
        self.out.store(0, Relaxed);
        self.back.store(self.millis(now), Relaxed);
        self.since.store(self.millis(now), Relaxed);
        self.forget();
    }

    /// Nobody ejects any more.
    pub(super) fn pardon(&self) {
        self.out.store(0, Relaxed);
        self.times.store(0, Relaxed);
        self.forget();
    }

    fn forget(&self) {
        self.failures.iter().for_each(|count| count.store(0, Relaxed));
    }

    /// What active checks say; true where that is a change.
    pub fn set_well(&self, well: bool, now: Instant) -> bool {
        let changed = self.unwell.swap(!well, Relaxed) == well;
        if changed && well {
            self.since.store(self.millis(now), Relaxed);
        }
        changed
    }

    /// False where active checks say that it is not well.
    pub fn is_well(&self) -> bool {
        !self.unwell.load(Relaxed)
    }

    /// How long it has been taking part.
    pub fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(self.millis(now).saturating_sub(self.since.load(Relaxed)))
    }

    pub(super) fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX >> 2)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn one_of_four_threads_may_try_it_at_the_end() {
        let standing = Arc::new(Standing::default());
        let now = Instant::now();
        assert_eq!((standing.part(now), standing.claim(now)), (Part::In, false));
        standing.eject(now, Duration::from_secs(1));
        assert_eq!((standing.part(now), standing.claim(now)), (Part::Out, false));
        let later = now + Duration::from_secs(2);
        assert_eq!(standing.part(later), Part::Due);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let standing = standing.clone();
                std::thread::spawn(move || standing.claim(later))
            })
            .collect();
        let claimed = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|one| *one);
        assert_eq!(claimed.count(), 1);
        assert!(standing.is_probing() && standing.part(later) == Part::Out);
        // The one that tried was never heard of again.
        let much_later = later + PROBATION * 2;
        assert!(standing.part(much_later) == Part::Due && standing.claim(much_later));
        standing.readmit(much_later);
        assert_eq!(standing.part(much_later), Part::In);
        assert_eq!(standing.age(much_later), Duration::ZERO);
    }
}
