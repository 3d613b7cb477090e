//! Requests without end, while something else happens.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{http::Client, netns::Netns, pod::Pod, until};

const PAUSE: Duration = Duration::from_millis(1);
/// How long an answer may take, where a test does not say it.
const LIMIT: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were answered with 200, by the pod that answered.
    pub answered: BTreeMap<String, usize>,
    /// What failed.
    pub failed: Vec<String>,
}

impl Outcome {
    /// Requests that were answered with 200.
    pub fn total(&self) -> usize {
        self.answered.values().sum()
    }

    /// Failed requests in a hundred.
    pub fn failed_percent(&self) -> f64 {
        let failed = self.failed.len() as f64;
        100.0 * failed / (failed + self.total() as f64).max(1.0)
    }
}

/// Running requests: half of the threads send GET, the others POST; each uses a connection for 50 requests, and pauses between
/// requests, so that other tests have the machine's processors too.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// Starts to send from a pod.
    pub fn start(pod: &Pod, to: SocketAddr, threads: usize) -> Self {
        Self::within(pod, to, threads, LIMIT)
    }

    /// The same of clients that take a request for failed when it has no answer within a time.
    pub fn within(pod: &Pod, to: SocketAddr, threads: usize, limit: Duration) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = (0..threads)
            .map(|number| {
                let (netns, stop, done) = (pod.netns.clone(), stop.clone(), done.clone());
                std::thread::spawn(move || send(&netns, to, number % 2 == 1, limit, &stop, &done))
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Requests so far, failed ones included.
    pub fn done(&self) -> usize {
        self.done.load(Relaxed)
    }

    /// Waits until this many more have been sent.
    pub fn more(&self, requests: usize) {
        let goal = self.done() + requests;
        until("requests go on", || (self.done() >= goal).then_some(()));
    }

    /// Stops, and tells.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Relaxed);
        let mut all = Outcome::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            for (pod, count) in one.answered {
                *all.answered.entry(pod).or_default() += count;
            }
            all.failed.extend(one.failed);
        }
        all
    }
}

fn send(netns: &Netns, to: SocketAddr, post: bool, limit: Duration, stop: &AtomicBool, done: &AtomicUsize) -> Outcome {
    let mut outcome = Outcome::default();
    let mut client: Option<(Client, usize)> = None;
    while !stop.load(Relaxed) {
        let (mut connection, used) = match client.take() {
            Some((connection, used)) if used < 50 => (connection, used),
            _ => match netns.connect(to) {
                Ok(stream) => {
                    let client = Client::new(stream);
                    client.patience(limit);
                    (client, 0)
                }
                Err(error) => {
                    outcome.failed.push(format!("connect: {error}"));
                    done.fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            },
        };
        let response = if post { connection.try_post("/load", b"some body") } else { connection.try_get("/load") };
        done.fetch_add(1, Relaxed);
        std::thread::sleep(PAUSE);
        match response {
            Ok(response) if response.status == 200 => {
                let pod = response.header("x-pod").unwrap_or_default().to_owned();
                *outcome.answered.entry(pod).or_default() += 1;
                if !response.closes() {
                    client = Some((connection, used + 1));
                }
            }
            Ok(response) => outcome.failed.push(format!("{} {}", response.head, response.text())),
            Err(error) => outcome.failed.push(format!("after {used} requests: {error}")),
        }
    }
    outcome
}
