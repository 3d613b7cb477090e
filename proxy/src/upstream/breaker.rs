//! Circuit breaking: how many connections, waiting requests, requests and retries a cluster has at once, of all workers together.

use std::sync::Arc;

use crate::net::{Slot, Slots};

/// What is counted. Lives as long as its cluster, through every change of the limits.
#[derive(Debug, Default)]
pub struct Counts {
    connections: Arc<Slots>,
    pending: Arc<Slots>,
    requests: Arc<Slots>,
    retries: Arc<Slots>,
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
        // Where connections are limited it is counted as well: who waits gets what another worker has idle.
        let most = self.thresholds.pending.or(self.thresholds.connections.map(|_| u32::MAX));
        take(&self.counts.pending, most, "max_pending_requests")
    }

    /// Room for a connection.
    ///
    /// # Errors
    /// [`Full`]
    pub fn connection(&self) -> Result<Option<Slot>, Full> {
        take(&self.counts.connections, self.thresholds.connections, "max_connections")
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
            ("max_connections", connections, &self.counts.connections),
            ("max_pending_requests", pending, &self.counts.pending),
            ("max_requests", requests, &self.counts.requests),
            ("max_retries", retries, &self.counts.retries),
        ];
        all.into_iter().filter_map(|(name, most, slots)| Some((name, most?, slots.taken())))
    }

    /// True where connections are limited and somebody waits for one.
    pub fn is_awaited(&self) -> bool {
        self.thresholds.connections.is_some() && self.counts.pending.taken() > 0
    }

    /// True where a kept connection may be used: all are counted once there is a limit, and no more are kept than it says.
    pub fn keeps(&self, connection: Option<&Slot>) -> bool {
        self.thresholds.connections.is_none_or(|most| {
            connection.is_some_and(|slot| self.owns(slot)) && self.counts.connections.taken() <= most
        })
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
    fn what_was_made_without_a_limit_is_not_kept_with_one() {
        let free = Breaker::default();
        let limited =
            |most| Breaker { thresholds: Thresholds { connections: Some(most), ..Default::default() }, ..free.clone() };
        assert!(free.connection().unwrap().is_none() && free.keeps(None));
        assert!(!limited(2).keeps(None));
        let (one, _other) = (limited(2).connection().unwrap(), limited(2).connection().unwrap());
        assert!(limited(2).keeps(one.as_ref()) && free.keeps(one.as_ref()));
        assert!(!limited(1).keeps(one.as_ref()), "there is one too many");
        let foreign = Breaker { counts: Arc::default(), ..limited(2) };
        assert!(!foreign.keeps(one.as_ref()));
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
