//! HTTP/2 connections of one worker: each carries many requests at once, and another is made before requests queue.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::{
    Breaker, Endpoint, EndpointState, Keeping,
    making::{Making, Room},
    pool::Key,
};
use crate::{
    http::h2::{Requests, STREAMS},
    net::{Conn, Deadline, Frames, Slot},
};

/// Connections to one endpoint; then requests queue.
const CONNECTIONS: usize = 64;
/// Idle time of a connection. A server that ends one sooner says so, and what it has not taken is sent again.
const IDLE: Duration = Duration::from_secs(50);
/// While requests are under way a silent proxy of the mesh is asked whether it is there; applications dislike to be asked.
const PING: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const PONG: Duration = Duration::from_secs(10);
/// HTTP/2 connections of one worker.
pub struct SharedPool {
    lists: RefCell<FxHashMap<Key, List>>,
    making: Making<Key>,
}

impl Default for SharedPool {
    fn default() -> Self {
        // All who wait for a connection go on over the same one.
        Self { lists: RefCell::default(), making: Making::at_once(1) }
    }
}

#[derive(Default)]
struct List {
    lines: Vec<Line>,
    /// Keeps the address behind [`Key::Endpoint`] from being used again.
    _state: Option<Arc<EndpointState>>,
}

struct Line {
    send: Requests,
    state: Rc<State>,
}

/// What a connection's requests and its own task know of it.
struct State {
    streams: Cell<usize>,
    /// Since when there are no requests.
    idle: Cell<Instant>,
    /// Requests that it has carried.
    carried: Cell<u32>,
    keeping: Keeping,
    /// Its place among all of a cluster's connections, where these are limited.
    slot: Option<Slot>,
}

/// The right to send one request.
pub struct Lease {
    /// Where it is sent.
    pub send: Requests,
    /// The connection has carried requests before.
    pub reused: bool,
    state: Rc<State>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.state.streams.set(self.state.streams.get().saturating_sub(1));
        self.state.idle.set(Instant::now());
    }
}

impl Line {
    /// Begins HTTP/2 on a new connection. Where it `pings`, a silent peer is found out.
    fn begin(mut conn: Conn, pings: bool, keeping: Keeping) -> Self {
        let slot = conn.slot.take();
        let (send, frames) = Frames::to_server(conn);
        let (streams, idle, carried) = (Cell::new(0), Cell::new(Instant::now()), Cell::new(0));
        let state = Rc::new(State { streams, idle, carried, keeping, slot });
        tokio::task::spawn_local(drive(frames, state.clone(), pings));
        Self { send, state }
    }

    /// True while it may carry another request.
    fn is_open(&self) -> bool {
        let worn = self.state.keeping.requests.is_some_and(|most| self.state.carried.get() >= most);
        self.send.is_open() && !worn
    }

    fn lease(&self, reused: bool) -> Lease {
        self.state.carried.set(self.state.carried.get().saturating_add(1));
        self.state.streams.set(self.state.streams.get().saturating_add(1));
        Lease { send: self.send.clone(), reused, state: self.state.clone() }
    }
}

impl SharedPool {
    /// A connection to an endpoint (or the application) with room for a request. Where there can be no more connections, the one with the
    /// fewest requests: the request waits there for its turn.
    pub fn take(&self, key: Key, limits: Option<&Breaker>) -> Option<Lease> {
        let mut lists = self.lists.borrow_mut();
        let list = lists.get_mut(&key)?;
        list.lines.retain(Line::is_open);
        // Those that a limit does not count are another cluster's, or from before it.
        let keeps = |line: &&Line| limits.is_none_or(|limits| limits.keeps(line.state.slot.as_ref()));
        let mine = || list.lines.iter().filter(keeps);
        // What a new connection takes is not known before its peer has said so: as many as the others.
        let most = mine().map(|line| line.send.takes()).min().unwrap_or(STREAMS as usize);
        let free = mine().find(|line| line.state.streams.get() < most);
        let full = || mine().min_by_key(|line| line.state.streams.get());
        let line = free.or_else(|| full().filter(|_| mine().count() >= CONNECTIONS))?;
        Some(line.lease(true))
    }

