//! The retry budget of a cluster: retries may add a fixed share to the load and no more (a budget always on).

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// What a retry costs.
const RETRY: i64 = 1000;
/// What a request pays in: 20 % of a retry.
const DEPOSIT: i64 = RETRY / 5;
/// Retries that may be saved up, so that a burst after a quiet time is covered, and that a new cluster starts with.
const SAVED: i64 = 100 * RETRY;

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
    pub fn deposit(&self) {
        if self.0.load(Relaxed) < SAVED {
            self.0.fetch_add(DEPOSIT, Relaxed);
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
        let budget = RetryBudget::default();
        while budget.withdraw() {}
        let retried = (0..1000)
            .filter(|_| {
                budget.deposit();
                budget.withdraw()
            })
            .count();
        assert_eq!(retried, 200);
    }
}
