//! The node agent and pods: the real chain (Debian's ptp and host-local, then our plugin) in real network namespaces, run by a
//! stand-in for the container runtime.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod node;
#[path = "../../init/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use node::{Agent, Node, REPAIR, mesh};
use serde_json::{Value, json};
use support::{Netns, can_run};

const SOON: Duration = Duration::from_secs(10);
const SAMPLES: [(&str, &str); 3] = [
    ("pods-ID-eth0", include_str!("cache/libcni-1.1.2-eth0.json")),
    ("cni-loopback-ID-lo", include_str!("cache/libcni-1.1.2-lo.json")),
    ("pods-ID-eth0", include_str!("cache/libcni-1.3.0-eth0.json")),
];

fn redirected(pod: &Netns) -> bool {
    let rules = pod.ruleset();
    rules.contains("table ip weir") && rules.contains("table ip6 weir")
}

/// A node in whose namespace the plugins run, with a primary network.
fn start() -> (Node, Netns, Agent) {
    let (node, namespace) = (Node::new(), Netns::new("node"));
    namespace.ip("link set lo up\n");
    let agent = node.start();
    node.put_primary("10-pods.conflist");
    agent.until("ready", SOON, || node.is_ready());
    (node, namespace, agent)
}

/// A note as libcni wrote it, of a pod.
fn sample(which: usize, pod: &Netns) -> (String, String) {
    let (name, text) = SAMPLES[which];
    let text = text.replace("cnitool-a4f9bf5a8a5900e269e9", &pod.name).replace("weir-gen-pod", &pod.name);
    (name.replace("ID", &pod.name), text)
}

#[test]
fn pods_that_started_without_the_plugin_are_repaired() {
    if !can_run() {
        return;
    }
    let (node, namespace, mut agent) = start();
    let in_chain = Netns::new("a");
    node.add(&namespace, &in_chain, &mesh()).unwrap();
    assert!(redirected(&in_chain));
    // The plugin is taken out of the chain while no agent runs: pods start, and none is redirected.
    assert!(agent.stop());
    fs::remove_file(node.conflist()).unwrap();
    let (before, plain, empty) = (Netns::new("b"), Netns::new("plain"), Netns::new("empty"));
    node.add(&namespace, &before, &mesh()).unwrap();
    node.add(&namespace, &plain, &json!({"a": "b"})).unwrap();
    node.add(&namespace, &empty, &Value::Null).unwrap();
    assert!(!redirected(&before));
    let untouched = in_chain.ruleset();
    let agent = node.start();
    agent.until("repaired at start", SOON, || redirected(&before));
    agent.says("\"redirect repaired\"");
    // As the plugin would have made it.
    assert_eq!(before.ruleset(), untouched);
    assert_eq!((plain.ruleset().as_str(), empty.ruleset().as_str()), ("", ""));
    // One that starts without it while the agent runs: its note alone tells.
    let later = Netns::new("c");
    agent.until("ready", SOON, || node.is_ready());
    node.note(&sample(0, &later).0, b""); // the runtime begins to write
    node.note(&sample(0, &later).0, sample(0, &later).1.as_bytes());
    let took = agent.until("repaired after its start", REPAIR, || redirected(&later));
    println!("repaired {took:?} after its note");
    agent.says(&format!("\"netns\":\"/var/run/netns/{}\"", later.name));
    assert_eq!(agent.count("redirect repaired"), 2, "{}", agent.log());
    assert_eq!(agent.count("warn") + agent.count("error"), 0, "{}", agent.log());
    agent.lines();
}

