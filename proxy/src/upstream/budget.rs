//! The retry budget of a cluster: retries may add a fixed share to the load and no more (a budget always on).

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// What a retry costs.
const RETRY: i64 = 1000;
/// Retries that may be saved up, so that a burst after a quiet time is covered, and that a new cluster starts with.
const SAVED: i64 = 100 * RETRY;

/// What a cluster's budget is by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Retries for a thousand requests.
    pub per_thousand: u32,
    /// Retries at once that are always allowed.
    pub at_once: u32,
}

impl Default for Allowance {
    /// 20 %, and none besides.
    fn default() -> Self {
        Self { per_thousand: 200, at_once: 0 }
    }
}

/// One cluster's budget, shared by all workers.
#[derive(Debug)]
#[repr(align(64))]
pub struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(SAVED))
    }
}

impl RetryBudget {
    /// A first attempt was made.
    pub fn deposit(&self, allowance: Allowance) {
        if self.0.load(Relaxed) < SAVED {
            self.0.fetch_add(i64::from(allowance.per_thousand) * RETRY / 1000, Relaxed);
        }
    }

    /// True, and paid for, if one more retry is allowed.
    pub fn withdraw(&self) -> bool {
        if self.0.fetch_sub(RETRY, Relaxed) >= RETRY {
            return true;
        }
        self.0.fetch_add(RETRY, Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_stay_within_a_fifth_of_the_requests() {
        for (per_thousand, wanted) in [(200, 200), (1000, 1000), (0, 0), (5, 5)] {
            let budget = RetryBudget::default();
            while budget.withdraw() {}
            let retried = (0..1000)
                .filter(|_| {
                    budget.deposit(Allowance { per_thousand, at_once: 0 });
                    budget.withdraw()
                })
                .count();
            assert_eq!(retried, wanted);
        }
        assert_eq!(Allowance::default().per_thousand, 200);
    }
}
