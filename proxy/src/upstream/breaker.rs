//! Circuit breaking: how many connections, waiting requests, requests and retries a cluster has at once, of all workers together.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::handover::{self, Wish};
use crate::net::{Slot, Slots};

/// A limit's name.
const CONNECTIONS: &str = "max_connections";

/// What is counted. Lives as long as its cluster, through every change of the limits.
#[derive(Debug, Default)]
pub struct Counts {
    connections: Arc<Slots>,
    pending: Arc<Slots>,
    requests: Arc<Slots>,
    retries: Arc<Slots>,
    /// A worker wants one of the connections that others have.
    pub(super) wish: Wish,
}

/// How many there may be; what is not limited is not counted either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// Connections, idle ones among them.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests, from their beginning to the end of their answers.
    pub requests: Option<u32>,
    /// Requests that are being sent again.
    pub retries: Option<u32>,
}

/// A limit that was reached; its name as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full(pub &'static str);

/// The limits of a cluster, and what is counted for them.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    /// The limits.
    pub thresholds: Thresholds,
    /// What is counted.
    pub counts: Arc<Counts>,
}

impl Breaker {
    /// Room for a request.
    ///
    /// # Errors
    /// [`Full`]
    pub fn request(&self) -> Result<Option<Slot>, Full> {
        take(&self.counts.requests, self.thresholds.requests, "max_requests")
    }

    /// Room for a request that waits for a connection.
    ///
    /// # Errors
    /// [`Full`]
    pub fn pending(&self) -> Result<Option<Slot>, Full> {
        take(&self.counts.pending, self.thresholds.pending, "max_pending_requests")
    }

    /// Room for a connection, where nobody waits for it already.
    ///
    /// # Errors
    /// [`Full`]
    pub fn connection(&self) -> Result<Option<Slot>, Full> {
        take(&self.counts.connections, self.thresholds.connections, CONNECTIONS)
    }

    /// The same in turn with all others who wait, until `end`; `wish` is called every now and then meanwhile.
    ///
    /// # Errors
    /// [`Full`]: its turn has not come.
    pub async fn connection_in_turn(&self, end: Instant, wish: impl Fn()) -> Result<Option<Slot>, Full> {
        let Some(most) = self.thresholds.connections else { return Ok(None) };
        let queue = self.counts.connections.queue();
        let mut slot = pin!(queue.slot(most));
        loop {
            wish();
            // The more there are, the less each has to say.
            let pause = handover::PAUSE.max(Duration::from_millis(self.counts.connections.waiting().into()));
            let next = end.min(Instant::now() + pause);
            match timeout_at(next, &mut slot).await {
                Ok(slot) => return Ok(Some(slot)),
                Err(_) if Instant::now() >= end => return Err(Full(CONNECTIONS)),
                Err(_) => {}
            }
        }
    }

    /// Room for a request that is sent again.
    ///
    /// # Errors
    /// [`Full`]
    pub fn retry(&self) -> Result<Option<Slot>, Full> {
        take(&self.counts.retries, self.thresholds.retries.or(Some(u32::MAX)), "max_retries")
    }

    /// How many are being sent again now.
    pub fn retries(&self) -> u32 {
        self.counts.retries.taken()
    }

    /// The limits that there are: name as the configuration has it, limit, how many there are now.
    pub fn usage(&self) -> impl Iterator<Item = (&'static str, u32, u32)> {
        let Thresholds { connections, pending, requests, retries } = self.thresholds;
        let all = [
            (CONNECTIONS, connections, &self.counts.connections),
            ("max_pending_requests", pending, &self.counts.pending),
            ("max_requests", requests, &self.counts.requests),
            ("max_retries", retries, &self.counts.retries),
        ];
        all.into_iter().filter_map(|(name, most, slots)| Some((name, most?, slots.taken())))
    }

    /// True where a connection that has become free is to end, so that another worker, or another endpoint, may have one. `here`: how many
    /// wait for just this one.
    pub fn is_wanted_elsewhere(&self, here: usize) -> bool {
        self.counts.connections.waiting() as usize > here && self.counts.wish.take()
    }

    /// Ends a connection by `spare`, which says whether it could, unless somebody else has fulfilled that wish.
    pub fn fulfil(&self, spare: impl FnOnce() -> bool) {
        if self.counts.wish.take() && !spare() {
            self.counts.wish.leave();
        }
    }

    /// True for a connection that counts for this cluster, and for all where they are not limited.
    pub fn keeps(&self, connection: Option<&Slot>) -> bool {
        self.thresholds.connections.is_none() || connection.is_some_and(|slot| self.owns(slot))
    }

    /// [`Self::keeps`], or does from now on: another cluster may have made it, for the same endpoint, or this one when it had no limit.
    pub fn adopts(&self, connection: &mut Option<Slot>) -> bool {
        if self.keeps(connection.as_ref()) {
            return true;
        }
        let Ok(slot) = self.connection() else { return false };
        *connection = slot;
        true
    }

    /// True for the slot of one of this cluster's connections.
    pub fn owns(&self, connection: &Slot) -> bool {
        connection.is_of(&self.counts.connections)
    }
}

fn take(slots: &Arc<Slots>, most: Option<u32>, name: &'static str) -> Result<Option<Slot>, Full> {
    match most {
        None => Ok(None),
        Some(most) => slots.take(most).map(Some).ok_or(Full(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_for_who_uses_it() {
        let limited = |most| Breaker {
            thresholds: Thresholds { connections: Some(most), ..Default::default() },
            ..Default::default()
        };
        let (one, other, free) = (limited(1), limited(1), Breaker::default());
        let (mut first, mut second) = (other.connection().unwrap(), None);
        assert!(one.adopts(&mut first) && one.adopts(&mut first), "once");
        assert!(!one.adopts(&mut second) && second.is_none());
        assert!(other.adopts(&mut second), "the first has left it");
        assert!(free.adopts(&mut first) && one.owns(first.as_ref().unwrap()), "who has no limit counts nothing");
    }

    #[test]
    fn a_changed_limit_counts_what_is_there_already() {
        let two = Breaker { thresholds: Thresholds { requests: Some(2), ..Default::default() }, ..Default::default() };
        let (one, _other) = (two.request().unwrap(), two.request().unwrap());
        assert_eq!(two.request().unwrap_err(), Full("max_requests"));
        assert!(two.connection().unwrap().is_none() && two.pending().unwrap().is_none());
        let three = Breaker { thresholds: Thresholds { requests: Some(3), ..Default::default() }, ..two.clone() };
        let third = three.request().unwrap();
        assert!(three.request().is_err());
        assert_eq!(three.usage().collect::<Vec<_>>(), [("max_requests", 3, 3)]);
        drop(third);
        drop(one);
        assert!(two.request().is_ok());
    }
}
