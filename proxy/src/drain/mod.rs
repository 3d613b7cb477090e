//! The end of the proxy: keeps serving, says goodbye on every connection, and stops at one deadline.
//!
//! Before the very end there is a short time in which nothing new is taken from other proxies: callers' connections are refused, and
//! requests on open ones are answered "not delivered", so that they go to another endpoint instead of being cut.
//!
//! The kubelet stops a native sidecar after the application's containers, so that at this signal the application is gone already:
//! what is left are answers on their way and connections of other sidecars.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// With nothing in flight for this long the proxy need not wait for its deadline.
const QUIET: Duration = Duration::from_secs(1);
/// The same once nothing new is taken.
const LAST_QUIET: Duration = Duration::from_millis(250);
/// Longest time in which nothing new is taken before the deadline; a quarter of the whole where that is less.
const LAST: Duration = Duration::from_secs(5);
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Shared by all workers.
#[derive(Debug, Clone)]
pub struct Drain(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    draining: AtomicBool,
    stage: watch::Sender<Stage>,
    counters: Vec<Counter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Serves.
    Serving,
    /// Takes nothing new from other proxies.
    Closed,
    /// Everything ends.
    Stopped,
}

/// On a cache line of its own: workers count without disturbing each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// One request or opaque stream in flight.
#[derive(Debug)]
pub struct InFlight {
    drain: Drain,
    worker: usize,
}

impl Drain {
    /// For this many workers.
    pub fn new(workers: usize) -> Self {
        let counters = (0..workers.max(1)).map(|_| Counter::default()).collect();
        Self(Arc::new(Shared { draining: AtomicBool::new(false), stage: watch::Sender::new(Stage::Serving), counters }))
    }

    /// True from the signal on: connections are not kept for another request.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// Counts a request or stream of a worker for as long as the guard lives.
    pub fn enter(&self, worker: usize) -> InFlight {
        let worker = worker.min(self.0.counters.len().saturating_sub(1));
        if let Some(counter) = self.0.counters.get(worker) {
            counter.begun.fetch_add(1, Relaxed);
        }
        InFlight { drain: self.clone(), worker }
    }

    /// Requests and streams in flight.
    pub fn in_flight(&self) -> usize {
        let ended = self.sum(|counter| &counter.ended); // first, so that the difference is never below zero
        self.begun().saturating_sub(ended)
    }

    fn begun(&self) -> usize {
        self.sum(|counter| &counter.begun)
    }

    fn sum(&self, which: impl Fn(&Counter) -> &AtomicUsize) -> usize {
        self.0.counters.iter().map(|counter| which(counter).load(Relaxed)).fold(0, usize::wrapping_add)
    }

    /// True when nothing new is taken from other proxies.
    pub fn is_closed(&self) -> bool {
        self.is_draining() && *self.0.stage.borrow() >= Stage::Closed
    }

    /// Ready when nothing new is taken from other proxies.
    pub async fn closed(&self) {
        self.reached(Stage::Closed).await;
    }

    /// Ready when everything must end now.
    pub async fn stopped(&self) {
        self.reached(Stage::Stopped).await;
    }

    async fn reached(&self, stage: Stage) {
        let mut stages = self.0.stage.subscribe();
        let _ = stages.wait_for(|now| *now >= stage).await;
    }

    /// Drains: returns once nothing has been in flight for a moment, at the latest after `limit`; then everything must end.
    pub async fn run(&self, limit: Duration) {
        self.0.draining.store(true, Relaxed);
        let deadline = Instant::now() + limit;
        self.quiet(QUIET, deadline - LAST.min(limit / 4)).await;
        self.0.stage.send_replace(Stage::Closed);
        self.quiet(LAST_QUIET, deadline).await;
        let left = self.in_flight();
        if left > 0 {
            tracing::warn!(
                left,
                seconds = limit.as_secs(),
                "drain deadline reached; these requests and streams are cut"
            );
        }
        self.0.stage.send_replace(Stage::Stopped);
    }

    /// Waits until nothing was in flight for so long, and nothing has begun.
    async fn quiet(&self, long: Duration, deadline: Instant) {
        let (mut since, mut begun) = (Instant::now(), self.begun());
        loop {
            let now = Instant::now();
            if self.in_flight() > 0 || self.begun() != begun {
                (since, begun) = (now, self.begun());
            }
            if now >= deadline || now - since >= long {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(counter) = self.drain.0.counters.get(self.worker) {
            counter.ended.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_what_is_in_flight_and_no_longer_than_the_deadline() {
        let drain = Drain::new(2);
        let held = drain.enter(1);
        let end = tokio::spawn({
            let drain = drain.clone();
            async move { drain.run(Duration::from_secs(30)).await }
        });
        tokio::time::sleep(QUIET + Duration::from_millis(300)).await;
        assert!(drain.is_draining() && !end.is_finished());
        drop(held);
        tokio::time::timeout(Duration::from_secs(5), end).await.unwrap().unwrap();

        let busy = Drain::new(1);
        let end = tokio::spawn({
            let busy = busy.clone();
            async move { busy.run(Duration::from_secs(4)).await }
        });
        // Short requests without end: none is in flight whenever somebody looks, and yet it is not quiet.
        let start = Instant::now();
        while !busy.is_closed() {
            drop(busy.enter(0));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(2900), "{:?}", start.elapsed());
        assert!(!end.is_finished(), "there is no time between the last request and the end");
        tokio::time::timeout(Duration::from_secs(5), end).await.unwrap().unwrap();

        let stuck = Drain::new(1);
        let _held = stuck.enter(0);
        tokio::time::timeout(Duration::from_secs(5), stuck.run(Duration::from_millis(200))).await.unwrap();
        stuck.stopped().await;
    }
}
