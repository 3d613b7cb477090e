//! What workers ask: which table stands behind an address, and who has a peer's address.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustc_hash::FxHashMap;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use weir_xds::{Kind, Subscriptions, names};

use super::Streams;
use crate::{
    policy::Access,
    route::RouteTable,
    telemetry::{self, Service},
    upstream::{Backend, Cluster, Workload},
};

/// Most destinations known at one time. A pod that calls more in five minutes gets its oldest idle ones asked for again.
const MAX_ENTRIES: usize = 8192;
/// An entry that nobody has used for this long is forgotten, and its subscription ended.
const IDLE: Duration = Duration::from_secs(300);
/// A port on which clients stayed silent is taken as opaque at once for this long.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// How a destination's bytes are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, declared.
    Http,
    /// Never looked into, declared.
    Opaque,
    /// Decided by the first bytes.
    Detect,
}

impl Protocol {
    /// The word in dumps.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Opaque => "opaque",
            Self::Detect => "detect",
        }
    }
}

/// What stands behind an outbound destination.
#[derive(Debug)]
pub struct Outbound {
    /// How its bytes are treated.
    pub protocol: Protocol,
    /// Rules for HTTP.
    pub routes: Option<Arc<RouteCell>>,
    /// Where opaque streams go.
    pub streams: Option<Arc<Streams>>,
}

/// A route table by name.
#[derive(Debug)]
pub struct RouteCell {
    /// Name of the RouteConfiguration.
    pub name: Box<str>,
    table: ArcSwapOption<RouteTable<Backend>>,
}

impl RouteCell {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), table: ArcSwapOption::empty() }
    }

    /// The table now; a request keeps the one it began with.
    pub fn table(&self) -> Option<Arc<RouteTable<Backend>>> {
        self.table.load_full()
    }

    pub(super) fn set(&self, table: Option<RouteTable<Backend>>) {
        self.table.store(table.map(Arc::new));
    }
}

/// The pod's own ports.
#[derive(Debug, Default)]
pub struct Inbound {
    /// Declared ports; all others are [`Protocol::Detect`].
    pub ports: FxHashMap<u16, Arc<Port>>,
    /// What all other ports ask of connections.
    pub others: Access,
    /// Who this pod is; `None` as long as the control plane does not know it.
    pub own: Option<Arc<telemetry::Peer>>,
}

impl Inbound {
    /// What a port asks of connections.
    pub fn access(&self, port: u16) -> &Access {
        self.ports.get(&port).map_or(&self.others, |port| &port.access)
    }
}

/// One port of the pod.
#[derive(Debug)]
pub struct Port {
    /// How its bytes are treated.
    pub protocol: Protocol,
    /// The first Service that leads here.
    pub service: Arc<Service>,
    /// What it asks of connections.
    pub access: Access,
}

/// What the control plane has said of a destination.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Nothing yet.
    Waiting,
    /// It knows no such address.
    Unknown,
    /// It knows.
    Known(Arc<Outbound>),
}

/// What was learned of a destination's protocol, for a limited time.
#[derive(Debug, Default)]
pub struct Memory {
    http_seen: AtomicBool,
    silent_until: AtomicU64,
}

impl Memory {
    /// A client spoke HTTP.
    pub fn saw_http(&self) {
        self.http_seen.store(true, Relaxed);
        self.silent_until.store(0, Relaxed);
    }

    /// A client stayed silent. Not held against a port on which HTTP was seen: that client was just slow.
    pub fn saw_silence(&self, uptime: Duration) {
        if !self.http_seen.load(Relaxed) {
            self.silent_until.store(millis(uptime + SILENT_FOR), Relaxed);
        }
    }

