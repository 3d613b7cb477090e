//! The demo itself: what the README promises, with the whole mesh.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Lines, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::support::{EXAMPLE, MESH_PROGRAMS, Process, Sandbox, bin_dir, root, text, unread};

/// Whole demos run one after the other: they measure.
static ONE: Mutex<()> = Mutex::new(());

fn demo_of(sandbox: &Sandbox, example: &str, args: &[&str]) -> Command {
    let bin_dir = Path::new(env!("CARGO_BIN_EXE_weir")).parent().unwrap();
    for program in MESH_PROGRAMS {
        assert!(bin_dir.join(program).is_file(), "{program} is not built: run `cargo build --workspace` first");
    }
    let mut command = sandbox.command("demo", &[example]);
    command.args(args);
    command
}

fn demo(sandbox: &Sandbox, args: &[&str]) -> Command {
    demo_of(sandbox, EXAMPLE, args)
}

/// Runs a demo that fails after a pod was ready: what it said, and which processes there were.
fn fails(sandbox: &Sandbox, example: &str) -> (Option<i32>, String, BTreeSet<Process>) {
    let mut command = demo_of(sandbox, example, &[]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready: ")), "no pod was ready");
    let processes = sandbox.processes();
    let _ = lines.count();
    let output = running.wait_with_output().unwrap();
    (output.status.code(), text(&output), processes)
}

/// A demo that runs, in a process group of its own as a shell would start it.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(sandbox: &Sandbox) -> Self {
        let mut command = demo(sandbox, &[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn until(&mut self, part: &str) {
        assert!(self.lines.any(|line| line.unwrap().contains(part)), "{part:?} was not reached");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Reads its output to the end, or it could wait for us: exit code, and what it said as error.
    fn end(mut self) -> (Option<i32>, String) {
        let _ = self.lines.count();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

#[test]
fn everything_comes_out_as_it_should() {
    if !root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("demo");
    let output = demo(&sandbox, &[]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && !said.contains("\n  FAIL "), "{said}");
    for part in [
        "the split is 90/10",
        "saw the caller spiffe://cluster.local/ns/shop/sa/client",
        "belongs to a TLS record",
        "TLS is on both links of every hop: from the client to 3 pods of catalog and to redis",
        "it has no label and no annotation weir.dev/",
        "its network namespace has 0 lines of nft rules",
        "nothing is left",
        "the whole demo took",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!sandbox.exists());
}

#[test]
fn interrupted_it_leaves_nothing() {
    if !root() {
        return;
    }
    for (at, by) in [
        ("ready: weir-system", Signal::SIGINT),
        // While requests run, which it does not wait for.
        ("3. The rule and the pods change", Signal::SIGHUP),
        ("4. The pod of namespace outside", Signal::SIGTERM),
    ] {
        let sandbox = Sandbox::new("demo");
        let mut running = Running::start(&sandbox);
        running.until(at);
        let processes = sandbox.processes();
        running.signal(by);
        let (code, said) = running.end();
        assert_eq!(code, Some(130), "{at}: {said}");
        sandbox.nothing_is_left(&processes);
    }
}

#[test]
fn interrupted_while_it_starts_it_leaves_nothing() {
    if !root() {
        return;
    }
    // Which step of the start each time meets depends on the machine; none may leave anything. The terminal interrupts all
    // processes of the group.
    for wait_ms in [0, 5, 20, 60, 150, 400] {
        let sandbox = Sandbox::new("demo");
        let mut running = Running::start(&sandbox);
        running.until("Start");
        sleep(Duration::from_millis(wait_ms));
        killpg(running.pid(), Signal::SIGINT).unwrap();
        let (code, said) = running.end();
        assert_eq!(code, Some(130), "after {wait_ms} ms: {said}");
        assert!(said.contains("interrupted: taking everything down"), "{said}");
        sandbox.nothing_is_left(&BTreeSet::new());
        sandbox.has_no_process();
    }
}

#[test]
fn interrupted_while_it_ends_it_leaves_nothing() {
    if !root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("demo");
    let mut running = Running::start(&sandbox);
    // The last that it says before it takes everything down.
    running.until("the client's proxy counted");
    let processes = sandbox.processes();
    for _ in 0..3 {
        running.signal(Signal::SIGINT);
        sleep(Duration::from_millis(30));
    }
    let (_, said) = running.end();
    assert!(said.contains("already taking everything down"), "{said}");
    sandbox.nothing_is_left(&processes);
}

#[test]
fn killed_it_is_taken_down_by_its_name() {
    if !root() {
        return;
    }
    for (at, wait_ms) in [("Start", 0), ("Start", 20), ("Start", 100), ("2. 1,000 requests", 300)] {
        let sandbox = Sandbox::new("demo");
        let mut running = Running::start(&sandbox);
        running.until(at);
        sleep(Duration::from_millis(wait_ms));
        running.signal(Signal::SIGKILL);
        assert_eq!(running.end().0, None);
        if at != "Start" {
            let again = demo(&sandbox, &[]).output().unwrap();
            assert_eq!(again.status.code(), Some(2));
            assert!(text(&again).contains("sandbox down --name"), "{}", text(&again));
        }
        sandbox.down();
        sandbox.has_no_process();
        // The name is free again.
        let mut next = Running::start(&sandbox);
        next.until("ready: weir-system");
        next.signal(Signal::SIGINT);
        assert_eq!(next.end().0, Some(130));
        sandbox.nothing_is_left(&BTreeSet::new());
    }
}

#[test]
fn kept_it_goes_on_until_it_is_taken_down() {
    if !root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("demo");
    let output = demo(&sandbox, &["--keep"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && sandbox.exists(), "{said}");
    let client = "shop/deploy/client";

    let status = text(&sandbox.run("status", &[]));
    assert!(status.contains("all ready") && status.contains("catalog-v2"), "{status}");
    let answer = sandbox.says(client, &["curl", "-sS", "-i", "-m", "5", "http://catalog/"]);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-version: v"), "{answer}");
    let logs = sandbox.run("logs", &[client, "-c", "weir-proxy"]);
    assert!(logs.status.success() && text(&logs).contains("ready"), "{}", text(&logs));

    // The file that it says to edit.
    let line = said.lines().find_map(|line| line.trim().strip_prefix("edit ")).unwrap();
    let route = Path::new(line.split(" and ").next().unwrap());
    let before = fs::read_to_string(route).unwrap();
    let after = before.replacen("weight: 50", "weight: 1", 1).replacen("weight: 50", "weight: 0", 1);
    assert_ne!(before, after, "{before}");
    fs::write(route, after).unwrap();
    let edited = Instant::now();
    loop {
        let load = ["/.weir/weir", "sandbox-load", "http://catalog/", "--requests", "40"];
        let report: serde_json::Value = serde_json::from_str(&sandbox.says(client, &load)).unwrap();
        assert_eq!(report["failures"], 0, "{report}");
        if report["tally"] == serde_json::json!({"v1": 40}) {
            break;
        }
        assert!(edited.elapsed() < Duration::from_secs(5), "the edit has no effect: {}", report["tally"]);
    }

    sandbox.down();
}

#[test]
fn failing_half_way_it_leaves_nothing() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("demo");
    for entry in fs::read_dir(EXAMPLE).unwrap().flatten() {
        fs::copy(entry.path(), sandbox.folder.join(entry.file_name())).unwrap();
    }
    let catalog = sandbox.folder.join("catalog.yaml");
    let before = fs::read_to_string(&catalog).unwrap();
    let after = before.replace("command: [nginx,", "command: [no-such-server,");
    assert_ne!(before, after);
    fs::write(&catalog, after).unwrap();
    let (code, said, processes) = fails(&sandbox, sandbox.folder.to_str().unwrap());
    assert_eq!(code, Some(1), "{said}");
    for part in ["pod shop/catalog-v", "container nginx", "\"no-such-server\" is not found"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(processes.len() > 3, "{processes:?}");
    sandbox.nothing_is_left(&processes);
}

#[test]
fn without_one_of_the_programs_it_does_not_begin() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("demo");
    let folder = bin_dir(&sandbox, "weir-proxy");
    let output = demo(&sandbox, &["--bin-dir", folder.to_str().unwrap()]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("weir-proxy not found in") && said.contains("--bin-dir"), "{said}");
    sandbox.nothing_is_left(&BTreeSet::new());
}

#[test]
fn unread_it_ends_and_leaves_nothing() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("demo");
    let output = demo(&sandbox, &[]).stdout(unread()).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(text(&output), "");
    sandbox.nothing_is_left(&BTreeSet::new());
}
