//! How long ADD takes: the whole life of the real process, from start to exit, in a fresh namespace each time.
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

use support::{Netns, can_run};

const NAMESPACES: usize = 300;
/// What ADD may cost a pod's start, for 99 of 100 pods.
const LIMIT: Duration = Duration::from_millis(5);
const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"weir-cni","prevResult":{"cniVersion":"1.1.0"},
    "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{
        "weir.dev/capture":"{\"version\":1,\"excludeInboundPorts\":[22],\"dnsServers\":[\"198.19.0.10\",\"fd00:19::10\"]}"}}}"#;

#[test]
#[ignore = "a measurement: run it alone, in a release build"]
fn add_is_quick() {
    if !can_run() {
        return;
    }
    let mut whole = Vec::new();
    let mut own = Vec::new();
    // All made before and taken away after: the kernel's own work on namespaces that end would be measured too.
    let pods: Vec<Netns> = (0..NAMESPACES).map(|_| Netns::new("pod")).collect();
    for pod in &pods {
        let mut call = Command::new(env!("CARGO_BIN_EXE_weir-cni"));
        call.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c").env("CNI_IFNAME", "eth0");
        call.env("CNI_NETNS", pod.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = call.spawn().unwrap();
        child.stdin.take().unwrap().write_all(CONFIG.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        whole.push(start.elapsed());
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8(output.stderr).unwrap();
        let (_, rest) = log.split_once("\"elapsed_us\":").expect("no line about the redirect");
        own.push(Duration::from_micros(rest.trim_end_matches(['}', '\n']).parse().unwrap()));
    }
    let report = |name: &str, times: &mut Vec<Duration>| {
        times.sort();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!("{name}: p50 {:?}, p99 {:?}, max {:?} of {NAMESPACES}", at(50), at(99), at(100));
        at(99)
    };
    report("rules in force after", &mut own);
    let p99 = report("ADD, start to exit", &mut whole);
    assert!(p99 <= LIMIT, "p99 is {p99:?}, more than {LIMIT:?}");
}
