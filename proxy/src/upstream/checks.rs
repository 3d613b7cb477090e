//! Active checks: what is asked of endpoints from time to time, and what their answers mean. Who asks is `serve::checks`.

use std::{ops::RangeInclusive, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use super::Standing;

/// One check of a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub probe: Probe,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Between two of them.
    pub interval: Duration,
    /// So many failures in a row, and the endpoint is left out.
    pub unhealthy: u32,
    /// So many successes in a row, and it takes part again.
    pub healthy: u32,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A connection.
    Tcp,
    /// A GET.
    Http {
        /// Path and query.
        path: Box<str>,
        /// Host; none: the cluster's name.
        host: Option<Box<str>>,
        /// Statuses that are good.
        expected: Expected,
    },
    /// A call of `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service that is asked for; empty: the server as a whole.
        service: Box<str>,
    },
}

/// Statuses that are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected(pub Box<[RangeInclusive<u16>]>);

impl Expected {
    /// True for a good one; without any, 200 alone is.
    pub fn has(&self, status: u16) -> bool {
        if self.0.is_empty() { status == 200 } else { self.0.iter().any(|range| range.contains(&status)) }
    }
}

impl Check {
    /// Takes note of an answer; `Some` where the endpoint takes part from now on, or does no more.
    pub fn note(&self, standing: &Standing, good: bool, now: Instant) -> Option<bool> {
        if good == standing.is_well() {
            standing.checks.store(0, Relaxed);
            return None;
        }
        let most = if good { self.healthy } else { self.unhealthy };
        let count = standing.checks.fetch_add(1, Relaxed).saturating_add(1);
        if count < most.max(1) {
            return None;
        }
        standing.checks.store(0, Relaxed);
        standing.set_well(good, now).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Part;

    #[test]
    fn thresholds_in_a_row() {
        let check = Check {
            probe: Probe::Tcp,
            timeout: Duration::from_secs(1),
            interval: Duration::from_secs(1),
            unhealthy: 3,
            healthy: 2,
        };
        let (standing, now) = (Standing::default(), Instant::now());
        let note = |good| check.note(&standing, good, now);
        assert_eq!([note(false), note(false), note(true), note(false), note(false)], [None; 5], "not in a row");
        assert_eq!((note(false), standing.part(now)), (Some(false), Part::Out));
        assert_eq!([note(true), note(false), note(true)], [None; 3]);
        assert_eq!((note(true), standing.part(now)), (Some(true), Part::In));
    }

    #[test]
    fn expected_statuses() {
        let none = Expected(Box::new([]));
        assert!(none.has(200) && !none.has(204));
        let some = Expected(Box::new([200..=299, 404..=404]));
        assert!(some.has(204) && some.has(404) && !some.has(500));
    }
}
