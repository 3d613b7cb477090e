//! Whether a request is sent once more: how often it was, why it failed, and what its rule and its cluster's budget say.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::{carrier::Kept, fault::Fault};
use crate::{
    net::{Slot, random},
    route::{Attempt, Retry},
    serve::Worker,
    telemetry::ResponseFlags,
    upstream::{Cluster, ClusterInfo},
};

/// Attempts more for one request without a rule: where nothing had come of the ones before.
const FREE: usize = 3;
/// Why a request is sent again: the kept connection that it went out on was dead.
const DEAD: &str = "dead_connection";
/// Longest time for which an endpoint is avoided because it says so.
const LONGEST_AVOIDED: Duration = Duration::from_secs(30);

/// The attempts of one request.
pub(super) struct Tries<'a> {
    worker: &'a Worker,
    cluster: &'a Cluster,
    info: &'a ClusterInfo,
    retry: Option<&'a Retry>,
    /// Counts this request among those that are being sent again.
    slot: Option<Slot>,
    /// When all of them together have to be at their end.
    pub(super) deadline: Option<Instant>,
    /// Endpoints that failed.
    pub(super) tried: SmallVec<[SocketAddr; FREE + 1]>,
    /// Which kept connections the next one may go out on.
    pub(super) kept: Kept,
    /// Attempts begun.
    pub(super) count: usize,
    free: usize,
    by_rule: u32,
    /// The rule would have had another attempt, and there is none left.
    pub(super) used_up: bool,
}

impl<'a> Tries<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        cluster: &'a Cluster,
        info: &'a ClusterInfo,
        retry: Option<&'a Retry>,
        deadline: Option<Instant>,
        kept: Kept,
    ) -> Self {
        let tried = SmallVec::new();
        Self {
            worker,
            cluster,
            info,
            retry,
            slot: None,
            deadline,
            tried,
            kept,
            count: 0,
            free: 0,
            by_rule: 0,
            used_up: false,
        }
    }

    /// True where a rule says when a request is sent again.
    pub(super) fn has_rule(&self) -> bool {
        self.retry.is_some()
    }

    /// When the attempt that begins now has to be answered.
    pub(super) fn end(&self, now: Instant) -> Option<Instant> {
        let one = self.retry.and_then(|retry| retry.per_try).map(|limit| now + limit);
        match (one, self.deadline) {
            (Some(one), Some(all)) => Some(one.min(all)),
            (one, all) => one.or(all),
        }
    }

    /// The attempt was not answered in its time.
    pub(super) fn late(&self) -> Fault {
        if self.is_over() {
            return Fault::upstream(ResponseFlags::UT, 504, "the time that the route gives has passed");
        }
        Fault::upstream(ResponseFlags::UT, 504, "no answer in the time that the route gives one attempt")
    }

    /// True when the time for all attempts has passed.
    pub(super) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// This endpoint has failed: others are preferred.
    pub(super) fn avoid(&mut self, address: SocketAddr) {
        if !self.tried.contains(&address) {
            self.tried.push(address);
        }
    }

    /// True where a failed attempt is made good without a rule: nothing has come of it, or sending it twice does no harm. `here`: all that
    /// has come of the request is; `harmless`: it may be sent twice.
    pub(super) fn once_more(&mut self, fault: &Fault, here: bool, harmless: bool) -> bool {
        let why = match (fault.not_delivered, fault.unsent) {
            (true, _) => "not_delivered",
            (false, true) => "connect",
            (false, false) => DEAD,
        };
        if !here || self.free >= FREE || !(fault.unsent || fault.silent && harmless) {
            return false;
        }
        // A new connection in the place of a dead one adds nothing to the load: it is not a retry in the budget's sense, and there is one
        // at most for each request. Once one was dead, the others may be as well: the next is new.
        if why == DEAD {
            self.kept = Kept::Never;
        } else if !self.pay() {
            return false;
        }
        self.free += 1;
        self.worker.shared.registry.proxy.retries.inc([why]);
        true
    }

    /// The pause before another attempt, where the rule wants one after this and it can be had.
    pub(super) fn by_rule(&mut self, attempt: Attempt, here: bool) -> Option<Duration> {
        let retry = self.retry.filter(|retry| retry.wants(attempt))?;
        if self.by_rule >= retry.retries {
            self.used_up = true;
            return None;
        }
        let retries = &self.worker.shared.registry.proxy.retries;
        if !here {
            retries.inc(["body_too_large"]);
            return None;
        }
        let pause = retry.pause.before(self.by_rule.saturating_add(1), random());
        // What can not be done in time is not begun.
        if self.deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) || !self.pay() {
            return None;
        }
        self.by_rule += 1;
        retries.inc([match attempt {
            Attempt::Answered(..) => "answer",
            Attempt::Unconnected => "connect",
            Attempt::Refused => "not_delivered",
            Attempt::Unanswered => "no_answer",
        }]);
        Some(pause)
    }

    /// Takes what another attempt costs, where the cluster has it.
    fn pay(&mut self) -> bool {
        let retries = &self.worker.shared.registry.proxy.retries;
        if self.slot.is_none() {
            match self.info.breaker.retry() {
                Ok(slot) => self.slot = slot,
                Err(full) => {
                    retries.inc([full.0]);
                    return false;
                }
            }
        }
        if self.info.breaker.retries() <= self.info.allowance.at_once || self.cluster.budget.withdraw() {
            return true;
        }
        self.slot = None;
        retries.inc(["budget_exhausted"]);
        false
    }
}

/// The outcome of a work that ends by itself or is given up then.
pub(super) async fn within<F: Future>(end: Option<Instant>, work: Pin<&mut F>) -> Option<F::Output> {
    match end {
        None => Some(work.await),
        Some(end) => timeout_at(end, work).await.ok(),
    }
}

/// For how long an endpoint asks to be left alone: seconds only, the form in which servers say it of themselves.
pub(super) fn retry_after(value: &[u8]) -> Option<Duration> {
    let seconds: u64 = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_AVOIDED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_bounded_and_nothing_else_is_read() {
        for (text, seconds) in [("3", Some(3)), (" 5 ", Some(5)), ("86400", Some(30)), ("0", Some(0))] {
            assert_eq!(retry_after(text.as_bytes()), seconds.map(Duration::from_secs), "{text}");
        }
        for text in ["", "-1", "1.5", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999999999999", "\u{e4}"] {
            assert_eq!(retry_after(text.as_bytes()), None, "{text}");
        }
    }
}
