//! Connections of a limited cluster belong to one worker each: they move to who has none by ending where they can be done without, and
//! being made anew where somebody waits.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};

use super::Breaker;

/// Between two connections of a cluster that move: each costs a handshake.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// Wishes that a busy worker may have to hear of yet. One that it misses is made again, while somebody waits.
const UNHEARD: usize = 64;

/// That somebody waits for one of a cluster's connections, for all workers to see.
#[derive(Debug)]
pub(super) struct Wish {
    open: AtomicBool,
    /// When the next may be made, in milliseconds since this was.
    next: AtomicU64,
    epoch: Instant,
}

impl Default for Wish {
    fn default() -> Self {
        Self { open: AtomicBool::new(false), next: AtomicU64::new(0), epoch: Instant::now() }
    }
}

impl Wish {
    /// True where it is a new one, which the others have to be told of.
    fn make(&self, now: Instant) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let since = now.saturating_duration_since(self.epoch);
        let next = self.next.load(Relaxed);
        let then = millis(since + PAUSE);
        let new = millis(since) >= next && self.next.compare_exchange(next, then, Relaxed, Relaxed).is_ok();
        if new {
            self.open.store(true, Relaxed);
        }
        new
    }

    /// True for the one who is to fulfil it.
    pub(super) fn take(&self) -> bool {
        self.open.load(Relaxed) && self.open.swap(false, Relaxed)
    }

    /// Somebody else is to fulfil it.
    pub(super) fn leave(&self) {
        self.open.store(true, Relaxed);
    }
}

/// By this the workers of a proxy hear what the others wish.
#[derive(Clone)]
pub struct Handover(broadcast::Sender<Breaker>);

/// What one worker has to hear.
pub struct Wishes(broadcast::Receiver<Breaker>);

impl Default for Handover {
    fn default() -> Self {
        Self(broadcast::channel(UNHEARD).0)
    }
}

impl Handover {
    /// One of a cluster's connections is wished for, because there may be no more.
    pub fn wish(&self, of: &Breaker) {
        if of.counts.wish.make(Instant::now()) {
            let _ = self.0.send(of.clone());
        }
    }

    /// The wishes from now on.
    pub fn wishes(&self) -> Wishes {
        Wishes(self.0.subscribe())
    }
}

impl Wishes {
    /// The next cluster whose connections are wished for; none where nobody is left who could.
    pub async fn next(&mut self) -> Option<Breaker> {
        loop {
            match self.0.recv().await {
                Ok(of) => return Some(of),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_hear_a_wish_one_fulfils_it_and_the_next_has_to_wait() {
        let (handover, breaker) = (Handover::default(), Breaker::default());
        let (mut one, mut other) = (handover.wishes(), handover.wishes());
        handover.wish(&breaker);
        handover.wish(&breaker);
        let granted = [one.next().await.unwrap(), other.next().await.unwrap()].map(|of| of.counts.wish.take());
        assert_eq!(granted, [true, false]);
        assert!(one.0.try_recv().is_err(), "two at once are one");
        tokio::time::sleep(PAUSE).await;
        handover.wish(&breaker);
        assert!(one.next().await.unwrap().counts.wish.take());
    }

    #[tokio::test]
    async fn who_hears_nothing_for_long_is_in_nobodys_way() {
        let handover = Handover::default();
        let mut wishes = handover.wishes();
        for _ in 0..3 * UNHEARD {
            handover.wish(&Breaker::default());
        }
        let mut heard = 0;
        drop(handover);
        while wishes.next().await.is_some() {
            heard += 1;
        }
        assert_eq!(heard, UNHEARD);
    }
}
