//! Well-behaved neighbours of somebody who attacks: they ask on steadily, and none of them may notice.
//!
//! What is excluded are proxies that wait for an attacker, or grow with it. The bounds are wide, for machines that are busy with other
//! tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::task::LocalSet;

use crate::{
    Client, Netns, Pod,
    http2::{H2Client, grpc},
    until,
};

/// More than before an attack that a proxy may hold in memory, in kB, where the attack itself has a right to no more.
pub const MORE_MEMORY: usize = 24 * 1024;
/// Longest that half of the requests may take, and that nearly all may.
const MEDIAN: Duration = Duration::from_millis(60);
const NEARLY_ALL: Duration = Duration::from_millis(900);
/// Requests of each neighbour before, and while, somebody attacks.
const REQUESTS: usize = 60;
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(3);

/// Asks once; the error says what came instead of an answer.
pub type Ask = Box<dyn FnMut() -> Result<(), String>>;

/// A neighbour: its name, and how it connects.
pub struct Neighbour {
    way: &'static str,
    connect: Arc<dyn Fn() -> Ask + Send + Sync>,
}

impl Neighbour {
    /// Asks by HTTP/1.1 for `/steady`.
    pub fn http1(way: &'static str, netns: &Netns, to: std::net::SocketAddr) -> Self {
        let netns = netns.clone();
        let connect = move || -> Ask {
            let mut connection = Client::new(netns.connect(to).unwrap());
            Box::new(move || match connection.try_get("/steady") {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            })
        };
        Self { way, connect: Arc::new(connect) }
    }

    /// Calls `/steady` by gRPC.
    pub fn http2(way: &'static str, netns: &Netns, to: std::net::SocketAddr) -> Self {
        let netns = netns.clone();
        let connect = move || -> Ask {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = LocalSet::new();
            let mut client = local.block_on(&runtime, H2Client::connect(&netns, to)).unwrap();
            Box::new(move || {
                let reply = local.block_on(&runtime, client.ask(grpc("/steady", &[]), bytes::Bytes::new()));
                match reply {
                    Ok(reply) if (reply.status, reply.grpc()) == (200, Some(0)) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
        };
        Self { way, connect: Arc::new(connect) }
    }
}

/// Attacks, and fails where one of the neighbours is not answered, or much later than before, or where one of the proxies holds more
/// than `more` kB in addition afterwards.
pub fn calm(what: &str, proxies: &[&Pod], neighbours: &[Neighbour], more: usize, attack: impl FnOnce()) {
    let resident = || proxies.iter().map(|pod| pod.proxy(|proxy| proxy.resident())).collect::<Vec<_>>();
    let others: Vec<Steady> = neighbours.iter().map(Steady::start).collect();
    others.iter().for_each(|one| one.more(REQUESTS));
    let before = resident();
    let quiet: Vec<usize> = others.iter().map(Steady::count).collect();
    attack();
    others.iter().for_each(|one| one.more(REQUESTS));
    let after = resident();
    for (one, quiet) in others.into_iter().zip(quiet) {
        let way = one.way;
        let (took, failed) = one.stop();
        assert!(failed.is_empty(), "{what}, {way}: {} failed: {:?}", failed.len(), failed.first());
        let figures = |part: &[Duration]| {
            let mut sorted = part.to_vec();
            sorted.sort();
            (sorted[sorted.len() / 2], sorted[sorted.len() * 99 / 100])
        };
        let (calm, loud) = (figures(&took[..quiet]), figures(&took[quiet..]));
        eprintln!(
            "{what}, {way}: median and 99 % {calm:?} before, {loud:?} meanwhile ({} requests)",
            took.len() - quiet
        );
        assert!(loud.0 < MEDIAN.max(calm.0 * 10), "{what}, {way}: half of the others' requests took {:?}", loud.0);
        assert!(loud.1 < NEARLY_ALL.max(calm.1 * 10), "{what}, {way}: some of the others' requests took {:?}", loud.1);
    }
    for (pod, (before, after)) in proxies.iter().zip(before.into_iter().zip(after)) {
        let grown = after.saturating_sub(before) / 1024;
        eprintln!("{what}: the proxy of {} holds {grown} kB more", pod.name);
        assert!(grown < more, "{what}: the proxy of {} holds {grown} kB more", pod.name);
    }
}

/// A neighbour that asks again and again on one connection.
struct Steady {
    way: &'static str,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: JoinHandle<(Vec<Duration>, Vec<String>)>,
}

impl Steady {
    fn start(neighbour: &Neighbour) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ended, counted, connect) = (stop.clone(), done.clone(), neighbour.connect.clone());
        let thread = std::thread::spawn(move || {
            let (mut took, mut failed) = (Vec::new(), Vec::new());
            let mut ask = connect();
            while !ended.load(Relaxed) {
                let start = Instant::now();
                if let Err(error) = ask() {
                    failed.push(error);
                    ask = connect();
                }
                took.push(start.elapsed());
                counted.fetch_add(1, Relaxed);
                std::thread::sleep(PAUSE);
            }
            (took, failed)
        });
        Self { way: neighbour.way, stop, done, thread }
    }

    fn count(&self) -> usize {
        self.done.load(Relaxed)
    }

    fn more(&self, requests: usize) {
        let goal = self.count() + requests;
        until("the others are answered", || (self.count() >= goal || self.thread.is_finished()).then_some(()));
    }

    fn stop(self) -> (Vec<Duration>, Vec<String>) {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}
