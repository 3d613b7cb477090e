//! Sandboxes of an ordinary user: with a range of ids, and what is said where that can not work.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    faults::all_end,
    support::{EXAMPLE, Sandbox, root, text},
    user::{FIRST_SUB_ID, SUB_IDS, UID, User},
};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: host
      command: [sh, -c, "id -u > /data/id; exec sleep infinity"]
      securityContext: {runAsUser: 4321, runAsGroup: 4321}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
"#;

/// All ids of a process on the machine: user, then group.
fn ids(pid: u32) -> BTreeSet<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
    lines.flat_map(|line| line.split_ascii_whitespace().skip(1).map(|id| id.parse().unwrap())).collect()
}

#[test]
fn a_whole_mesh_of_an_ordinary_user() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::of_user("rootless", User::new("rootless"));
    for entry in fs::read_dir(EXAMPLE).unwrap().flatten() {
        fs::copy(entry.path(), sandbox.folder.join(entry.file_name())).unwrap();
    }
    let output = sandbox.run("up", &[sandbox.folder.to_str().unwrap(), "--timeout", "40"]);
    assert!(output.status.success(), "{}", text(&output));

    // No process of it has an id of root or of anybody else.
    let processes = sandbox.processes();
    assert!(processes.len() > 12, "{processes:?}");
    let own = |id: &u32| *id == UID || (FIRST_SUB_ID..FIRST_SUB_ID + SUB_IDS).contains(id);
    for process in &processes {
        let ids = ids(process.pid);
        assert!(ids.iter().all(own), "{process:?} has the ids {ids:?}");
    }
    // The proxy's user is its own inside, and so is known to the redirect.
    let proxies = processes.iter().filter(|process| ids(process.pid).contains(&(FIRST_SUB_ID + 1337 - 1))).count();
    assert_eq!(proxies, 5, "{processes:?}");

    let client = "shop/deploy/client";
    // Both families.
    let said = sandbox.says(client, &["ip", "-6", "address", "show", "dev", "eth0"]);
    assert!(said.contains("inet6 fd00:198:18::"), "{said}");
    let load = ["/.weir/weir", "sandbox-load", "http://catalog/", "--requests", "200", "--fresh"];
    let report: serde_json::Value = serde_json::from_str(&sandbox.says(client, &load)).unwrap();
    assert_eq!((&report["failures"], &report["tally"]), (&0.into(), &serde_json::json!({"v1": 180, "v2": 20})));
    let metrics = sandbox.says(client, &["curl", "-sS", "-m", "5", "http://127.0.0.1:15090/stats/prometheus"]);
    assert!(metrics.contains("connection_security_policy=\"mutual_tls\""), "{metrics}");
    let output = sandbox.exec(client, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let logs = text(&sandbox.run("logs", &[client, "-c", "weir-proxy"]));
    assert!(logs.contains("ready"), "{logs}");

    // A killed supervisor leaves files of users whom only the user namespace has.
    let ca = sandbox.state().join("ca");
    assert_eq!(fs::metadata(&ca).unwrap().uid(), FIRST_SUB_ID + 65_532 - 1);
    kill(Pid::from_raw(sandbox.owner().try_into().unwrap()), Signal::SIGKILL).unwrap();
    all_end(&processes);
    sandbox.down();
    sandbox.nothing_is_left(&processes);
}

#[test]
fn pods_of_an_ordinary_user_come_and_go() {
    if !root() {
        return;
    }
    // Where something is mounted in /etc, as containers have it, there is no overlay.
    let mut user = User::new("rootless-pods");
    user.before = "mount --bind /etc/hostname /etc/issue".into();
    let sandbox = Sandbox::of_user("rootless-pods", user);
    sandbox.write("pod.yaml", POD);
    sandbox.must_be_up();
    let said =
        sandbox.says("p", &["sh", "-c", "cat /data/id; stat -c %u /data/id; getent passwd root; cat /etc/hosts"]);
    assert!(said.starts_with("4321\n4321\nroot:") && said.contains("\tp\n"), "{said}");
    let again = text(&sandbox.up("5"));
    assert!(again.contains("is running already"), "{again}");
    // In order, with what a pod of another user has written.
    sandbox.down();

    sandbox.write("pod.yaml", &POD.replace("4321", "70000"));
    let said = text(&sandbox.up("4"));
    assert!(said.contains("group 70000 is not among the ids of this sandbox"), "{said}");
    sandbox.nothing_is_left(&BTreeSet::new());
}

