//! Upstream connections of one worker: idle ones are kept by endpoint, identity and protocol, and new ones are made here.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{net::TcpStream, time::Instant};

use super::{
    Breaker, Endpoint, EndpointState, Keeping,
    making::{Making, Room},
};
use crate::{
    net::{Conn, Io, Slot, connect},
    tls::{self, Alpn, HandshakeError, MeshTls},
};

/// Idle time of a connection to another proxy: below the time that an inbound listener of ours waits for the next request.
const IDLE_MESH: Duration = Duration::from_secs(50);
/// Idle time of a connection to an application: below the shortest keep-alive that common servers have (Node.js: 5 s), so that ours
/// ends first and no request meets a closing server.
const IDLE_APP: Duration = Duration::from_secs(3);
/// Idle connections kept for one endpoint and worker.
const IDLE_PER_ENDPOINT: usize = 128;

/// Why no connection could be made. Nothing of a request has been sent.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// TCP connect failed.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Endpoint.
        address: SocketAddr,
        /// The kernel's word.
        source: io::Error,
    },
    /// The handshake failed: wrong identity, untrusted certificate, or the peer's proxy refused (its application is not there).
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    /// This proxy has no certificate (yet).
    #[error("no certificate yet: nothing is sent in plaintext to {0}, which is in the mesh")]
    NoCertificate(SocketAddr),
}

/// Makes upstream connections.
#[derive(Debug, Clone)]
pub struct Connector {
    /// Our certificate and roots.
    pub tls: MeshTls,
}

impl Connector {
    /// Connects to an endpoint, by mutual TLS where it is in the mesh.
    ///
    /// # Errors
    /// [`Unreachable`]; the caller may try another endpoint, since nothing of a request was sent.
    pub async fn connect(&self, to: &Endpoint, alpn: Alpn, limit: Duration) -> Result<Conn, Unreachable> {
        let address = to.address;
        let config = match &to.mesh {
            None => None,
            Some(identity) => {
                Some((identity, self.tls.client_config(identity, alpn).ok_or(Unreachable::NoCertificate(address))?))
            }
        };
        let stream = connect(address, None, limit).await.map_err(|source| Unreachable::Connect { address, source })?;
        let Some((expected, config)) = config else { return Ok(Conn::new(Io::Plain(stream))) };
        let stream = tls::connect(config, stream, address, expected, limit.max(HANDSHAKE)).await?;
        Ok(Conn::new(Io::Client(Box::new(stream))))
    }

    /// Connects to the application of this pod, from the address by which the redirect knows the proxy's own calls.
    ///
    /// # Errors
    /// [`Unreachable::Connect`].
    pub async fn connect_app(&self, address: SocketAddr) -> Result<TcpStream, Unreachable> {
        let from: IpAddr = match address {
            SocketAddr::V4(_) => weir_mesh::names::APP_SOURCE_V4.into(),
            SocketAddr::V6(_) => weir_mesh::names::APP_SOURCE_V6.into(),
        };
        connect(address, Some(from), APP_CONNECT).await.map_err(|source| Unreachable::Connect { address, source })
    }
}

/// Least time for a handshake: the peer is there, and what it lacks is processor time. To give up sooner makes it do the same again.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long the pod's own application may take to accept.
const APP_CONNECT: Duration = Duration::from_secs(5);

/// What idle connections are kept under. An endpoint is known by its state, of which there is one for each address and identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// An endpoint's.
    Endpoint {
        /// Where its state lies.
        state: *const EndpointState,
        /// True in the mesh.
        mesh: bool,
    },
    /// The application's.
    App(SocketAddr),
}

impl Key {
    /// The key of an endpoint.
    pub fn of(endpoint: &Endpoint) -> Self {
        Self::Endpoint { state: Arc::as_ptr(&endpoint.state), mesh: endpoint.mesh.is_some() }
    }

    fn idle_limit(self) -> Duration {
        if matches!(self, Self::Endpoint { mesh: true, .. }) { IDLE_MESH } else { IDLE_APP }
    }
}

#[derive(Default)]
struct List {
    idle: VecDeque<Idle>,
    /// Keeps the address behind [`Key::Endpoint`] from being used again.
    _state: Option<Arc<EndpointState>>,
}

struct Idle {
    conn: Conn,
    since: Instant,
    /// No longer idle than this.
    limit: Duration,
}

/// A connection that is ready for a request.
pub struct Connected {
    /// The connection.
    pub conn: Conn,
    /// It has carried a request before, so that the peer may have closed it meanwhile.
    pub reused: bool,
}

/// Idle HTTP/1.1 connections of one worker.
#[derive(Default)]
pub struct Pool {
    lists: RefCell<FxHashMap<Key, List>>,
    making: Making<Key>,
}

