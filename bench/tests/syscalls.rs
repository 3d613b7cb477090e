//! What a proxied request costs in system calls, counted by strace on both real proxies: nothing but the reads, writes and
//! waits that it can not do without. A call that slips into the way of a request is seen here before it is seen in a figure.

#![allow(clippy::unwrap_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use weir_bench::{
    load::{Load, Pace},
    mesh::Mesh,
    process::binary,
};

/// One of each in each direction; a body of 1 kB comes with its head.
const READS: f64 = 2.0;
const WRITES: f64 = 2.0;
/// For what the pool, the timers and the metrics do now and then, for each request.
const SLACK: f64 = 0.1;

#[test]
fn a_request_costs_two_reads_and_two_writes() {
    if let Some(reason) = can_not_run() {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let dir = Folder::new();
    let mesh = Mesh::start(&dir.0).unwrap();
    let candidate = mesh.candidate(1, 1).unwrap();
    let (requests, counts) = candidate
        .pair
        .client
        .run(|| {
            let mut load = Load::connect(candidate.http, "/", 8)?;
            load.run(Pace::Closed, Duration::from_millis(300))?;
            let traces: Vec<Trace> =
                candidate.pids().into_iter().map(|pid| Trace::start(pid, &dir.0)).collect::<anyhow::Result<_>>()?;
            let outcome = load.run(Pace::Closed, Duration::from_secs(2))?;
            let counts: Vec<_> = traces.into_iter().map(Trace::end).collect::<anyhow::Result<_>>()?;
            Ok((outcome.latencies.len() as f64, counts))
        })
        .unwrap();
    assert!(requests > 200.0, "{requests} requests are too few to tell");
    for (side, counts) in ["client's", "server's"].into_iter().zip(counts) {
        let sum = |names: &[&str]| {
            counts
                .iter()
                .filter(|(name, _)| names.contains(&name.as_str()))
                .map(|(_, count)| *count as f64)
                .sum::<f64>()
                / requests
        };
        let all = counts.values().sum::<u64>() as f64 / requests;
        let reads = sum(&["read", "readv", "recvfrom", "recvmsg"]);
        let writes = sum(&["write", "writev", "sendto", "sendmsg"]);
        let waits = sum(&["epoll_wait", "epoll_pwait", "epoll_pwait2", "futex"]);
        let others = all - reads - writes - waits;
        println!("{side} proxy: {reads:.2} reads, {writes:.2} writes, {waits:.2} waits, {others:.2} others a request");
        assert!(reads > READS - SLACK && reads <= READS + SLACK, "{side} proxy: {reads:.2} reads: {counts:?}");
        assert!(writes > WRITES - SLACK && writes <= WRITES + SLACK, "{side} proxy: {writes:.2} writes: {counts:?}");
        assert!(waits <= READS + SLACK, "{side} proxy: {waits:.2} waits: {counts:?}");
        assert!(others <= SLACK, "{side} proxy: {others:.2} other calls: {counts:?}");
    }
}

/// Why the test can not run here. In CI it must.
fn can_not_run() -> Option<String> {
    let missing = if !geteuid().is_root() {
        "needs root, for network namespaces".to_owned()
    } else if let Some(error) = ["weir-proxy", "weir-control"].iter().find_map(|name| binary(name).err()) {
        error.to_string()
    } else if !traces() {
        return Some("strace is missing (Debian package strace) or may not trace here".to_owned());
    } else {
        return None;
    };
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    Some(missing)
}

fn traces() -> bool {
    let run = Command::new("strace").args(["-c", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

/// strace, attached to a process and counting.
struct Trace {
    child: Child,
    counts: PathBuf,
}

impl Trace {
    fn start(pid: u32, dir: &Path) -> anyhow::Result<Self> {
        let counts = dir.join(format!("strace-{pid}"));
        let child = Command::new("strace")
            .args(["-f", "-c", "-U", "name,calls", "-p", &pid.to_string(), "-o"])
            .arg(&counts)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let trace = Self { child, counts };
        let end = Instant::now() + Duration::from_secs(10);
        while !all_traced(pid)? {
            anyhow::ensure!(Instant::now() < end, "strace does not attach to process {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(trace)
    }

    /// Detaches and returns the calls by name.
    fn end(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        self.child.wait()?;
        Ok(fs::read_to_string(&self.counts)?
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                let (name, calls) = (fields.next()?, fields.next()?.parse().ok()?);
                (name != "total").then(|| (name.to_owned(), calls))
            })
            .collect())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill(); // the kernel detaches it
        let _ = self.child.wait();
    }
}

fn all_traced(pid: u32) -> anyhow::Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if status.lines().any(|line| line.split_whitespace().eq(["TracerPid:", "0"])) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A folder that is gone with the test. Others may look into it: the proxies have a user of their own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("weir-bench-syscalls-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
