//! The demo itself: what the README promises, with the whole mesh.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::support::{Sandbox, root, text};

fn demo(sandbox: &Sandbox, args: &[&str]) -> Command {
    let bin_dir = Path::new(env!("CARGO_BIN_EXE_weir")).parent().unwrap();
    for program in ["weir-cni", "weir-control", "weir-proxy", "weir-webhook"] {
        assert!(bin_dir.join(program).is_file(), "{program} is not built: run `cargo build --workspace` first");
    }
    let example = "../examples/canary";
    let mut command = sandbox.command("demo", &[example]);
    command.args(args);
    command
}

/// Folders that demos copied the example to.
fn copies(sandbox: &Sandbox) -> usize {
    let prefix = format!("weir-{}-", sandbox.name);
    let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

#[test]
fn everything_comes_out_as_it_should() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("demo");
    let output = demo(&sandbox, &[]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && !said.contains("\n  FAIL "), "{said}");
    for part in ["the split is 90/10", "nothing is left", "belongs to a TLS record"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(copies(&sandbox), 0);
    assert!(!sandbox.exists());
}

#[test]
fn interrupted_half_way_it_leaves_nothing() {
    if !root() {
        return;
    }
    for (at, by) in [("ready: weir-system", Signal::SIGINT), ("captured on the links", Signal::SIGTERM)] {
        let sandbox = Sandbox::new("demo");
        let mut running = demo(&sandbox, &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(at)), "{at:?} was not reached");
        let processes = sandbox.processes();
        kill(Pid::from_raw(running.id().try_into().unwrap()), by).unwrap();
        // Its output is read to the end, or it could wait for us.
        let _ = lines.count();
        assert_eq!(running.wait().unwrap().code(), Some(130));
        sandbox.nothing_is_left(&processes);
        assert_eq!(copies(&sandbox), 0);
    }
}

#[test]
fn a_killed_demo_is_taken_down_by_its_name() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("demo");
    let mut running = demo(&sandbox, &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("What each pod got")));
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(sandbox.exists() && copies(&sandbox) == 1);
    sandbox.down();
    assert_eq!(copies(&sandbox), 0);
}
