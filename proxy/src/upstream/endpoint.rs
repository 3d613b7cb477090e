//! An endpoint, what is known of the workload behind it, and what was learned from calling it.

use std::{
    collections::HashMap,
    hash::Hash,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use weir_mesh::Identity;

use super::Standing;
use crate::telemetry::{Peer, PeerFields};

/// First pause after a refused connection.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause after refused connections in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Share of a new sample in the latency average: about the last ten requests count.
const EWMA_NEW: f32 = 0.1;
/// Latency assumed of an endpoint that nobody has called yet, in microseconds; a floor, so that a new one is not flooded.
const FIRST_LATENCY: f32 = 1000.0;

/// The workload behind an address.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Pod name.
    pub pod: Box<str>,
    /// Identity that the peer must prove; none outside the mesh.
    pub identity: Option<Identity>,
    /// Who it is, in labels.
    pub peer: Arc<Peer>,
    /// It has a proxy of the mesh.
    pub mesh: bool,
}

/// One endpoint of a cluster, as configured now.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Address.
    pub address: SocketAddr,
    /// Identity to demand by mutual TLS; `None`: plaintext, the endpoint has no proxy.
    pub mesh: Option<Identity>,
    /// Load-balancing weight, at least 1.
    pub weight: u32,
    /// Others with a higher number are called when too few of these are well.
    pub priority: u32,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// False where the configuration says that it is not well.
    pub healthy: bool,
    /// Who it is.
    pub workload: Workload,
    /// What was learned of it.
    pub state: Arc<EndpointState>,
    /// What its cluster thinks of it.
    pub standing: Arc<Standing>,
}

/// A place where endpoints are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locality {
    /// Region, zone and sub-zone.
    pub name: Box<str>,
    /// Its part of the requests, where places have one.
    pub weight: u32,
}

impl Default for Locality {
    fn default() -> Self {
        Self { name: "".into(), weight: 1 }
    }
}

/// What was learned of an endpoint, by all workers.
#[derive(Debug)]
#[repr(align(128))]
pub struct EndpointState {
    in_flight: AtomicU32,
    latency_us: AtomicU32,
    refused: AtomicU32,
    avoid_until: AtomicU64,
    epoch: Instant,
}

impl Default for EndpointState {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            latency_us: AtomicU32::new(FIRST_LATENCY.to_bits()),
            refused: AtomicU32::new(0),
            avoid_until: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }
}

impl EndpointState {
    /// Expected wait of one more request: latency times the requests already there.
    pub fn cost(&self) -> f32 {
        let waiting = u16::try_from(self.in_flight.load(Relaxed)).unwrap_or(u16::MAX);
        f32::from_bits(self.latency_us.load(Relaxed)) * (f32::from(waiting) + 1.0)
    }

    /// Requests (or opaque connections) there now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }

    /// A request was answered; `latency` is the time to the first byte of the answer.
    pub fn answered(&self, latency: Duration) {
        let sample = (latency.as_secs_f32() * 1e6).max(1.0);
        let old = f32::from_bits(self.latency_us.load(Relaxed));
        // Peak EWMA (Twitter Finagle): a slower answer counts at once, a faster one little by little.
        let new = if sample > old { sample.min(old * 8.0) } else { old + (sample - old) * EWMA_NEW };
        self.latency_us.store(new.to_bits(), Relaxed);
    }

    /// A connection was made: nothing is held against the endpoint any more.
    pub fn reached(&self) {
        if self.refused.load(Relaxed) != 0 {
            self.refused.store(0, Relaxed);
            self.avoid_until.store(0, Relaxed);
        }
    }

    /// A connection was refused: others are preferred for a while, longer each time in a row.
    pub fn unreachable(&self, now: Instant) {
        let times = self.refused.fetch_add(1, Relaxed).min(10);
        let pause = FIRST_PAUSE.saturating_mul(1 << times).min(LONGEST_PAUSE);
        self.avoid_until.store(self.millis(now + pause), Relaxed);
    }

