//! Whatever ends a sandbox, nothing of it is left.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::support::{Process, Sandbox, root, text};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: c, image: host, command: [sh, -c, "sleep 1000 & exec sleep 1000"]}
"#;
const NEVER_READY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: never, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: host
      command: [sleep, infinity]
      readinessProbe: {exec: {command: ["false"]}}
"#;

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

pub(crate) fn all_end(processes: &BTreeSet<Process>) {
    let begun = Instant::now();
    while processes.iter().any(Process::is_alive) {
        let alive: Vec<_> = processes.iter().filter(|process| process.is_alive()).collect();
        assert!(begun.elapsed() < Duration::from_secs(5), "{alive:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_supervisor() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("killed");
    sandbox.write("pod.yaml", POD);
    sandbox.must_be_up();
    let processes = sandbox.processes();
    assert!(processes.len() >= 4, "supervisor, first process, shell, sleep: {processes:?}");
    signal(sandbox.owner(), Signal::SIGKILL);
    all_end(&processes);
    let output = sandbox.run("status", &[]);
    assert!(!output.status.success() && text(&output).contains("is not running"), "{}", text(&output));
    sandbox.down();
    sandbox.nothing_is_left(&processes);

    // Without `down`, the next `up` takes the name over.
    sandbox.must_be_up();
    let processes = sandbox.processes();
    signal(sandbox.owner(), Signal::SIGKILL);
    all_end(&processes);
    sandbox.must_be_up();
    let again = text(&sandbox.up("5"));
    assert!(again.contains("is running already"), "{again}");
    sandbox.down();
}

#[test]
fn an_interrupted_start() {
    if !root() {
        return;
    }
    for by in [Signal::SIGINT, Signal::SIGTERM] {
        let sandbox = Sandbox::new("interrupted");
        sandbox.write("pod.yaml", POD);
        sandbox.write("never.yaml", NEVER_READY);
        let mut up = sandbox.start_up("60");
        let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("ready: default/p"));
        let processes = sandbox.processes();
        signal(up.id(), by);
        let status = up.wait().unwrap();
        assert_eq!(status.code(), Some(130));
        sandbox.nothing_is_left(&processes);
    }
}

#[test]
fn a_terminated_supervisor_ends_in_order() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("terminated");
    sandbox.write("pod.yaml", POD);
    sandbox.must_be_up();
    let processes = sandbox.processes();
    signal(sandbox.owner(), Signal::SIGTERM);
    all_end(&processes);
    sandbox.down();
}

#[test]
fn down_of_nothing() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("nothing");
    let output = sandbox.run("down", &[]);
    assert!(output.status.success() && text(&output).contains("there is no sandbox"), "{}", text(&output));
}
