//! What is done to each candidate, and what is noted.

use std::time::Duration;

use serde::Serialize;

use crate::{
    candidate::Candidate,
    load::{Load, Outcome, Pace},
    stream::Source,
    usage::Machine,
};

/// Connections of the HTTP loads.
pub const CONNECTIONS: usize = 32;
/// Requests a second of the open loop.
pub const RATE: u32 = 1_000;
/// Open connections where memory is measured.
pub const MANY: usize = 500;
/// Before anything is measured: pools fill, buffers grow, code is paged in.
const WARM_UP: Duration = Duration::from_secs(2);
/// Before the other measurements of a round, on processes that are warm already.
const SETTLE: Duration = Duration::from_millis(300);

/// Before memory is read: allocators give back what they no longer need a second or so after it was freed.
const MEMORY_SETTLE: Duration = Duration::from_secs(2);

/// One HTTP load.
#[derive(Debug, Clone, Serialize)]
pub struct Http {
    /// Requests, all answered and right.
    pub requests: u64,
    /// Requests a second.
    pub rps: f64,
    /// Median latency.
    pub p50_ms: f64,
    /// 99th percentile of latencies.
    pub p99_ms: f64,
    /// CPU seconds for 1,000 requests: the client's proxy, the server's.
    pub cpu_s_per_1000: Vec<f64>,
    /// Connections that were closed between requests.
    pub reopened: u64,
}

/// One TCP stream.
#[derive(Debug, Clone, Serialize)]
pub struct Tcp {
    /// Rate.
    pub gbit_per_s: f64,
    /// CPU seconds for 10^9 bytes: the client's proxy, the server's.
    pub cpu_s_per_gb: Vec<f64>,
}

/// One candidate in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Number, from 1.
    pub round: u32,
    /// [`crate::candidate::Kind::name`].
    pub candidate: String,
    /// Closed loop.
    pub http1: Http,
    /// Open loop at [`RATE`].
    pub http1_1000rps: Http,
    /// Bulk.
    pub tcp: Tcp,
    /// What the machine did meanwhile.
    pub machine: Machine,
}

/// Memory of one candidate's proxies in kB: the client's, the server's.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// [`crate::candidate::Kind::name`].
    pub candidate: String,
    /// Ready, and one request served.
    pub idle_kb: Vec<u64>,
    /// With [`MANY`] connections open on which a request each was under way at the same time.
    pub connections_500_kb: Vec<u64>,
    /// After all rounds, with no connection open.
    pub after_rounds_kb: Vec<u64>,
}

/// Measures memory; to be done before any load.
///
/// # Errors
/// Where a request fails.
pub fn memory(candidate: &Candidate) -> anyhow::Result<Memory> {
    std::thread::sleep(MEMORY_SETTLE);
    let idle_kb = candidate.resident_kb()?;
    let connections_500_kb = candidate.pair.client.run(|| {
        let mut load = Load::connect(candidate.http, "/hold", MANY)?;
        load.once()?;
        std::thread::sleep(MEMORY_SETTLE);
        candidate.resident_kb()
    })?;
    Ok(Memory { candidate: candidate.kind.name(), idle_kb, connections_500_kb, after_rounds_kb: Vec::new() })
}

/// Measures one candidate once. `others` are processes of this program that are not this candidate's.
///
/// # Errors
/// Where a request fails: a figure with failed requests in it would say nothing.
pub fn measure(candidate: &Candidate, round: u32, span: Duration, others: &[u32]) -> anyhow::Result<Round> {
    let ours: Vec<u32> = candidate.pids().into_iter().chain(others.iter().copied()).collect();
    let before = Machine::now(&ours)?;
    let (http1, http1_1000rps) = candidate.pair.client.run(|| {
        let mut load = Load::connect(candidate.http, "/", CONNECTIONS)?;
        load.run(Pace::Closed, WARM_UP)?;
        let closed = http(candidate, &mut load, Pace::Closed, span)?;
        load.run(Pace::PerSecond(RATE), SETTLE)?;
        Ok((closed, http(candidate, &mut load, Pace::PerSecond(RATE), span)?))
    })?;
    let tcp = candidate.pair.client.run(|| {
        let mut source = Source::connect(candidate.tcp)?;
        source.run(&candidate.sink, SETTLE)?;
        let before = candidate.cpu()?;
        let (bytes, elapsed) = source.run(&candidate.sink, span)?;
        let cpu_s_per_gb = per(&before, &candidate.cpu()?, bytes as f64 / 1e9);
        Ok(Tcp { gbit_per_s: bytes as f64 * 8.0 / 1e9 / elapsed.as_secs_f64(), cpu_s_per_gb })
    })?;
    let machine = Machine::now(&ours)?.since(before);
    Ok(Round { round, candidate: candidate.kind.name(), http1, http1_1000rps, tcp, machine })
}

fn http(candidate: &Candidate, load: &mut Load, pace: Pace, span: Duration) -> anyhow::Result<Http> {
    let before = candidate.cpu()?;
    let outcome: Outcome = load.run(pace, span)?;
    let after = candidate.cpu()?;
    let requests = outcome.latencies.len();
    Ok(Http {
        requests,
        rps: outcome.rate(),
        p50_ms: outcome.latencies.quantile_ms(0.5),
        p99_ms: outcome.latencies.quantile_ms(0.99),
        cpu_s_per_1000: per(&before, &after, requests as f64 / 1000.0),
        reopened: outcome.reopened,
    })
}

fn per(before: &[f64], after: &[f64], units: f64) -> Vec<f64> {
    before.iter().zip(after).map(|(before, after)| (after - before) / units).collect()
}
