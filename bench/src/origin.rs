//! The server behind the proxies: HTTP/1.1, every answer 1 kB, one thread.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use crate::lab::Netns;

/// Bytes in the body of every answer.
pub const BODY: usize = 1024;
/// A path that begins so goes on with how many milliseconds the answer waits: long enough that many requests are under way at once. All that wait
/// at one time wait equally long.
const HOLD: &[u8] = b"GET /hold/";
/// How often it looks whether it should stop, in milliseconds.
const TICK_MS: u16 = 20;
const LISTENER: u64 = u64::MAX;

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Listens on `address`, in a network namespace where one is given.
    ///
    /// # Errors
    /// Where the address can not be had.
    pub fn start(address: SocketAddr, netns: Option<&Netns>) -> anyhow::Result<Self> {
        let bind = || TcpListener::bind(address).with_context(|| format!("listening on {address}"));
        let listener = match netns {
            Some(netns) => netns.run(bind)?,
            None => bind()?,
        };
        let address = listener.local_addr()?;
        let mut server = Server::new(listener)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("origin".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = server.turn() {
                    eprintln!("the origin fails: {error:#}");
                    return;
                }
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: TcpListener,
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    held: VecDeque<(Instant, usize)>,
    events: Vec<EpollEvent>,
    answer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
}

fn held(request: &[u8]) -> Option<Duration> {
    let digits = request.strip_prefix(HOLD)?.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok().map(Duration::from_millis)
}

impl Server {
    fn new(listener: TcpListener) -> anyhow::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {BODY}\r\n\r\n")
                .into_bytes();
        answer.resize(answer.len() + BODY, b'w');
        Ok(Self {
            listener,
            epoll,
            connections: Vec::new(),
            free: Vec::new(),
            held: VecDeque::new(),
            events: vec![EpollEvent::empty(); 256],
            answer,
        })
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let ready = match self.epoll.wait(&mut self.events, EpollTimeout::from(TICK_MS)) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let now = Instant::now();
        while let Some((due, index)) = self.held.front().copied()
            && due <= now
        {
            self.held.pop_front();
            self.answer(index);
        }
        for event in 0..ready {
            let Some(token) = self.events.get(event).map(EpollEvent::data) else { continue };
            if token == LISTENER { self.accept()? } else { self.read(usize::try_from(token).unwrap_or(usize::MAX)) }
        }
        Ok(())
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let index = self.free.pop().unwrap_or(self.connections.len());
                    self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
                    let connection = Some(Connection { stream, request: Vec::with_capacity(1024) });
                    match self.connections.get_mut(index) {
                        Some(slot) => *slot = connection,
                        None => self.connections.push(connection),
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else { return };
        let mut buffer = [0; 4096];
        match connection.stream.read(&mut buffer) {
            Ok(len) if len > 0 => {
                connection.request.extend_from_slice(buffer.get(..len).unwrap_or_default());
                if connection.request.ends_with(b"\r\n\r\n") {
                    let hold = held(&connection.request);
                    connection.request.clear();
                    match hold {
                        Some(hold) => self.held.push_back((Instant::now() + hold, index)),
                        None => self.answer(index),
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.close(index),
        }
    }

    fn answer(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else { return };
        if !matches!(connection.stream.write(&self.answer), Ok(len) if len == self.answer.len()) {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        if self.connections.get_mut(index).and_then(Option::take).is_some() {
            self.held.retain(|(_, held)| *held != index);
            self.free.push(index);
        }
    }
}
