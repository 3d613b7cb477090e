//! What is done to each candidate, and what is noted.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::ensure;
use serde::Serialize;

use crate::{
    candidate::{Candidate, MANY_ROUTES_PORT, ONE_ROUTE_PORT, RESUMED_PORT, ROUTES},
    fresh,
    grpc::{self, Ask},
    load::{Load, Outcome, Pace},
    mesh,
    scenario::{Part, Scenario},
    stream::Source,
    usage::Machine,
};

/// Connections of the loads of HTTP/1.1, and fresh connections at once.
pub const CONNECTIONS: usize = 32;
/// Requests a second of the open loop.
pub const RATE: u32 = 1_000;
/// Before the first round: pools fill, buffers grow, code is paged in.
const WARM_UP: Duration = Duration::from_secs(2);
/// Before every other measurement, on processes that are warm already.
const SETTLE: Duration = Duration::from_millis(300);

/// One scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Which.
    pub scenario: Scenario,
    /// What was counted, all answered and right: requests, calls, messages, connections, MB.
    pub count: f64,
    /// The same a second.
    pub rate: f64,
    /// Median latency; none for bulk.
    pub p50_ms: Option<f64>,
    /// 99th percentile of latencies.
    pub p99_ms: Option<f64>,
    /// CPU seconds for the scenario's unit: the client's proxy, the server's.
    pub cpu_s: Vec<f64>,
    /// Connections that were closed between requests.
    pub reopened: u64,
}

/// One candidate in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Number, from 1.
    pub round: u32,
    /// [`crate::candidate::Kind::name`].
    pub candidate: String,
    /// What was measured.
    pub measured: Vec<Measured>,
    /// What the machine did meanwhile.
    pub machine: Machine,
}

/// Measures one candidate once. `others` are processes of this program that are not this candidate's.
///
/// # Errors
/// Where a request fails: a figure with failed requests in it would say nothing.
pub fn measure(
    candidate: &Candidate,
    parts: &[Part],
    round: u32,
    span: Duration,
    others: &[u32],
) -> anyhow::Result<Round> {
    let ours: Vec<u32> = candidate.pids().into_iter().chain(others.iter().copied()).collect();
    let before = Machine::now(&ours)?;
    let warm_up = if round == 1 { WARM_UP } else { SETTLE };
    let mut measured = Vec::new();
    for part in parts {
        measured.extend(candidate.pair.client.run(|| match part {
            Part::Http1 => http1(candidate, warm_up, span),
            Part::Tcp => tcp(candidate, span),
            Part::Http2 => http2(candidate, warm_up, span, &[(Scenario::Http2, Ask::Get)]),
            Part::Grpc => {
                let asks = [(Scenario::GrpcUnary, Ask::Unary), (Scenario::GrpcStream, Ask::Stream)];
                http2(candidate, warm_up, span, &asks)
            }
            Part::Connections => connections(candidate, span),
            Part::Routes => routes(candidate, warm_up, span),
            Part::Memory => Ok(Vec::new()),
        })?);
    }
    let machine = Machine::now(&ours)?.since(before);
    Ok(Round { round, candidate: candidate.kind.name(), measured, machine })
}

fn http1(candidate: &Candidate, warm_up: Duration, span: Duration) -> anyhow::Result<Vec<Measured>> {
    let mut load = Load::connect(candidate.http, "/", CONNECTIONS)?;
    load.run(Pace::Closed, warm_up)?;
    let closed = note(candidate, Scenario::Http1, || load.run(Pace::Closed, span))?;
    load.run(Pace::PerSecond(RATE), SETTLE)?;
    let paced = note(candidate, Scenario::Http1Paced, || load.run(Pace::PerSecond(RATE), span))?;
    Ok(vec![closed, paced])
}

fn http2(
    candidate: &Candidate,
    warm_up: Duration,
    span: Duration,
    asks: &[(Scenario, Ask)],
) -> anyhow::Result<Vec<Measured>> {
    let mut load = grpc::Load::connect(candidate.grpc)?;
    asks.iter()
        .map(|&(scenario, ask)| {
            load.run(ask, warm_up)?;
            note(candidate, scenario, || load.run(ask, span))
        })
        .collect()
}

