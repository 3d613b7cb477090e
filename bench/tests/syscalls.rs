//! What a proxied request costs in system calls, counted by strace on both real proxies: nothing but the reads, writes and
//! waits that it can not do without. A call that slips into the way of a request is seen here before it is seen in a figure.

#![allow(clippy::unwrap_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use weir_bench::{
    candidate::Candidate,
    grpc::{self, Ask},
    load::{Load, Pace},
    mesh::Mesh,
    process::binary,
};

/// One of each in each direction; a body of 1 kB comes with its head.
const READS: f64 = 2.0;
const WRITES: f64 = 2.0;
/// Most of each for a call that shares its connection with seven others.
const SHARED: f64 = 0.6;
/// For what the pool, the timers and the metrics do now and then, for each request.
const SLACK: f64 = 0.1;

#[test]
fn a_request_costs_two_reads_and_two_writes() {
    let Some(lab) = Lab::new() else { return };
    let costs = lab.costs(|candidate| {
        let mut load = Load::connect(candidate.http, "/", 8)?;
        Ok(move |time| Ok(load.run(Pace::Closed, time)?.latencies.len()))
    });
    for (side, cost) in costs {
        assert!((cost.reads - READS).abs() <= SLACK, "{side} proxy: {cost:?}");
        assert!((cost.writes - WRITES).abs() <= SLACK, "{side} proxy: {cost:?}");
        assert!(cost.waits <= READS + SLACK, "{side} proxy: {cost:?}");
        assert!(cost.others <= SLACK, "{side} proxy: {cost:?}");
    }
}

/// Streams that share a connection share its calls: a read or a write carries the frames of several. With eight it is a quarter of a read
/// and of a write for each call, both ways together; one flushed for itself would cost two.
#[test]
fn calls_of_grpc_share_reads_and_writes() {
    let Some(lab) = Lab::new() else { return };
    let costs = lab.costs(|candidate| {
        let mut load = grpc::Load::connect(candidate.grpc)?;
        Ok(move |time| Ok(load.run(Ask::Unary, time)?.latencies.len()))
    });
    for (side, cost) in costs {
        assert!(cost.reads <= SHARED && cost.writes <= SHARED, "{side} proxy: {cost:?}");
        assert!(cost.waits <= SHARED && cost.others <= SLACK, "{side} proxy: {cost:?}");
    }
}

/// Calls of a proxy, by kind, for one request.
#[derive(Debug)]
struct Cost {
    reads: f64,
    writes: f64,
    /// For events, and for other threads.
    waits: f64,
    others: f64,
    /// Of all requests, by name.
    #[expect(dead_code, reason = "shown where a test fails")]
    counts: BTreeMap<String, u64>,
}

impl Cost {
    fn new(counts: BTreeMap<String, u64>, requests: f64) -> Self {
        let sum = |names: &[&str]| {
            let named = counts.iter().filter(|(name, _)| names.contains(&name.as_str()));
            named.map(|(_, count)| *count as f64).sum::<f64>() / requests
        };
        let all = counts.values().sum::<u64>() as f64 / requests;
        let reads = sum(&["read", "readv", "recvfrom", "recvmsg"]);
        let writes = sum(&["write", "writev", "sendto", "sendmsg"]);
        let waits = sum(&["epoll_wait", "epoll_pwait", "epoll_pwait2", "futex"]);
        Self { reads, writes, waits, others: all - reads - writes - waits, counts }
    }
}

/// Two proxies between a client and a server.
struct Lab {
    dir: Folder,
    candidate: Candidate,
    _mesh: Mesh,
}

impl Lab {
    /// None, with a word, where it can not run.
    fn new() -> Option<Self> {
        if let Some(reason) = can_not_run() {
            eprintln!("SKIPPED: {reason}");
            return None;
        }
        let dir = Folder::new();
        let mesh = Mesh::start(&dir.0).unwrap();
        let candidate = mesh.candidate(1, 1).unwrap();
        Some(Self { dir, candidate, _mesh: mesh })
    }

    /// What a request costs the client's and the server's proxy, under a load that says how many it has sent in a time.
    fn costs<R: FnMut(Duration) -> anyhow::Result<u64>>(
        &self,
        load: impl FnOnce(&Candidate) -> anyhow::Result<R> + Send,
    ) -> [(&'static str, Cost); 2] {
        let candidate = &self.candidate;
        let (requests, traces) = candidate
            .pair
            .client
            .run(|| {
                let mut run = load(candidate)?;
                run(Duration::from_millis(300))?;
                let start = |pid| Trace::start(pid, &self.dir.0);
                let traces: Vec<Trace> = candidate.pids().into_iter().map(start).collect::<anyhow::Result<_>>()?;
                Ok((run(Duration::from_secs(2))?, traces))
            })
            .unwrap();
        assert!(requests > 200, "{requests} requests are too few to tell");
        let mut costs = traces.into_iter().map(|trace| Cost::new(trace.end().unwrap(), requests as f64));
        ["client's", "server's"].map(|side| {
            let cost = costs.next().unwrap();
            println!("{side} proxy, {requests} requests: {cost:?}");
            (side, cost)
        })
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
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("weir-bench-syscalls-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
