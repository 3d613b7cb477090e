//! `weir-proxy wait`: returns when the proxy beside it is ready. The kubelet runs it as the sidecar's `postStart` hook, and starts
//! the application when it returns.
//!
//! Standard library only: it starts within a millisecond or two and is on the path of every pod start.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use weir_mesh::ports;

/// Shortest and longest pause between two questions. A pod is ready some 50 ms after its proxy has started, and every pod waits for it.
const PAUSE: Duration = Duration::from_millis(2);
const LONG_PAUSE: Duration = Duration::from_millis(50);
/// Longest single attempt.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 * 1024;

/// Waits for the proxy of this pod.
///
/// # Errors
/// Why it is not ready, in words of the proxy where it answered.
pub fn wait(timeout: Duration) -> Result<(), String> {
    wait_for(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::READINESS)), timeout)
}

/// Waits for the proxy whose readiness is told at `address`.
///
/// # Errors
/// As [`wait`].
pub fn wait_for(address: SocketAddr, timeout: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let until = begun + timeout;
    loop {
        // A twentieth of the time so far is never much to have waited too long.
        let pause = (begun.elapsed() / 20).clamp(PAUSE, LONG_PAUSE);
        let left = until.saturating_duration_since(Instant::now());
        let why = match ask(address, left.min(ATTEMPT).max(pause)) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if until.saturating_duration_since(Instant::now()) <= pause {
            return Err(format!("the proxy is not ready after {} s: {why}", timeout.as_secs()));
        }
        std::thread::sleep(pause);
    }
}

fn ask(address: SocketAddr, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    let silent = |error: std::io::Error| format!("it does not answer on {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(silent)?;
    stream.set_write_timeout(Some(limit)).map_err(silent)?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n", super::open::READY_PATH);
    stream.write_all(request.as_bytes()).map_err(silent)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(MAX_ANSWER);
    let mut piece = [0; 4096];
    loop {
        // A time-out of a socket is one for each read: the rest is counted here.
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("it does not answer on {address} in time"));
        }
        limited.get_ref().set_read_timeout(Some(left)).map_err(silent)?;
        match limited.read(&mut piece).map_err(silent)? {
            0 => break,
            n => answer.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "200" {
        return Ok(());
    }
    let reasons: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if reasons.is_empty() { Err(format!("it answered {status:?}")) } else { Err(reasons.join("; ")) }
}