    /// True if waiting for the client's first byte is not worth while.
    pub fn expects_silence(&self, uptime: Duration) -> bool {
        millis(uptime) < self.silent_until.load(Relaxed)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One destination. Held by connections while they are open.
#[derive(Debug)]
pub struct Entry {
    /// The address.
    pub address: SocketAddr,
    /// What was learned of its protocol.
    pub memory: Memory,
    answer: ArcSwap<Answer>,
    changed: Notify,
    last_used: AtomicU64,
}

impl Entry {
    /// What is known now.
    pub fn answer(&self) -> arc_swap::Guard<Arc<Answer>> {
        self.answer.load()
    }

    pub(super) fn set(&self, answer: Answer) {
        self.answer.store(Arc::new(answer));
        self.changed.notify_waiters();
    }
}

/// The pod at a peer's address, as far as it is known.
#[derive(Debug, Default)]
pub struct Peer {
    workload: ArcSwapOption<Workload>,
    answered: AtomicBool,
    changed: Notify,
    last_used: AtomicU64,
}

impl Peer {
    /// The workload, once the control plane has said it.
    pub fn workload(&self) -> Option<Arc<Workload>> {
        self.workload.load_full()
    }

    /// Waits until the control plane has said who this is, or that it does not know; at most `limit`.
    pub async fn said(&self, limit: Duration) {
        let said = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable(); // before the look, so that no change falls between
                if self.answered.load(Relaxed) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(limit, said).await;
    }

    pub(super) fn set(&self, workload: Option<Workload>) {
        self.workload.store(workload.map(Arc::new));
        self.answered.store(true, Relaxed);
        self.changed.notify_waiters();
    }
}

/// All that workers can ask.
#[derive(Debug)]
pub struct Store {
    outbound: RwLock<HashMap<SocketAddr, Arc<Entry>>>,
    peers: RwLock<HashMap<IpAddr, Arc<Peer>>>,
    inbound: ArcSwapOption<Inbound>,
    /// Clusters whose endpoints are checked, by name.
    checked: RwLock<HashMap<String, Weak<Cluster>>>,
    checked_changed: Notify,
    /// Number of times that it was set.
    inbound_version: watch::Sender<u64>,
    subscriptions: OnceLock<Subscriptions>,
    /// Why the control plane can not be asked now; `None` while it can.
    trouble: ArcSwapOption<String>,
    start: Instant,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            outbound: RwLock::default(),
            peers: RwLock::default(),
            inbound: ArcSwapOption::empty(),
            checked: RwLock::default(),
            checked_changed: Notify::new(),
            inbound_version: watch::Sender::new(0),
            subscriptions: OnceLock::new(),
            trouble: ArcSwapOption::from_pointee("not connected yet".to_owned()),
            start: Instant::now(),
        }
    }
}

impl Store {
    /// Connects the store with the control plane: asks for the pod's own ports, and from now on for whatever workers ask for.
    pub fn attach(&self, subscriptions: Subscriptions) {
        subscriptions.add(Kind::Listener, names::INBOUND.to_owned());
        for address in self.outbound.read().unwrap_or_else(PoisonError::into_inner).keys() {
            subscriptions.add(Kind::Listener, names::outbound(*address));
        }
        let _ = self.subscriptions.set(subscriptions);
    }

