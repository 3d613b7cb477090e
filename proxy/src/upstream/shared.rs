//! HTTP/2 connections of one worker: each carries many requests at once, and another is made before requests queue.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, Connection, SendRequest},
};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::{
    Endpoint, EndpointState,
    making::{Making, Room},
    pool::Key,
};
use crate::net::{Conn, Deadline, Wire};

/// Requests on one connection before the next is made, where the peer does not want fewer.
const STREAMS: usize = 100;
/// Connections to one endpoint; then requests queue.
const CONNECTIONS: usize = 64;
/// Idle time of a connection. A server that ends one sooner says so, and what it has not taken is sent again.
const IDLE: Duration = Duration::from_secs(50);
/// While requests are under way a silent proxy of the mesh is asked whether it is there; applications dislike to be asked.
const PING: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const PONG: Duration = Duration::from_secs(10);
/// Bytes of one stream that the peer may send ahead.
pub const STREAM_WINDOW: u32 = 128 * 1024;
/// The same for all streams of a connection together: room for each of them, so that one that nobody reads stops no other.
pub const CONNECTION_WINDOW: u32 = 100 * STREAM_WINDOW;
/// Bytes of one stream that wait to be sent.
pub const SEND_BUFFER: usize = 128 * 1024;
/// Largest list of headers, decoded.
pub const HEADER_LIST: u32 = 64 * 1024;

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
    send: SendRequest<Bytes>,
    state: Rc<State>,
}

/// What a connection's requests and its own task know of it.
struct State {
    streams: Cell<usize>,
    gone: Cell<bool>,
    /// Since when there are no requests.
    idle: Cell<Instant>,
}

/// The right to send one request.
pub struct Lease {
    /// Where it is sent.
    pub send: SendRequest<Bytes>,
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
    async fn begin(conn: Conn, pings: bool) -> Result<Self, h2::Error> {
        let (send, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(STREAMS)
            .handshake::<_, Bytes>(Wire::to_server(conn))
            .await?;
        let state = Rc::new(State { streams: Cell::new(0), gone: Cell::new(false), idle: Cell::new(Instant::now()) });
        tokio::task::spawn_local(drive(connection, state.clone(), pings));
        Ok(Self { send, state })
    }

    /// False where the connection has ended, or the peer has said that it takes no more.
    fn is_alive(&mut self) -> bool {
        !self.state.gone.get()
            && !matches!(self.send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    fn lease(&self, reused: bool) -> Lease {
        self.state.streams.set(self.state.streams.get().saturating_add(1));
        Lease { send: self.send.clone(), reused, state: self.state.clone() }
    }
}

impl SharedPool {
    /// A connection to an endpoint (or the application) with room for a request. Where there can be no more connections, the one with the
    /// fewest requests: the request waits there for its turn.
    pub fn take(&self, key: Key) -> Option<Lease> {
        let mut lists = self.lists.borrow_mut();
        let list = lists.get_mut(&key)?;
        list.lines.retain_mut(Line::is_alive);
        // What a new connection takes is not known before its peer has said so: as many as the others.
        let takes = |line: &Line| line.send.current_max_send_streams();
        let most = list.lines.iter().map(takes).min().unwrap_or(STREAMS).min(STREAMS);
        let free = list.lines.iter().find(|line| line.state.streams.get() < most);
        let full = || list.lines.iter().min_by_key(|line| line.state.streams.get());
        let line = free.or_else(|| full().filter(|_| list.lines.len() >= CONNECTIONS))?;
        Some(line.lease(true))
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
    ///
    /// # Errors
    /// What the connection says.
    pub async fn begin(&self, key: Key, to: Option<&Endpoint>, conn: Conn) -> Result<Lease, h2::Error> {
        let line = Line::begin(conn, to.is_some_and(|to| to.mesh.is_some())).await?;
        let lease = line.lease(false);
        let mut lists = self.lists.borrow_mut();
        let list =
            lists.entry(key).or_insert_with(|| List { lines: Vec::new(), _state: to.map(|to| to.state.clone()) });
        list.lines.push(line);
        Ok(lease)
    }

    /// Lets connections go that have ended or were idle too long.
    pub fn sweep(&self, now: Instant) {
        self.lists.borrow_mut().retain(|_, list| {
            list.lines.retain_mut(|line| {
                let idle =
                    line.state.streams.get() == 0 && now.saturating_duration_since(line.state.idle.get()) >= IDLE;
                !idle && line.is_alive()
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
///
/// # Errors
/// What the connection says.
pub async fn alone(conn: Conn) -> Result<Lease, h2::Error> {
    Ok(Line::begin(conn, false).await?.lease(false))
}

/// Moves a connection's frames until it ends.
async fn drive(mut connection: Connection<Wire, Bytes>, state: Rc<State>, pings: bool) {
    let mut pinger = connection.ping_pong().filter(|_| pings);
    let mut connection = pin!(connection);
    let mut asks = Asks::default();
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended.map_err(|error| error.to_string()));
        }
        if let Some(pinger) = &mut pinger
            && asks.is_dead(cx, pinger, state.streams.get() > 0)
        {
            return Poll::Ready(Err(format!("no answer to a ping in {} s", PONG.as_secs())));
        }
        Poll::Pending
    })
    .await;
    state.gone.set(true);
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
    fn is_dead(&mut self, cx: &mut Context<'_>, pinger: &mut PingPong, busy: bool) -> bool {
        loop {
            if self.asked && pinger.poll_pong(cx).is_ready() {
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
            self.asked = busy && pinger.send_ping(Ping::opaque()).is_ok();
            self.deadline.set(if self.asked { PONG } else { PING });
        }
    }
}
