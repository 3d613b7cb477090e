//! A load client for HTTP/1.1, run inside a client pod by the demo and the tests. It is strict: what a browser would quietly try
//! again counts as a failure.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Longest time for one request.
const LIMIT: Duration = Duration::from_secs(10);
/// Largest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Most headers of an answer.
const MAX_HEADERS: usize = 64;
/// Different errors that are told.
const MAX_ERRORS: usize = 20;
/// Width of the pieces of the timeline.
const PIECE: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `http://HOST[:PORT]/PATH`
    url: String,
    /// Number of requests; until --seconds are over where it is 0
    #[arg(long, default_value_t = 0)]
    requests: u64,
    /// Longest time
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Connections at a time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// A new connection for every request
    #[arg(long)]
    fresh: bool,
    /// Requests a second, over all connections; as fast as it goes where it is 0
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Header of the requests, `name: value`
    #[arg(long)]
    header: Vec<String>,
    /// Count the values of this header of the answers
    #[arg(long, default_value = "x-version")]
    tally: String,
}

/// What came out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Requests that were sent.
    pub(crate) requests: u64,
    /// Requests without a whole answer, or with one of 500 and above.
    pub(crate) failures: u64,
    /// What went wrong, and how often.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Answers by status code.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Answers by the value of the tallied header.
    pub(crate) tally: BTreeMap<String, u64>,
    /// Latency in microseconds: half, 99 of 100, all.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
    /// Time from start to end, in milliseconds.
    pub(crate) elapsed_ms: u64,
    /// Start, in milliseconds since 1970.
    pub(crate) started_ms: u64,
    /// Answers by value of the tallied header, in pieces of [`PIECE`] from the start, by the time the request was sent.
    pub(crate) timeline: BTreeMap<u64, BTreeMap<String, u64>>,
}

struct Target {
    address: SocketAddr,
    request: Vec<u8>,
    tally: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let target = target(arguments)?;
    let started = Instant::now();
    let started_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let end = started + Duration::from_secs(arguments.seconds);
    let next = AtomicU64::new(0);
    let all: Mutex<(Report, Vec<u64>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..arguments.connections.max(1) {
            scope.spawn(|| {
                let (report, latencies) = client(&target, arguments, &next, started, end);
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.0.add(report);
                all.1.extend(latencies);
            });
        }
    });
    let (mut report, mut latencies) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    latencies.sort_unstable();
    let at = |percent: usize| {
        let index = latencies.len().saturating_mul(percent) / 100;
        latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    (report.p50_us, report.p99_us, report.max_us) = (at(50), at(99), at(100));
    report.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    report.started_ms = u64::try_from(started_ms).unwrap_or(u64::MAX);
    say!("{}", serde_json::to_string(&report).map_err(Failure::failed)?);
    Ok(ExitCode::SUCCESS)
}

fn target(arguments: &Arguments) -> Result<Target, Failure> {
    let rest = arguments
        .url
        .strip_prefix("http://")
        .ok_or_else(|| Failure::usage(format!("{:?} is not http://HOST[:PORT]/PATH", arguments.url)))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = with_port
        .to_socket_addrs()
        .map_err(|error| Failure::failed(format!("{host}: {error}")))?
        .next()
        .ok_or_else(|| Failure::failed(format!("{host} has no address")))?;
    let connection = if arguments.fresh { "connection: close\r\n" } else { "" };
    let headers: String = arguments.header.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n{connection}{headers}\r\n");
    Ok(Target { address, request: request.into_bytes(), tally: arguments.tally.to_ascii_lowercase() })
}

impl Report {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (value, count) in other.tally {
            *self.tally.entry(value).or_default() += count;
        }
        for (piece, counts) in other.timeline {
            let mine = self.timeline.entry(piece).or_default();
            for (value, count) in counts {
                *mine.entry(value).or_default() += count;
            }
        }
    }

    fn fail(&mut self, error: String) {
        self.failures += 1;
        if self.errors.len() < MAX_ERRORS || self.errors.contains_key(&error) {
            *self.errors.entry(error).or_default() += 1;
        }
    }
}