    /// Time since this store was made, the clock of [`Memory`].
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    /// The entry of a destination; asks the control plane where there is none yet. `None` if too many are in use.
    pub fn outbound(&self, address: SocketAddr) -> Option<Arc<Entry>> {
        let now = millis(self.uptime());
        if let Some(entry) = self.outbound.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            entry.last_used.store(now, Relaxed);
            return Some(entry.clone());
        }
        let mut entries = self.outbound.write().unwrap_or_else(PoisonError::into_inner);
        if !entries.contains_key(&address) && entries.len() >= MAX_ENTRIES {
            let idle = entries.values().filter(|entry| Arc::strong_count(entry) == 1);
            let oldest = idle.min_by_key(|entry| entry.last_used.load(Relaxed)).map(|entry| entry.address)?;
            entries.remove(&oldest);
            self.unsubscribe(Kind::Listener, names::outbound(oldest));
        }
        let entry = entries.entry(address).or_insert_with(|| {
            self.subscribe(Kind::Listener, names::outbound(address));
            Arc::new(Entry {
                address,
                memory: Memory::default(),
                answer: ArcSwap::from_pointee(Answer::Waiting),
                changed: Notify::new(),
                last_used: AtomicU64::new(0),
            })
        });
        entry.last_used.store(now, Relaxed);
        Some(entry.clone())
    }

    /// Waits for the control plane's word on a destination; [`Answer::Waiting`] after `limit`.
    pub async fn wait(&self, entry: &Entry, limit: Duration) -> Answer {
        let known = async {
            loop {
                let changed = entry.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable(); // before the look, so that no change falls between
                match entry.answer().as_ref() {
                    Answer::Waiting => {}
                    answer => return answer.clone(),
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, known).await.unwrap_or(Answer::Waiting)
    }

    /// Who has this address; asks the control plane where it is not known yet. `None` if too many are known.
    pub fn peer(&self, address: IpAddr) -> Option<Arc<Peer>> {
        let now = millis(self.uptime());
        if let Some(peer) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            peer.last_used.store(now, Relaxed);
            return Some(peer.clone());
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_ENTRIES {
            return None;
        }
        let peer = peers.entry(address).or_insert_with(|| {
            self.subscribe(Kind::Endpoints, names::workload(address));
            Arc::default()
        });
        peer.last_used.store(now, Relaxed);
        Some(peer.clone())
    }

    /// The pod's own ports; `None` until the control plane has said them.
    pub fn inbound(&self) -> Option<Arc<Inbound>> {
        self.inbound.load_full()
    }

    /// Tells when the pod's own ports, or what they ask of connections, have changed.
    pub fn inbound_changes(&self) -> watch::Receiver<u64> {
        self.inbound_version.subscribe()
    }

    /// Clusters whose endpoints are checked.
    pub fn checked(&self) -> Vec<Arc<Cluster>> {
        let checked = self.checked.read().unwrap_or_else(PoisonError::into_inner);
        checked.values().filter_map(Weak::upgrade).collect()
    }

    /// Ready when a cluster's endpoints are to be checked that were not, or the other way round.
    pub async fn checked_changes(&self) {
        self.checked_changed.notified().await;
    }

    pub(super) fn set_checked(&self, cluster: &Arc<Cluster>, is_checked: bool) {
        let mut checked = self.checked.write().unwrap_or_else(PoisonError::into_inner);
        checked.retain(|_, cluster| cluster.strong_count() > 0);
        let changed = if is_checked {
            checked.insert(cluster.name.to_string(), Arc::downgrade(cluster)).is_none()
        } else {
            checked.remove(&*cluster.name).is_some()
        };
        drop(checked);
        if changed {
            self.checked_changed.notify_one(); // one worker checks
        }
    }

    /// Why the control plane can not be asked now.
    pub fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        self.trouble.store(trouble.map(Arc::new));
    }

    pub(super) fn set_inbound(&self, inbound: Inbound) {
        self.inbound.store(Some(Arc::new(inbound)));
        self.inbound_version.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn entry(&self, address: SocketAddr) -> Option<Arc<Entry>> {
        self.outbound.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    pub(super) fn known_peer(&self, address: IpAddr) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// All entries, for dumps.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        let mut all: Vec<_> = self.outbound.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by_key(|entry| entry.address);
        all
    }

    pub(super) fn subscribe(&self, kind: Kind, name: String) {
        if let Some(subscriptions) = self.subscriptions.get() {
            subscriptions.add(kind, name);
        }
    }

    pub(super) fn unsubscribe(&self, kind: Kind, name: String) {
        if let Some(subscriptions) = self.subscriptions.get() {
            subscriptions.remove(kind, name);
        }
    }

    /// Forgets destinations and peers that nobody has used for a while; returns the destinations.
    pub(super) fn forget_idle(&self) -> Vec<SocketAddr> {
        let now = millis(self.uptime());
        let idle = |last: &AtomicU64| now.saturating_sub(last.load(Relaxed)) > millis(IDLE);
        let mut forgotten = Vec::new();
        self.outbound.write().unwrap_or_else(PoisonError::into_inner).retain(|address, entry| {
            let keep = Arc::strong_count(entry) > 1 || !idle(&entry.last_used);
            if !keep {
                // While the lock is held: nobody can ask for it again in between.
                self.unsubscribe(Kind::Listener, names::outbound(*address));
                forgotten.push(*address);
            }
            keep
        });
        self.peers.write().unwrap_or_else(PoisonError::into_inner).retain(|address, peer| {
            let keep = Arc::strong_count(peer) > 1 || !idle(&peer.last_used);
            if !keep {
                self.unsubscribe(Kind::Endpoints, names::workload(*address));
            }
            keep
        });
        forgotten
    }
}