    /// Where there may be no more connections: the one with the fewest requests, on which a request waits for its turn.
    pub fn share(&self, key: Key) -> Option<Lease> {
        let lists = self.lists.borrow();
        let open = lists.get(&key)?.lines.iter().filter(|line| line.is_open());
        Some(open.min_by_key(|line| line.state.streams.get())?.lease(true))
    }

    /// Lets go of the cluster's connection with the fewest requests, so that another can be made once these have their answers; false where
    /// there is none.
    pub fn spare(&self, of: &Breaker) -> bool {
        let mut lists = self.lists.borrow_mut();
        let owned = |line: &Line| line.state.slot.as_ref().is_some_and(|slot| of.owns(slot));
        let found = lists.iter().flat_map(|(key, list)| {
            let lines = list.lines.iter().enumerate().filter(|(_, line)| owned(line));
            lines.map(move |(at, line)| (line.state.streams.get(), *key, at))
        });
        let Some((_, key, at)) = found.min_by_key(|(streams, ..)| *streams) else { return false };
        lists.get_mut(&key).is_some_and(|list| {
            list.lines.remove(at);
            true
        })
    }

    /// Room for making a connection; none while one is being made.
    pub fn room(&self, key: Key) -> Option<Room<'_, Key>> {
        self.making.enter(key)
    }

    /// Ready when there may be a connection, or room for making one.
    pub async fn freed(&self, key: Key) {
        self.making.freed(key).await;
    }

    /// Begins HTTP/2 on a new connection, which carries the first request at once.
    pub fn begin(&self, key: Key, to: Option<&Endpoint>, conn: Conn, keeping: Keeping) -> Lease {
        let line = Line::begin(conn, to.is_some_and(|to| to.mesh.is_some()), keeping);
        let lease = line.lease(false);
        let mut lists = self.lists.borrow_mut();
        let list =
            lists.entry(key).or_insert_with(|| List { lines: Vec::new(), _state: to.map(|to| to.state.clone()) });
        list.lines.push(line);
        lease
    }

    /// Lets connections go that have ended or were idle too long.
    pub fn sweep(&self, now: Instant) {
        self.lists.borrow_mut().retain(|_, list| {
            list.lines.retain(|line| {
                let limit = line.state.keeping.idle.map_or(IDLE, |limit| limit.min(IDLE));
                let idle =
                    line.state.streams.get() == 0 && now.saturating_duration_since(line.state.idle.get()) >= limit;
                !idle && line.is_open()
            });
            !list.lines.is_empty()
        });
    }

    /// Number of connections.
    pub fn len(&self) -> usize {
        self.lists.borrow().values().map(|list| list.lines.len()).sum()
    }

    /// True without connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The right to send one request over a connection that nobody else uses, and that ends with it.
pub fn alone(conn: Conn) -> Lease {
    Line::begin(conn, false, Keeping::default()).lease(false)
}

/// Moves a connection's frames until it ends.
async fn drive(mut frames: Frames, state: Rc<State>, pings: bool) {
    let mut asks = Asks::default();
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = frames.poll(cx) {
            return Poll::Ready(ended.map_err(|error| error.to_string()));
        }
        if pings && asks.is_dead(cx, &frames, state.streams.get() > 0) {
            return Poll::Ready(Err(format!("no answer to a ping in {} s", PONG.as_secs())));
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(error, "an HTTP/2 connection to an endpoint ended");
    }
}

/// Asks the peer from time to time whether it is there.
#[derive(Default)]
struct Asks {
    deadline: Deadline,
    asked: bool,
}

impl Asks {
    fn is_dead(&mut self, cx: &mut Context<'_>, frames: &Frames, busy: bool) -> bool {
        loop {
            if self.asked && frames.session().has_answered() {
                self.asked = false;
                self.deadline.set(PING);
            }
            if self.deadline.is_clear() {
                self.deadline.set(PING);
            }
            if self.deadline.poll(cx).is_pending() {
                return false;
            }
            if self.asked {
                return true;
            }
            self.asked = busy;
            if busy {
                frames.session().ping();
                cx.waker().wake_by_ref(); // to write it
            }
            self.deadline.set(if self.asked { PONG } else { PING });
        }
    }
}