    /// The endpoint asks to be left alone: others are preferred for so long.
    pub fn leave_alone(&self, now: Instant, pause: Duration) {
        self.avoid_until.fetch_max(self.millis(now + pause), Relaxed);
    }

    /// True while others are preferred.
    pub fn is_avoided(&self, now: Instant) -> bool {
        match self.avoid_until.load(Relaxed) {
            0 => false,
            until => self.millis(now) < until,
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Counts a request at an endpoint for as long as it lives.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// What outlives a change of configuration.
#[derive(Debug, Default)]
pub struct Registry {
    /// Keyed by address and identity, so that another pod on a reused address starts anew.
    states: Known<(SocketAddr, Option<Identity>), EndpointState>,
    /// By cluster besides.
    standings: Known<(Box<str>, SocketAddr, Option<Identity>), Standing>,
    /// Label sets are made once for each workload: metrics know them by their id.
    peers: Known<PeerFields, Peer>,
}

type Known<K, V> = Mutex<HashMap<K, Weak<V>>>;

impl Registry {
    /// The state of this endpoint, made where nobody holds one.
    pub fn state(&self, address: SocketAddr, identity: Option<&Identity>) -> Arc<EndpointState> {
        find(&self.states, (address, identity.cloned()), |_| Arc::default())
    }

    /// What a cluster thinks of this endpoint, made where nobody holds it.
    pub fn standing(&self, cluster: &str, address: SocketAddr, identity: Option<&Identity>) -> Arc<Standing> {
        find(&self.standings, (cluster.into(), address, identity.cloned()), |_| Arc::default())
    }

    /// The labels of this workload, made where nobody holds them.
    pub fn peer(&self, fields: PeerFields) -> Arc<Peer> {
        find(&self.peers, fields, |fields| Peer::new(fields.clone()))
    }
}

fn find<K: Eq + Hash, V>(known: &Known<K, V>, key: K, make: impl FnOnce(&K) -> Arc<V>) -> Arc<V> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(value) = known.get(&key).and_then(Weak::upgrade) {
        return value;
    }
    if known.len() == known.capacity() {
        known.retain(|_, value| value.strong_count() > 0); // before it grows, so that departed pods do not add up
    }
    let value = make(&key);
    known.insert(key, Arc::downgrade(&value));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_and_follows_the_identity() {
        let registry = Registry::default();
        let address = "198.18.0.1:80".parse().unwrap();
        let first = registry.state(address, None);
        assert!(Arc::ptr_eq(&first, &registry.state(address, None)));
        let other: Identity = "spiffe://d/ns/a/sa/b".parse().unwrap();
        assert!(!Arc::ptr_eq(&first, &registry.state(address, Some(&other))));
        drop(first);
        registry.state(address, None).answered(Duration::from_secs(1));
        assert!(registry.state(address, None).cost() < 1001.0, "a dropped state was kept");
    }

    #[test]
    fn a_refusing_endpoint_is_avoided_longer_each_time() {
        let state = EndpointState::default();
        let start = Instant::now();
        state.unreachable(start);
        assert!(state.is_avoided(start));
        assert!(!state.is_avoided(start + FIRST_PAUSE));
        state.unreachable(start);
        assert!(state.is_avoided(start + FIRST_PAUSE));
        for _ in 0..50 {
            state.unreachable(start);
        }
        assert!(!state.is_avoided(start + LONGEST_PAUSE));
        state.reached();
        assert!(!state.is_avoided(start));
    }

    #[test]
    fn one_slow_answer_does_not_bury_an_endpoint() {
        let state = EndpointState::default();
        state.answered(Duration::from_secs(60));
        assert!(state.cost() <= 8.0 * FIRST_LATENCY);
        let held = Arc::new(state);
        let guard = held.enter();
        assert_eq!(held.in_flight(), 1);
        drop(guard);
        assert_eq!(held.in_flight(), 0);
    }
}
