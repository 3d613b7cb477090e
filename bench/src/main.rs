//! `weir-bench`: what Weir costs beside Envoy, measured on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};
use weir_bench::{
    candidate::{Candidate, Kind},
    envoy, memory,
    mesh::Mesh,
    relay,
    report::Report,
    rounds,
    scenario::Part,
};

/// Compares Weir with Envoy and with no proxy at all: the same requests, redirect rules and mutual TLS, in alternating rounds.
/// Needs root, for network namespaces. Goals that are missed are told and do not change the exit code.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Rounds; medians are told, so an odd number
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// One round of two seconds a measurement: enough to see a mistake
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Where the results go as JSON
    #[arg(long, default_value = "target/bench/data-plane.json")]
    out: PathBuf,
    /// Only these parts, comma-separated
    #[arg(long, value_delimiter = ',', default_values_t = Part::ALL.map(|part| part.name().to_owned()), value_parser = Part::ALL.map(Part::name))]
    only: Vec<String>,
    /// Only these candidates, comma-separated
    #[arg(long = "with", value_delimiter = ',', default_values_t = Kind::ALL.map(Kind::name), value_parser = CANDIDATES)]
    candidates: Vec<String>,
}

const CANDIDATES: [&str; 6] = ["direct", "relay", "weir-1", "weir-2", "envoy-1", "envoy-2"];

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "needs root, for network namespaces: run it with sudo");
    let (count, seconds) = if args.quick { (1, 2) } else { (args.rounds, args.seconds) };
    // Proxies inherit it. 2,000 connections are two sockets each in a proxy, more than the usual limit of 1,024.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard)?;
    let work = WorkDir::new()?;
    work.remove_at_signals()?;

    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| args.candidates.contains(&kind.name())).collect();
    let parts: Vec<Part> =
        Part::ALL.into_iter().filter(|part| args.only.iter().any(|name| name == part.name())).collect();
    let with_envoy = kinds.iter().any(|kind| matches!(kind, Kind::Envoy(_)));
    let envoy = if with_envoy { envoy::install::envoy()? } else { PathBuf::new() };
    let mesh = Mesh::start(&work.0)?;
    let mut candidates = Vec::new();
    for (index, kind) in (1..).zip(kinds) {
        eprintln!("starting {}", kind.name());
        candidates.push(start(kind, index, &mesh, &envoy, &work.0).with_context(|| kind.name())?);
    }
    let mut others: Vec<u32> = candidates.iter().flat_map(Candidate::pids).collect();
    others.push(mesh.pid());

    let mut memory = Vec::new();
    for candidate in
        candidates.iter_mut().filter(|candidate| !candidate.pids().is_empty() && parts.contains(&Part::Memory))
    {
        eprintln!("memory of {}", candidate.kind.name());
        let result = memory::measure(candidate);
        memory.push(candidate.explain(result)?);
    }
    let mut all = Vec::new();
    let count = if parts == [Part::Memory] { 0 } else { count };
    for round in 1..=count {
        for candidate in &mut candidates {
            let own = candidate.pids();
            let others: Vec<u32> = others.iter().copied().filter(|pid| !own.contains(pid)).collect();
            let result = rounds::measure(candidate, &parts, round, Duration::from_secs(seconds), &others);
            let result = candidate.explain(result)?;
            let rates = result.measured.iter().map(|it| format!("{:>9.0} {}", it.rate, it.scenario.unit().0));
            eprintln!("round {round} of {count}: {:<8}{}", result.candidate, rates.collect::<Vec<_>>().join(""));
            all.push(result);
        }
        candidates.rotate_left(1); // nobody always follows the same one
    }
    for memory in &mut memory {
        if let Some(candidate) = candidates.iter().find(|candidate| candidate.kind.name() == memory.candidate) {
            memory.after_rounds_kb = candidate.resident_kb()?;
        }
    }
    let report = Report {
        envoy_version: with_envoy.then_some(envoy::install::VERSION),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        seconds,
        rounds: all,
        memory,
    };
    if let Some(folder) = args.out.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let json = serde_json::to_string_pretty(&report.json()?)?;
    fs::write(&args.out, json + "\n").with_context(|| format!("writing {}", args.out.display()))?;
    print!("{}", report.text());
    println!("All figures: {}", args.out.display());
    Ok(())
}

fn start(kind: Kind, index: u8, mesh: &Mesh, envoy: &Path, work: &Path) -> anyhow::Result<Candidate> {
    match kind {
        Kind::Direct => {
            let candidate = Candidate::prepare(kind, index)?;
            candidate.try_once()?;
            Ok(candidate)
        }
        Kind::Relay => relay::candidate(work, index),
        Kind::Weir(workers) => mesh.candidate(index, workers),
        Kind::Envoy(workers) => envoy::candidate(envoy, work, index, workers),
    }
}

/// A folder for one run, removed at its end.
struct WorkDir(PathBuf);

impl WorkDir {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("weir-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Ends the program at a signal. Processes end with it, and namespaces with their last process.
    #[allow(clippy::exit)] // the main thread may be anywhere
    fn remove_at_signals(&self) -> anyhow::Result<()> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let path = self.0.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Ok(signal) = signals.wait() {
                let _ = fs::remove_dir_all(&path);
                eprintln!("weir-bench: stopped by {signal}");
                std::process::exit(128 + signal as i32);
            }
        })?;
        Ok(())
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
