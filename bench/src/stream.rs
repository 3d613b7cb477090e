//! Bulk: the bytes of one TCP connection, as fast as they go.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::lab::Netns;

/// Bytes a system call, as iperf3 uses.
const CHUNK: usize = 128 * 1024;
/// How often a thread looks whether it should stop.
const TICK: Duration = Duration::from_millis(20);

/// Takes whatever is sent to it, and counts; stopped when dropped.
#[derive(Debug)]
pub struct Sink {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Listens on `address` in a network namespace; one connection at a time.
    ///
    /// # Errors
    /// Where the address can not be had.
    pub fn start(address: SocketAddr, netns: &Netns) -> anyhow::Result<Self> {
        let listener = netns.run(|| TcpListener::bind(address).with_context(|| format!("listening on {address}")))?;
        listener.set_nonblocking(true)?;
        let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (received.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drain(stream, &count, &stopped),
                    Err(_) => std::thread::sleep(TICK),
                }
            }
        })?;
        Ok(Self { received, stop, thread: Some(thread) })
    }

    /// Bytes so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn drain(mut stream: TcpStream, count: &AtomicU64, stopped: &AtomicBool) {
    if stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(TICK))).is_err() {
        return;
    }
    let mut buffer = vec![0; CHUNK];
    while !stopped.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => {
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// An open connection to a [`Sink`].
#[derive(Debug)]
pub struct Source {
    stream: TcpStream,
    chunk: Vec<u8>,
}

impl Source {
    /// Connects from the calling thread's network namespace.
    ///
    /// # Errors
    /// Where nobody accepts.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { stream, chunk: vec![b'w'; CHUNK] })
    }

    /// Sends for so long; returns the bytes that arrived at `sink` meanwhile and the exact time.
    ///
    /// # Errors
    /// Where the connection breaks, or nothing arrives.
    pub fn run(&mut self, sink: &Sink, duration: Duration) -> anyhow::Result<(u64, Duration)> {
        let (start, before) = (Instant::now(), sink.received());
        while start.elapsed() < duration {
            self.stream.write_all(&self.chunk).context("sending bulk")?;
        }
        let (elapsed, bytes) = (start.elapsed(), sink.received() - before);
        ensure!(bytes > 0, "nothing of what was sent has arrived");
        Ok((bytes, elapsed))
    }
}
