//! The load generator: one thread, many HTTP/1.1 connections, every response checked.
//!
//! Closed loop: every connection sends its next request as soon as it has its answer. Open loop: requests are due at fixed
//! times and take whichever connection is free; their latency counts from the time they were due, so that a proxy that holds
//! requests up does not escape by being asked less ("coordinated omission").

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        time::TimeSpec,
    },
};

use crate::{histogram::Histogram, origin::BODY};

/// Longest wait for a response.
const LIMIT: Duration = Duration::from_secs(10);
/// Largest head of a response.
const MAX_HEAD: usize = 8 * 1024;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As soon as a connection is free.
    Closed,
    /// So many every second.
    PerSecond(u32),
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Latencies, one for each request.
    pub latencies: Histogram,
    /// From the first request to the last response.
    pub elapsed: Duration,
    /// Connections that the other side closed between two requests; they were opened again.
    pub reopened: u64,
}

impl Outcome {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Open connections.
#[derive(Debug)]
pub struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    epoll: Epoll,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// When its request counts from; `None`: no request is under way.
    asked: Option<Instant>,
    answer: Vec<u8>,
}

enum Progress {
    More,
    Done,
    Closed,
}

impl Load {
    /// Opens `connections` connections to `address` from the calling thread's network namespace.
    ///
    /// # Errors
    /// Where one is not accepted.
    pub fn connect(address: SocketAddr, path: &str, connections: usize) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut load = Self {
            address,
            request: request(address, path),
            epoll,
            connections: Vec::with_capacity(connections),
            idle: VecDeque::with_capacity(connections),
        };
        for index in 0..connections {
            let stream = load.open(index)?;
            load.connections.push(Connection { stream, asked: None, answer: Vec::with_capacity(4096) });
            load.idle.push_back(index);
        }
        Ok(load)
    }

    fn open(&self, index: usize) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, LIMIT)
            .with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        Ok(stream)
    }

    /// Sends one request on every connection at once and waits for all answers.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub fn once(&mut self) -> anyhow::Result<Outcome> {
        self.run(Pace::Closed, Duration::ZERO)
    }

    /// Sends a request for this path on every connection, each when the one before has its answer.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub fn one_by_one(&mut self, path: &str) -> anyhow::Result<()> {
        let usual = std::mem::replace(&mut self.request, request(self.address, path));
        let mut result = Ok(());
        for index in 0..self.connections.len() {
            result = self.alone(index);
            if result.is_err() {
                break;
            }
        }
        self.request = usual;
        result
    }

    fn alone(&mut self, index: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut events = [EpollEvent::empty(); 16];
        self.send(index, start)?;
        loop {
            ensure!(start.elapsed() < LIMIT, "no response within {LIMIT:?}");
            self.wait(&mut events, LIMIT)?;
            match self.receive(index)? {
                Progress::Done => break,
                Progress::More => {}
                Progress::Closed => bail!("the connection was closed during a request"),
            }
        }
        if let Some(connection) = self.connections.get_mut(index) {
            connection.asked = None;
        }
        Ok(())
    }

    /// Sends requests for `duration` (at least one a connection in a closed loop) and waits for the last answer.
    ///
    /// # Errors
    /// Where any response is wrong, late or missing.
    pub fn run(&mut self, pace: Pace, duration: Duration) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let end = start + duration;
        let mut outcome = Outcome::default();
        let mut due: VecDeque<Instant> = VecDeque::new();
        let mut next = start;
        if pace == Pace::Closed {
            due.resize(self.connections.len(), start);
        }
        let mut events = vec![EpollEvent::empty(); 256];
        let mut last_answer = start;
        loop {
            let now = Instant::now();
            if let Pace::PerSecond(rate) = pace {
                while next <= now && next < end {
                    due.push_back(next);
                    next += Duration::from_secs(1) / rate;
                }
            }
            while let Some((asked, index)) = due.front().copied().zip(self.idle.front().copied()) {
                due.pop_front();
                self.idle.pop_front();
                self.send(index, asked)?;
            }
            let more_to_come = matches!(pace, Pace::PerSecond(_)) && next < end;
            if !more_to_come && due.is_empty() && self.idle.len() == self.connections.len() {
                break;
            }
            ensure!(now.duration_since(last_answer) < LIMIT, "no response within {LIMIT:?}");
            let wait = if more_to_come { next.saturating_duration_since(now).min(LIMIT) } else { LIMIT };
            let ready = self.wait(&mut events, wait)?;
            for event in events.iter().take(ready) {
                let index = usize::try_from(event.data()).unwrap_or(usize::MAX);
                match self.receive(index)? {
                    Progress::More => {}
                    Progress::Closed => {
                        let stream = self.open(index)?;
                        if let Some(connection) = self.connections.get_mut(index) {
                            connection.stream = stream;
                        }
                        outcome.reopened += 1;
                    }
                    Progress::Done => {
                        last_answer = Instant::now();
                        if let Some(asked) = self.connections.get_mut(index).and_then(|it| it.asked.take()) {
                            outcome.latencies.add(last_answer.duration_since(asked));
                        }
                        if pace == Pace::Closed && last_answer < end {
                            self.send(index, last_answer)?;
                        } else {
                            self.idle.push_back(index);
                        }
                    }
                }
            }
        }
        outcome.elapsed = last_answer.duration_since(start).max(Duration::from_micros(1));
        Ok(outcome)
    }

    /// Waits to the microsecond, which epoll alone does not.
    fn wait(&self, events: &mut [EpollEvent], wait: Duration) -> anyhow::Result<usize> {
        if wait < LIMIT {
            let mut sockets = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut sockets, Some(TimeSpec::from_duration(wait)), None) {
                Ok(0) | Err(Errno::EINTR) => return Ok(0),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.epoll.wait(events, EpollTimeout::from(1000_u16)) {
            Err(Errno::EINTR) => Ok(0),
            other => Ok(other?),
        }
    }

    fn send(&mut self, index: usize, asked: Instant) -> anyhow::Result<()> {
        let connection = self.connections.get_mut(index).context("no such connection")?;
        connection.asked = Some(asked);
        connection.answer.clear();
        let sent = connection.stream.write(&self.request).context("sending a request")?;
        ensure!(sent == self.request.len(), "a request of {} bytes did not fit the socket", self.request.len());
        Ok(())
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<Progress> {
        let connection = self.connections.get_mut(index).context("no such connection")?;
        let mut buffer = [0; 4096];
        match connection.stream.read(&mut buffer) {
            Ok(0) if connection.asked.is_none() => Ok(Progress::Closed),
            Ok(0) => bail!("the connection was closed during a request"),
            Ok(len) => {
                ensure!(connection.asked.is_some(), "bytes that nobody asked for");
                connection.answer.extend_from_slice(buffer.get(..len).unwrap_or_default());
                Ok(if is_complete(&connection.answer)? { Progress::Done } else { Progress::More })
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Progress::More),
            Err(error) => Err(error).context("reading a response"),
        }
    }
}

fn request(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: weir-bench\r\naccept: */*\r\n\r\n", address.ip())
        .into_bytes()
}

/// True once `answer` is a whole response as the origin gave it; an error as soon as it can not become one.
fn is_complete(answer: &[u8]) -> anyhow::Result<bool> {
    const STATUS: &[u8] = b"HTTP/1.1 200 ";
    let known = answer.len().min(STATUS.len());
    let begin = String::from_utf8_lossy(answer.get(..64).unwrap_or(answer));
    ensure!(answer.get(..known) == STATUS.get(..known), "a response that is not 200: {begin:?}");
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        ensure!(answer.len() <= MAX_HEAD, "a response whose head does not end: {begin:?}");
        return Ok(false);
    };
    let lines = answer.get(..head).unwrap_or_default().split(|byte| *byte == b'\n');
    let length = lines
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    ensure!(length == Some(BODY), "a response whose length is {length:?} and not {BODY}");
    let whole = head + 4 + BODY;
    ensure!(answer.len() <= whole, "{} bytes behind a response", answer.len() - whole);
    Ok(answer.len() == whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;

    #[test]
    fn both_paces_against_the_origin() {
        let origin = Origin::start("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let mut load = Load::connect(origin.address, "/", 8).unwrap();
        assert_eq!(load.once().unwrap().latencies.len(), 8);
        load.one_by_one("/").unwrap();
        let closed = load.run(Pace::Closed, Duration::from_millis(100)).unwrap();
        assert!(closed.latencies.len() > 100, "{}", closed.latencies.len());
        let open = load.run(Pace::PerSecond(500), Duration::from_millis(200)).unwrap();
        assert_eq!(open.latencies.len(), 100);
    }

    #[test]
    fn a_held_request_counts_from_when_it_was_due() {
        let origin = Origin::start("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let mut load = Load::connect(origin.address, "/hold/700", 1).unwrap();
        let outcome = load.run(Pace::PerSecond(10), Duration::from_millis(300)).unwrap();
        // Due at 0, 100 and 200 ms on one connection that takes 700 ms for each.
        assert!(outcome.latencies.quantile_ms(1.0) >= 3.0 * 700.0 - 250.0);
    }

    #[test]
    fn wrong_responses_are_errors() {
        let good = [b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n".as_slice(), &[b'x'; BODY]].concat();
        assert!(is_complete(&good).unwrap());
        for end in 0..good.len() {
            assert!(!is_complete(&good[..end]).unwrap(), "{end}");
        }
        assert!(is_complete(&[good.as_slice(), b"x"].concat()).is_err());
        assert!(is_complete(b"HTTP/1.1 503 x").is_err());
        assert!(is_complete(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").is_err());
        assert!(is_complete(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }
}