fn tcp(candidate: &Candidate, span: Duration) -> anyhow::Result<Vec<Measured>> {
    let mut source = Source::connect(candidate.tcp)?;
    source.run(&candidate.sink, SETTLE)?;
    let before = candidate.cpu()?;
    let (bytes, elapsed) = source.run(&candidate.sink, span)?;
    let count = bytes as f64 / 1e6;
    Ok(vec![Measured {
        scenario: Scenario::Tcp,
        count,
        rate: count / elapsed.as_secs_f64(),
        p50_ms: None,
        p99_ms: None,
        cpu_s: per(&before, &candidate.cpu()?, count / Scenario::Tcp.unit().2),
        reopened: 0,
    }])
}

fn connections(candidate: &Candidate, span: Duration) -> anyhow::Result<Vec<Measured>> {
    let ways = [(Scenario::Handshakes, candidate.fresh.port()), (Scenario::HandshakesResumed, RESUMED_PORT)];
    ways.into_iter()
        .filter(|(scenario, _)| scenario.is_of(candidate.kind))
        .map(|(scenario, port)| {
            let address = SocketAddr::from((candidate.fresh.ip(), port));
            fresh::run(address, CONNECTIONS, SETTLE)?;
            let before = candidate.handshakes()?;
            let measured = note(candidate, scenario, || fresh::run(address, CONNECTIONS, span))?;
            if let (Some(before), Some(after)) = (before, candidate.handshakes()?) {
                let (all, resumed) = (after.0 - before.0, (after.1 - before.1) / measured.count);
                ensure!(all >= measured.count, "{all} handshakes for {} connections", measured.count);
                // With several workers, and for the first of each, there is not always a session to resume.
                let as_wanted = if scenario == Scenario::Handshakes { resumed < 0.01 } else { resumed > 0.9 };
                ensure!(as_wanted, "{:.1} % of the handshakes resumed a session: {scenario:?}", resumed * 100.0);
            }
            Ok(measured)
        })
        .collect()
}

fn routes(candidate: &Candidate, warm_up: Duration, span: Duration) -> anyhow::Result<Vec<Measured>> {
    let ways = [(Scenario::OneRoute, ONE_ROUTE_PORT), (Scenario::ManyRoutes, MANY_ROUTES_PORT)];
    ways.into_iter()
        .filter(|(scenario, _)| scenario.is_of(candidate.kind))
        .map(|(scenario, port)| {
            let address = SocketAddr::from((candidate.http.ip(), port));
            for (rule, wanted) in
                [(mesh::ASKED, "200"), (ROUTES - 1, if port == MANY_ROUTES_PORT { "200" } else { "404" })]
            {
                let said = first_line(address, &mesh::path_of(rule))?;
                ensure!(said.contains(wanted), "rule {rule} of port {port}: {said}");
            }
            let mut load = Load::connect(address, &mesh::path_of(mesh::ASKED), CONNECTIONS)?;
            load.run(Pace::Closed, warm_up)?;
            note(candidate, scenario, || load.run(Pace::Closed, span))
        })
        .collect()
}

/// What a single GET is answered with.
fn first_line(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

fn note(
    candidate: &Candidate,
    scenario: Scenario,
    load: impl FnOnce() -> anyhow::Result<Outcome>,
) -> anyhow::Result<Measured> {
    let before = candidate.cpu()?;
    let outcome = load()?;
    let after = candidate.cpu()?;
    let count = outcome.latencies.len() as f64;
    Ok(Measured {
        scenario,
        count,
        rate: outcome.rate(),
        p50_ms: Some(outcome.latencies.quantile_ms(0.5)),
        p99_ms: Some(outcome.latencies.quantile_ms(0.99)),
        cpu_s: per(&before, &after, count / scenario.unit().2),
        reopened: outcome.reopened,
    })
}

fn per(before: &[f64], after: &[f64], units: f64) -> Vec<f64> {
    before.iter().zip(after).map(|(before, after)| (after - before) / units).collect()
}