#[test]
fn two_capabilities_are_enough() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    node.put_primary("10-pods.conflist");
    let (pod, nested) = (Netns::new("pod"), Netns::new("users"));
    // A pod with a user namespace of its own (hostUsers: false), which owns its network namespace.
    let path = nested.path();
    nix::mount::umount(&path).unwrap();
    let mut child = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", "echo up; read x"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    let source = format!("/proc/{}/ns/net", child.id());
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(source.as_str()), &path, None::<&str>, flags, None::<&str>).unwrap();
    for pod in [&pod, &nested] {
        let (name, text) = sample(0, pod);
        node.note(&name, text.as_bytes());
    }
    let agent = node.start_with_capabilities("+net_admin,+sys_admin");
    agent.until("repaired", SOON, || redirected(&pod) && redirected(&nested) && node.is_ready());
    child.kill().unwrap();
    child.wait().unwrap();
    // Without them it says what is missing, and keeps the plugin in place all the same.
    drop(agent);
    fs::remove_file(node.plugin()).unwrap();
    pod.exec("nft", &["flush", "ruleset"]);
    let agent = node.start_with_capabilities("+net_admin");
    agent.until("installed", SOON, || node.is_ready());
    agent.says("no permission to enter it: run as root (CAP_SYS_ADMIN)");
}

#[test]
fn notes_of_every_libcni_and_namespaces_from_the_loopback_note() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.start();
    agent.says("waiting for the primary");
    // libcni 1.3, which notes the namespace itself; and podman's folder.
    let new = Netns::new("new");
    let (name, text) = sample(2, &new);
    fs::create_dir_all(node.cache().join("cache/results")).unwrap();
    agent.until("the folder is watched", SOON, || {
        fs::write(node.cache().join("cache/results").join(&name), &text).unwrap();
        redirected(&new)
    });
    // A network plugin whose result names no namespace: it stands in the loopback's note alone, which comes by itself first.
    let old = Netns::new("old");
    let (name, text) = sample(1, &old);
    node.note(&name, text.as_bytes());
    let (name, text) = sample(0, &old);
    let mut note: Value = serde_json::from_str(&text).unwrap();
    note["result"]["interfaces"][1].as_object_mut().unwrap().remove("sandbox");
    thread::sleep(Duration::from_millis(200));
    assert!(!redirected(&old), "the chain may still be at work");
    node.note(&name, note.to_string().as_bytes());
    agent.until("repaired", SOON, || redirected(&old));
}

#[test]
fn rules_that_are_there_stay_and_half_of_them_are_completed() {
    if !can_run() {
        return;
    }
    let (node, namespace, mut agent) = start();
    let (other, half, flushed) = (Netns::new("other"), Netns::new("half"), Netns::new("flushed"));
    for pod in [&other, &half, &flushed] {
        node.add(&namespace, pod, &mesh()).unwrap();
    }
    let whole = half.ruleset();
    assert!(agent.stop());
    other.exec("nft", &["insert", "rule", "ip", "weir", "output", "tcp", "dport", "99", "return"]);
    let changed = other.ruleset();
    half.exec("nft", &["delete", "table", "ip6", "weir"]);
    flushed.exec("nft", &["flush", "chain", "ip", "weir", "inbound"]);
    let agent = node.start();
    agent.until("completed", SOON, || half.ruleset() == whole && flushed.ruleset() == whole);
    agent.says("left as it is");
    assert_eq!(other.ruleset(), changed);
}

#[test]
fn a_runtime_without_annotations_is_said_once() {
    if !can_run() {
        return;
    }
    let (node, namespace, agent) = start();
    fs::remove_file(node.conf().join("10-pods.conflist")).unwrap();
    node.put_primary("10-pods.conflist");
    let pods = [Netns::new("a"), Netns::new("b")];
    for pod in &pods {
        node.add(&namespace, pod, &json!({"absent": true})).unwrap();
        agent.says("redirect=init");
    }
    assert_eq!(agent.count("mesh pods of this node can not be found"), 1, "{}", agent.log());
    assert!(pods.iter().all(|pod| pod.ruleset().is_empty()));
}

/// Names among the namespaces that are none; taken away when dropped.
struct Names([String; 5]);

impl Drop for Names {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = nix::mount::umount(path.as_str());
            let _ = fs::remove_file(path);
        }
    }
}

