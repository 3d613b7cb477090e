//! How long ADD takes: the real process in a fresh namespace each time. Its own time is its processor time and, for the part
//! where it also waits for the kernel's locks, the time until the rules are in force. The time from start to exit is printed
//! too; it is asserted only on a quiet machine, since it holds whatever else the processors do meanwhile.
//!
//! `cargo test -p weir-cni --release --test add_time -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

#[path = "../../init/tests/support/mod.rs"]
mod support;

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use support::{Netns, can_run};

const NAMESPACES: usize = 300;
/// What ADD may cost a pod's start, for 99 of 100 pods.
const LIMIT: Duration = Duration::from_millis(5);
/// Below this load a start to exit of the process is its own time.
const QUIET_LOAD: f64 = 0.5;
const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"weir-cni","prevResult":{"cniVersion":"1.1.0"},
    "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{
        "weir.dev/capture":"{\"version\":1,\"excludeInboundPorts\":[22],\"dnsServers\":[\"198.19.0.10\",\"fd00:19::10\"]}"}}}"#;

#[test]
#[ignore = "a measurement: run it alone, in a release build"]
fn add_is_quick() {
    if !can_run() {
        return;
    }
    let (mut whole, mut processor, mut in_force) = (Vec::new(), Vec::new(), Vec::new());
    let quiet = load() < QUIET_LOAD;
    // All made before and taken away after: the kernel's own work on namespaces that end would be measured too.
    let pods: Vec<Netns> = (0..NAMESPACES).map(|_| Netns::new("pod")).collect();
    for pod in &pods {
        let mut call = Command::new(env!("CARGO_BIN_EXE_weir-cni"));
        call.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c").env("CNI_IFNAME", "eth0");
        call.env("CNI_NETNS", pod.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (start, used) = (Instant::now(), children_time());
        let mut child = call.spawn().unwrap();
        child.stdin.take().unwrap().write_all(CONFIG.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        whole.push(start.elapsed());
        processor.push(children_time().saturating_sub(used));
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8(output.stderr).unwrap();
        let (_, rest) = log.split_once("\"elapsed_us\":").expect("no line about the redirect");
        in_force.push(Duration::from_micros(rest.trim_end_matches(['}', '\n']).parse().unwrap()));
    }
    let report = |name: &str, times: &mut Vec<Duration>| {
        times.sort();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!("{name}: p50 {:?}, p99 {:?}, max {:?} of {NAMESPACES}", at(50), at(99), at(100));
        at(99)
    };
    let mut own = vec![report("rules in force after", &mut in_force), report("processor time", &mut processor)];
    let start_to_exit = report("start to exit", &mut whole);
    if quiet {
        own.push(start_to_exit);
    }
    assert!(own.iter().all(|p99| *p99 <= LIMIT), "p99 is {own:?}, more than {LIMIT:?}");
}

/// Processor time of all processes that were waited for.
fn children_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(microseconds.try_into().unwrap())
}

/// Mean number of processes that ran or wanted to, over the last minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