impl Pool {
    /// The most recently used idle connection to an endpoint, if one is alive. Where its cluster limits its connections there has to be
    /// room for one that another cluster made.
    pub fn take(&self, to: &Endpoint, breaker: Option<&Breaker>, now: Instant) -> Option<Connected> {
        self.take_key(Key::of(to), breaker, now)
    }

    /// The same for the pod's own application.
    pub fn take_app(&self, address: SocketAddr, now: Instant) -> Option<Connected> {
        self.take_key(Key::App(address), None, now)
    }

    /// Room for making a connection to an endpoint; none while enough are being made.
    pub fn room(&self, to: &Endpoint) -> Option<Room<'_, Key>> {
        self.making.enter(Key::of(to))
    }

    /// Ready when there may be room for making a connection to an endpoint, or an idle one.
    pub async fn freed(&self, to: &Endpoint) {
        self.making.freed(Key::of(to)).await;
    }

    /// Ready when there may be an idle connection to an endpoint, whether anybody is making one or not.
    pub async fn given(&self, to: &Endpoint) {
        self.making.given(Key::of(to)).await;
    }

    /// How many wait by [`Self::given`].
    pub fn waiting(&self, to: &Endpoint) -> usize {
        self.making.waiting(Key::of(to))
    }

    /// Closes the oldest idle connection of a cluster: its slot, so that another can be made.
    pub fn spare(&self, of: &Breaker) -> Option<Slot> {
        let mut lists = self.lists.borrow_mut();
        let owned = |entry: &Idle| entry.conn.slot.as_ref().is_some_and(|slot| of.owns(slot));
        let found = lists.iter().flat_map(|(key, list)| {
            let entries = list.idle.iter().enumerate().filter(|(_, entry)| owned(entry));
            entries.map(move |(at, entry)| (entry.since, *key, at))
        });
        let (_, key, at) = found.min_by_key(|(since, ..)| *since)?;
        lists.get_mut(&key)?.idle.remove(at)?.conn.slot.take()
    }

    fn take_key(&self, key: Key, breaker: Option<&Breaker>, now: Instant) -> Option<Connected> {
        let mut lists = self.lists.borrow_mut();
        let list = lists.get_mut(&key)?;
        for at in (0..list.idle.len()).rev() {
            let Some(entry) = list.idle.get_mut(at) else { continue };
            if !entry.is_usable(now) {
                list.idle.remove(at);
            } else if breaker.is_none_or(|breaker| breaker.adopts(&mut entry.conn.slot)) {
                return list.idle.remove(at).map(|entry| Connected { conn: entry.conn, reused: true });
            }
        }
        None
    }

    /// Keeps a connection for the next request to this endpoint, as long as its cluster wants.
    pub fn give(&self, to: &Endpoint, mut conn: Conn, keeping: Keeping, now: Instant) {
        conn.carried = conn.carried.saturating_add(1);
        if keeping.requests.is_some_and(|most| conn.carried >= most) {
            drop(conn);
            self.making.tell_one(Key::of(to));
            return;
        }
        self.give_key(Key::of(to), Some(&to.state), conn, keeping.idle, now);
    }

    /// The same for the pod's own application.
    pub fn give_app(&self, address: SocketAddr, conn: Conn, now: Instant) {
        self.give_key(Key::App(address), None, conn, None, now);
    }

    fn give_key(
        &self,
        key: Key,
        state: Option<&Arc<EndpointState>>,
        mut conn: Conn,
        limit: Option<Duration>,
        now: Instant,
    ) {
        conn.release();
        let longest = key.idle_limit();
        let mut lists = self.lists.borrow_mut();
        let list = lists.entry(key).or_insert_with(|| List { idle: VecDeque::new(), _state: state.cloned() });
        if list.idle.len() >= IDLE_PER_ENDPOINT {
            list.idle.pop_front();
        }
        let limit = limit.map_or(longest, |limit| limit.min(longest));
        list.idle.push_back(Idle { conn, since: now, limit });
        self.making.tell_one(key);
    }

    /// Closes what has been idle too long or was closed by the peer.
    pub fn sweep(&self, now: Instant) {
        self.lists.borrow_mut().retain(|_, list| {
            list.idle.retain_mut(|entry| entry.is_usable(now));
            !list.idle.is_empty()
        });
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.lists.borrow_mut().clear();
    }

    /// Number of idle connections.
    pub fn len(&self) -> usize {
        self.lists.borrow().values().map(|list| list.idle.len()).sum()
    }

    /// True without idle connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Idle {
    fn is_usable(&mut self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < self.limit && self.conn.is_quiet()
    }
}
