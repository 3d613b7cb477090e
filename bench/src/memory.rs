//! Resident memory: of a proxy that has nothing to do, and of what each connection adds that is open and idle.
//!
//! Of HTTP/1.1, connections are the application's, kept alive, each with an answered request. First the requests go one after the other:
//! one connection between the proxies is enough, and what the client's proxy grew by is the accepted connections, in plaintext. Then they
//! go all at once and are held by the origin, so that each has a connection of its own on the whole way. The origin answers, and
//! everything is idle when memory is read; how many connections between them the proxies keep then is theirs to choose.
//!
//! Opaque connections leave no choice: each is two sockets in each proxy, one in plaintext and one in mutual TLS.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::Serialize;

use crate::{candidate::Candidate, load::Load};

/// Open connections where the whole is compared.
pub const MANY: usize = 500;
/// Open connections where the cost of one is told: so many that other things do not matter.
pub const IDLE: usize = 2_000;

/// Before memory is read: allocators give back what they no longer need a second or so after it was freed.
const SETTLE: Duration = Duration::from_secs(3);

/// Longest wait for one connection.
const LIMIT: Duration = Duration::from_secs(10);

/// Memory of one candidate's proxies in kB: the client's, the server's.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// [`crate::candidate::Kind::name`].
    pub candidate: String,
    /// Ready, and one request served.
    pub idle_kb: Vec<u64>,
    /// With [`MANY`] connections open on which a request each was under way at the same time.
    pub connections_500_kb: Vec<u64>,
    /// With [`IDLE`] connections of the application's open and idle, and hardly any between the proxies.
    pub accepted: Idle,
    /// The same, each with one between the proxies and one to the application as well, as far as the proxies keep them.
    pub whole_way: Idle,
    /// With [`IDLE`] opaque connections open and idle.
    pub opaque: Idle,
    /// After all rounds, with no connection open.
    pub after_rounds_kb: Vec<u64>,
}

/// One state.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Resident.
    pub kb: Vec<u64>,
    /// Sockets that the proxies have open.
    pub sockets: Vec<usize>,
}

impl Idle {
    fn of(candidate: &Candidate) -> anyhow::Result<Self> {
        std::thread::sleep(SETTLE);
        let sockets = candidate.pids().into_iter().map(sockets).collect::<anyhow::Result<_>>()?;
        Ok(Self { kb: candidate.resident_kb()?, sockets })
    }

    /// What one connection adds to what the proxies were without them, in kB.
    pub fn each_kb(&self, idle_kb: &[u64]) -> Vec<f64> {
        self.kb.iter().zip(idle_kb).map(|(with, without)| (*with as f64 - *without as f64) / IDLE as f64).collect()
    }
}

fn sockets(pid: u32) -> anyhow::Result<usize> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(Result::ok);
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    Ok(links.filter(|link| link.to_string_lossy().starts_with("socket:")).count())
}

/// Measures it; to be done before any load.
///
/// # Errors
/// Where a request fails.
pub fn measure(candidate: &Candidate) -> anyhow::Result<Memory> {
    std::thread::sleep(SETTLE);
    let idle_kb = candidate.resident_kb()?;
    candidate.pair.client.run(|| {
        let mut load = Load::connect(candidate.http, "/hold/700", MANY)?;
        load.once()?;
        std::thread::sleep(SETTLE);
        let connections_500_kb = candidate.resident_kb()?;
        drop(load);
        // Handshakes for all take a while: the first answer must not free a connection for the last request.
        let mut load = Load::connect(candidate.http, "/hold/5000", IDLE)?;
        load.one_by_one("/")?;
        let accepted = Idle::of(candidate)?;
        load.once()?;
        let whole_way = Idle::of(candidate)?;
        drop(load);
        std::thread::sleep(SETTLE);
        let open = (0..IDLE).map(|_| greeted(candidate.fresh)).collect::<anyhow::Result<Vec<_>>>()?;
        let opaque = Idle::of(candidate)?;
        drop(open);
        Ok(Memory {
            candidate: candidate.kind.name(),
            idle_kb,
            connections_500_kb,
            accepted,
            whole_way,
            opaque,
            after_rounds_kb: Vec::new(),
        })
    })
}

/// An opaque connection on which a byte has gone there and back.
fn greeted(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}
