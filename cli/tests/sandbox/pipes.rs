//! Readers that stop early: every command ends quietly, and has done what it was asked.

use std::{
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use super::support::{Sandbox, root, text, unread};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: c, image: host, command: [sh, -c, "while sleep 0.05; do echo on and on; done"]}
"#;

/// Runs a command whose output nobody reads: it must end soon, without a word.
fn quiet(sandbox: &Sandbox, command: &str, args: &[&str]) -> Output {
    let mut running = sandbox.command(command, args).stdout(unread()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while running.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(20) {
            running.kill().unwrap();
            panic!("{command} {args:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = running.wait_with_output().unwrap();
    assert_eq!(text(&output), "", "{command} {args:?}");
    output
}

#[test]
fn nobody_reads() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("pipes");
    sandbox.write("pod.yaml", POD);
    let folder = sandbox.folder.to_str().unwrap().to_owned();
    let succeeds = |command: &str, args: &[&str]| {
        let output = quiet(&sandbox, command, args);
        assert!(output.status.success(), "{command} {args:?}: {}", output.status);
    };
    succeeds("up", &[&folder, "--without-mesh", "--timeout", "20"]);
    assert!(sandbox.status()["ready"].as_bool().unwrap());
    succeeds("status", &[]);
    succeeds("status", &["--json"]);
    succeeds("status", &["--events"]);
    sandbox.wait("a line of the log", |_| !sandbox.run("logs", &["p"]).stdout.is_empty());
    succeeds("logs", &["p"]);
    succeeds("logs", &["p", "-f"]);
    // Here the pipe is the program's own: it ends as it would in a shell.
    assert_eq!(quiet(&sandbox, "exec", &["p", "--", "yes"]).status.code(), Some(128 + 13));
    let processes = sandbox.processes();
    succeeds("down", &[]);
    sandbox.nothing_is_left(&processes);
}