#[test]
fn broken_and_hostile_notes_change_nothing_and_stop_nothing() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let pod = Netns::new("victim");
    let (name, good) = sample(0, &pod);
    let results = node.cache().join("results");
    let with = |netns: &str, id: &str| {
        let text = good.replace(&pod.path().display().to_string(), "NETNS").replace(&pod.name, id);
        let text = text.replace("NETNS", netns).replace("catalog-1", id);
        node.note(&name.replace(&pod.name, id), text.as_bytes());
    };
    let link = Netns::new("link");
    let named = format!("/var/run/netns/{}", link.name);
    let _names = Names(["", "-plain", "-fifo", "-own", "-bare"].map(|end| format!("{named}{end}")));
    // A name in the folder that leads to the node's own namespace, one that is a plain file, one that is a FIFO.
    nix::mount::umount(named.as_str()).unwrap();
    fs::remove_file(&named).unwrap();
    symlink("/proc/1/ns/net", &named).unwrap();
    with(&named, "link");
    let plain = format!("{named}-plain");
    fs::write(&plain, "x").unwrap();
    with(&plain, "plain");
    let bare = format!("{named}-bare");
    fs::write(&bare, "").unwrap();
    with(&bare, "bare");
    with(&format!("/var/run/netns/{}", "é".repeat(200_000)), "long");
    let fifo = format!("{named}-fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    with(&fifo, "fifo");
    let own = format!("{named}-own");
    fs::write(&own, "").unwrap();
    nix::mount::mount(
        Some("/proc/self/ns/net"),
        own.as_str(),
        None::<&str>,
        nix::mount::MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    with(&own, "own");
    with("/proc/1/ns/net", "proc");
    with(&format!("/var/run/netns/../netns/{}", pod.name), "dots");
    with(&format!("/var/run/netns/{}/", pod.name), "slash"); // the same name: this one is well
    with("/var/run/netns/", "folder");
    with("", "nothing");
    with("/var/run/netns/weir-no-such", "gone");
    let later = Netns::new("capture");
    let (name, text) = sample(0, &later);
    node.note(&name, text.replace("\\\"version\\\":1", "\\\"version\\\":7").replace("catalog-1", "capture").as_bytes());
    // Broken files of all kinds.
    node.note("pods-short-eth0", good.get(..good.len() / 2).unwrap().as_bytes());
    node.note("pods-othername-eth0", good.as_bytes());
    node.note("pods-deep-eth0", "[".repeat(1_000_000).as_bytes());
    node.note("pods-large-eth0", " ".repeat(3_000_000).as_bytes());
    node.note("pods-bytes-eth0", &[0xff; 100]);
    symlink("/dev/zero", results.join("pods-device-eth0")).unwrap();
    nix::unistd::mkfifo(&results.join("pods-pipe-eth0"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(results.join("pods-dir-eth0")).unwrap();
    let open = good.replace(&pod.name, "open");
    node.note("pods-open-eth0", open.as_bytes());
    fs::set_permissions(results.join("pods-open-eth0"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let own_rules = support::command("nft", &["list", "tables"], None);
    let agent = node.start();
    let reasons = [
        ("link", "no network namespace"),
        ("plain", "no network namespace"),
        ("fifo", "no network namespace"),
        ("bare", "HostToContainer"),
        ("long", "network namespace /var/run/netns/é"),
        ("own", "the node's own"),
        ("proc", "in none of the folders"),
        ("dots", "in none of the folders"),
        ("folder", "in none of the folders"),
        ("nothing", "no network namespace for it"),
        ("capture", "version 7 is not known"),
        ("othername", "another attachment than its name"),
        ("short", "not of the form"),
        ("deep", "not of the form"),
        ("bytes", "not of the form"),
        ("large", "larger than"),
        ("pods-device", "symbolic links"),
        ("pods-pipe", "not a regular file"),
        ("pods-dir", "not a regular file"),
        ("pods-open", "others than root can write it"),
    ];
    for (name, reason) in reasons {
        let said = || agent.log().lines().any(|line| line.contains(name) && line.contains(reason));
        agent.until(&format!("{name}: {reason}"), SOON, said);
    }
    assert!(agent.log().lines().all(|line| line.len() < 2000), "{}", agent.log());
    // The one good note among them is acted on; a second that claims the same namespace for a pod of no mesh is not believed.
    agent.until("the good one", SOON, || redirected(&pod));
    let claimed = Netns::new("claimed");
    let (name, text) = sample(0, &claimed);
    let none = text.replace("weir.dev/capture", "none").replace("containerId\":\"", "containerId\":\"x");
    node.note(&name.replace("pods-", "pods-x"), none.as_bytes());
    agent.says("node agent started");
    node.note(&name, text.as_bytes());
    agent.says("is noted for another pod as well");
    assert_eq!(claimed.ruleset(), "");
    assert_eq!(support::command("nft", &["list", "tables"], None), own_rules, "the node is never redirected");
    // Each is said once.
    node.note("pods-again-eth0", b"{}");
    agent.says("pods-again-eth0");
    assert_eq!(agent.count("pods-short-eth0"), 1, "{}", agent.log());
}

/// Pods start one after the other while `meanwhile` runs; what happened to each.
fn adding<T>(
    node: &Node,
    namespace: &Netns,
    meanwhile: impl FnOnce(&AtomicUsize) -> T,
) -> (T, Vec<Result<bool, String>>) {
    let (stop, count, results) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let result = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let pod = Netns::new("pod");
                    let added = node.add(namespace, &pod, &mesh()).map(|()| redirected(&pod));
                    results.lock().unwrap().push(added);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let result = meanwhile(&count);
        stop.store(true, Ordering::Relaxed);
        result
    });
    (result, results.into_inner().unwrap())
}

#[test]
fn no_pod_fails_or_escapes_while_the_agent_is_upgraded() {
    if !can_run() {
        return;
    }
    let (node, namespace, agent) = start();
    let versions = [node.version("one"), node.version("two")];
    let mut agent = Some(agent);
    let ((), results) = adding(&node, &namespace, |count| {
        for round in 0..8 {
            let (program, so_far) = (&versions[round % 2], count.load(Ordering::Relaxed));
            // The old one ends first, as a DaemonSet has it.
            assert!(agent.take().unwrap().stop());
            let new = node.start_program(program);
            let bytes = fs::read(program).unwrap();
            new.until("upgraded", SOON, || fs::read(node.plugin()).is_ok_and(|installed| installed == bytes));
            new.until("pods start", SOON, || count.load(Ordering::Relaxed) > so_far + 3);
            agent = Some(new);
        }
    });
    println!("{} pods started during 8 upgrades", results.len());
    assert!(results.len() >= 24 && results.iter().all(|result| *result == Ok(true)), "{results:?}");
    let _ = fs::read_dir(node.bin()).unwrap().map(|entry| assert_eq!(entry.unwrap().file_name(), "weir-cni")).count();
}

#[test]
fn an_upgrade_that_writes_in_place_would_fail_pods() {
    if !can_run() {
        return;
    }
    // What the test above would see if the plugin were not replaced in one step.
    let (node, namespace, mut agent) = start();
    assert!(agent.stop());
    let bytes = fs::read(node.plugin()).unwrap();
    let ((), results) = adding(&node, &namespace, |count| {
        for _ in 0..500 {
            fs::remove_file(node.plugin()).unwrap();
            thread::sleep(Duration::from_millis(5));
            fs::write(node.plugin(), &bytes).unwrap();
            fs::set_permissions(node.plugin(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            if count.load(Ordering::Relaxed) > 20 {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(results.iter().any(Result::is_err), "{results:?}");
}

#[test]
fn no_pod_fails_while_everything_is_uninstalled() {
    if !can_run() {
        return;
    }
    let (node, namespace, mut agent) = start();
    let ((), results) = adding(&node, &namespace, |count| {
        agent.until("pods start", SOON, || count.load(Ordering::Relaxed) > 3);
        assert!(agent.stop());
        let (code, why) = node.call(&["--uninstall"]);
        assert_eq!(code, 0, "{why}");
        let so_far = count.load(Ordering::Relaxed);
        agent.until("pods start without it", SOON, || count.load(Ordering::Relaxed) > so_far + 3);
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!((results.first(), results.last()), (Some(&Ok(true)), Some(&Ok(false))));
    assert_eq!(node.call(&["--check", "--uninstall"]).0, 0);
}