fn client(
    target: &Target,
    arguments: &Arguments,
    next: &AtomicU64,
    started: Instant,
    end: Instant,
) -> (Report, Vec<u64>) {
    let mut report = Report::default();
    let mut latencies = Vec::new();
    let mut kept: Option<TcpStream> = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if arguments.requests > 0 && number >= arguments.requests {
            break;
        }
        if let Some(due_us) = number.saturating_mul(1_000_000).checked_div(arguments.rate) {
            let due = started + Duration::from_micros(due_us);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        report.requests += 1;
        match exchange(target, &mut kept) {
            Ok(answer) => {
                latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
                *report.statuses.entry(answer.status).or_default() += 1;
                let value = answer.tallied.unwrap_or_else(|| "-".into());
                let piece = sent.duration_since(started).as_millis() / PIECE.as_millis();
                let piece = u64::try_from(piece).unwrap_or(u64::MAX);
                *report.timeline.entry(piece).or_default().entry(value.clone()).or_default() += 1;
                *report.tally.entry(value).or_default() += 1;
                if answer.status >= 500 {
                    report.fail(format!("status {}: {}", answer.status, answer.body));
                }
                if answer.closes || arguments.fresh {
                    kept = None;
                }
            }
            Err(error) => {
                let reused = if kept.is_some() { " (connection in use)" } else { "" };
                report.fail(format!("{error}{reused}"));
                kept = None;
            }
        }
    }
    (report, latencies)
}

struct Answer {
    status: u16,
    tallied: Option<String>,
    body: String,
    closes: bool,
}

fn exchange(target: &Target, kept: &mut Option<TcpStream>) -> io::Result<Answer> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&target.address, LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.set_write_timeout(Some(LIMIT))?;
            kept.insert(stream)
        }
    };
    stream.write_all(&target.request)?;
    read_answer(stream, &target.tally)
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn read_more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let n = stream.read(&mut buffer)?;
    bytes.extend_from_slice(buffer.get(..n).unwrap_or_default());
    Ok(n > 0)
}

fn read_answer(stream: &mut impl Read, tally: &str) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&bytes).map_err(|error| bad(&format!("answer: {error}")))? {
            httparse::Status::Complete(head) => {
                let status = response.code.unwrap_or_default();
                let find = |name: &str| {
                    let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                    found.map(|header| String::from_utf8_lossy(header.value).into_owned())
                };
                let (length, coding) = (find("content-length"), find("transfer-encoding"));
                let tallied = find(tally);
                let closes = find("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                let mut body = bytes.split_off(head);
                read_body(stream, &mut body, length.as_deref(), coding.as_deref())?;
                let body = String::from_utf8_lossy(&body).chars().take(200).collect();
                return Ok(Answer { status, tallied, body, closes });
            }
            httparse::Status::Partial if bytes.len() > MAX_HEAD => return Err(bad("the answer's head is too long")),
            httparse::Status::Partial => {
                if !read_more(stream, &mut bytes)? {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer's end"));
                }
            }
        }
    }
}

fn read_body(stream: &mut impl Read, body: &mut Vec<u8>, length: Option<&str>, coding: Option<&str>) -> io::Result<()> {
    let eof = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed inside the answer's body");
    if let Some(coding) = coding {
        if !coding.eq_ignore_ascii_case("chunked") {
            return Err(bad("unknown transfer coding"));
        }
        // Enough for what the demo's servers send: no trailers.
        while !body.ends_with(b"0\r\n\r\n") {
            if !read_more(stream, body)? {
                return Err(eof());
            }
        }
        return Ok(());
    }
    let Some(length) = length else {
        while read_more(stream, body)? {}
        return Ok(());
    };
    let length: usize = length.parse().map_err(|_| bad("content-length"))?;
    while body.len() < length {
        if !read_more(stream, body)? {
            return Err(eof());
        }
    }
    if body.len() > length { Err(bad("more bytes than the answer's length")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let read = |text: &str| read_answer(&mut text.as_bytes(), "x-version");
        let answer = read("HTTP/1.1 200 OK\r\nX-Version: v1\r\ncontent-length: 2\r\n\r\nok").unwrap();
        assert_eq!((answer.status, answer.tallied.as_deref(), answer.closes), (200, Some("v1"), false));
        assert!(read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok").is_err());
        assert!(read("HTTP/1.1 200").is_err());
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert!(read(chunked).unwrap().closes);
    }
}
