//! The end of the proxy: keeps serving what is open, says goodbye on every connection, and stops at one deadline.
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
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Shared by all workers.
#[derive(Debug, Clone)]
pub struct Drain(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    draining: AtomicBool,
    stopped: watch::Sender<bool>,
    in_flight: Vec<Counter>,
}

/// On a cache line of its own: workers count without disturbing each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

/// One request or opaque stream in flight.
#[derive(Debug)]
pub struct InFlight {
    drain: Drain,
    worker: usize,
}

impl Drain {
    /// For this many workers.
    pub fn new(workers: usize) -> Self {
        let in_flight = (0..workers.max(1)).map(|_| Counter::default()).collect();
        Self(Arc::new(Shared { draining: AtomicBool::new(false), stopped: watch::Sender::new(false), in_flight }))
    }

    /// True from the signal on: connections are not kept for another request.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// Counts a request or stream of a worker for as long as the guard lives.
    pub fn enter(&self, worker: usize) -> InFlight {
        let worker = worker.min(self.0.in_flight.len().saturating_sub(1));
        if let Some(counter) = self.0.in_flight.get(worker) {
            counter.0.fetch_add(1, Relaxed);
        }
        InFlight { drain: self.clone(), worker }
    }

    /// Requests and streams in flight.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.iter().map(|counter| counter.0.load(Relaxed)).sum()
    }

    /// Ready when everything must end now.
    pub async fn stopped(&self) {
        let mut stopped = self.0.stopped.subscribe();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Drains: returns once nothing has been in flight for a moment, at the latest after `limit`; then everything must end.
    pub async fn run(&self, limit: Duration) {
        self.0.draining.store(true, Relaxed);
        let deadline = Instant::now() + limit;
        let mut quiet_since = Instant::now();
        loop {
            let now = Instant::now();
            if self.in_flight() > 0 {
                quiet_since = now;
            }
            if now >= deadline || now - quiet_since >= QUIET {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let left = self.in_flight();
        if left > 0 {
            tracing::warn!(
                left,
                seconds = limit.as_secs(),
                "drain deadline reached; these requests and streams are cut"
            );
        }
        self.0.stopped.send_replace(true);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(counter) = self.drain.0.in_flight.get(self.worker) {
            counter.0.fetch_sub(1, Relaxed);
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

        let stuck = Drain::new(1);
        let _held = stuck.enter(0);
        tokio::time::timeout(Duration::from_secs(5), stuck.run(Duration::from_millis(200))).await.unwrap();
        stuck.stopped().await;
    }
}
