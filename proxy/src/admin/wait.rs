//! `weir-proxy wait`: returns when the proxy beside it is ready. The kubelet runs it as the sidecar's `postStart` hook, and starts
//! the application when it returns.
//!
//! Standard library only: it starts within a millisecond or two and is on the path of every pod start.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use weir_mesh::ports;

use super::ask;

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
    let page = ask::get(address, super::open::READY_PATH, limit, MAX_ANSWER)?;
    if page.status == 200 {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&page.body);
    let reasons: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if reasons.is_empty() { Err(format!("it answered {}", page.status)) } else { Err(reasons.join("; ")) }
}