/// `up` must fail with exactly one line that has all parts, and leave nothing.
fn says_in_one_line(what: &str, sandbox: &Sandbox, output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {}", text(output));
    assert!(said.lines().count() == 1 && said.starts_with("weir: "), "{what}: {}", text(output));
    for part in parts {
        assert!(said.contains(part), "{what}: {part:?} is not in: {said}");
    }
    sandbox.nothing_is_left(&BTreeSet::new());
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    if !root() {
        return;
    }
    type Change = fn(&mut User);
    let cases: [(&str, Change, &[&str]); 8] = [
        (
            "no program that maps ids",
            |user| user.before = "mount --bind /dev/null /usr/bin/newuidmap".into(),
            &["`newuidmap`", "package uidmap"],
        ),
        (
            "no ids for the user",
            |user| user.set("subuid", ""),
            &["/etc/subuid gives weir-test no ids", "usermod --add-subuids"],
        ),
        (
            "too few ids",
            |user| user.set("subgid", "weir-test:800000:1000\n"),
            &["65536", "/etc/subgid gives weir-test only 1000 ids"],
        ),
        (
            "a program that may gain no privileges",
            |user| user.options = vec!["--no-new-privs"],
            &["newuidmap refused", "no_new_privs"],
        ),
        (
            "a /proc that hides parts of itself",
            |user| user.before = "mount --bind /dev/null /proc/version".into(),
            &["a new view of /proc", "container"],
        ),
        (
            "a kernel without nf_tables",
            |user| {
                user.program("nft", "echo 'Error: Could not process rule: Operation not supported' >&2; exit 1");
            },
            &["nf_tables do not work here", "Operation not supported", "modprobe"],
        ),
        (
            "no CNI plugins",
            |user| {
                user.before = "mkdir -p $D/empty; for f in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do \
                               if [ -d $f ]; then mount --bind $D/empty $f; fi; done"
                    .into();
            },
            &["CNI plugin `ptp`", "containernetworking-plugins"],
        ),
        (
            "no nft",
            |user| user.before = "mount --bind /dev/null $(PATH=/usr/sbin:/sbin:$PATH command -v nft)".into(),
            &["`nft` (Debian package nftables)", "install it first"],
        ),
    ];
    for (what, change, parts) in cases {
        let mut user = User::new("missing");
        change(&mut user);
        let sandbox = Sandbox::of_user("missing", user);
        sandbox.write("pod.yaml", POD);
        says_in_one_line(what, &sandbox, &sandbox.up("5"), parts);
    }
}

#[test]
fn user_namespaces_that_are_switched_off() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::of_user("switched-off", User::new("switched-off"));
    sandbox.write("pod.yaml", POD);
    let up = sandbox.command("up", &[sandbox.folder.to_str().unwrap(), "--without-mesh"]);
    // The setting is one of each user namespace; that of the machine is left alone.
    let script = "read go; exec sh -c 'echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"' sh \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "sh", "-c", script, "sh"]).arg(up.get_program()).args(up.get_args());
    command.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let map = |file: &str| fs::write(format!("/proc/{}/{file}", child.id()), "0 0 4294967295");
    let begun = Instant::now();
    // Until the namespace is there, the map is that of the machine and can not be written.
    while map("uid_map").is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "no user namespace");
        std::thread::sleep(Duration::from_millis(5));
    }
    map("gid_map").unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    says_in_one_line("switched off", &sandbox, &output, &["user.max_user_namespaces=0", "sysctl", "or run it as root"]);
}
