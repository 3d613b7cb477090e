//! The node agent and the node's folders: the real program, real files, real inotify. No root needed.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod node;
#[path = "../../init/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use node::{Agent, CAPABILITY, CONFLIST, Node, REPAIR, weir_cni};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn ours(node: &Node) -> Value {
    json!({"type": "weir-cni", "capabilities": {CAPABILITY: true}, "stateDir": node.cache().join("weir-cni")})
}

/// A list of one plugin.
fn list(name: &str, kind: &str) -> String {
    json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": kind}]}).to_string()
}

/// Waits until our configuration is that of a network.
#[track_caller]
fn follows(node: &Node, agent: &Agent, network: &str) {
    let is = || node.conflist_json().is_some_and(|list| list["name"] == network);
    agent.until(network, SOON, || is() && node.is_ready());
}

#[test]
fn installs_and_leaves_everything_at_its_end() {
    let node = Node::new();
    let (code, why) = node.call(&["--check"]);
    assert_eq!(code, 1);
    assert!(why.contains("is not in place: it is missing") && why.lines().count() == 1, "{why}");
    let mut agent = node.start();
    agent.says("waiting for the primary network plugin's configuration");
    assert!(node.plugin().exists() && !node.conflist().exists());
    assert!(node.call(&["--check"]).1.contains("no network plugin has put its configuration"));
    node.put_primary("10-pods.conflist");
    follows(&node, &agent, "pods");
    let mut want = node.primary("pods");
    want["plugins"].as_array_mut().unwrap().push(ours(&node));
    assert_eq!(node.conflist_json().unwrap(), want);
    assert_eq!(fs::read(node.plugin()).unwrap(), fs::read(weir_cni()).unwrap());
    let before = node.everything();
    assert!(agent.stop());
    assert_eq!(node.everything(), before, "SIGTERM changes nothing");
    agent.says("stay in place");
    assert_eq!(agent.count("waiting for the primary"), 1);
    agent.lines();
    // Another agent finds everything there, and changes nothing either.
    let again = node.start();
    again.says("node agent started");
    again.until("ready", SOON, || node.is_ready());
    assert!(!again.log().contains("installed") && !again.log().contains("repaired"), "{}", again.log());
    assert_eq!(node.everything(), before);
}

#[test]
fn follows_the_primary() {
    let node = Node::new();
    node.put("10-a.conflist", &list("a", "bridge"));
    let agent = node.start();
    follows(&node, &agent, "a");
    // Changed in place, replaced by one that sorts before it, removed again.
    fs::write(node.conf().join("10-a.conflist"), list("a2", "bridge")).unwrap();
    follows(&node, &agent, "a2");
    node.put("05-b.conf", r#"{"cniVersion":"0.3.1","name":"b","type":"macvlan","x":{"y":0.10}}"#);
    follows(&node, &agent, "b");
    let text = fs::read_to_string(node.conflist()).unwrap();
    assert!(text.contains(r#"{"cniVersion":"0.3.1","name":"b","type":"macvlan","x":{"y":0.10}}"#), "{text}");
    fs::remove_file(node.conf().join("05-b.conf")).unwrap();
    follows(&node, &agent, "a2");
    // Its permissions are followed, and never more is allowed than by the primary.
    fs::set_permissions(node.conf().join("10-a.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
    let mode = || fs::metadata(node.conflist()).unwrap().permissions().mode() & 0o777;
    agent.until("permissions", REPAIR, || mode() == 0o600);
    // One that sorts before our usual name.
    node.put("00-a.conflist", &list("first", "bridge"));
    let other = node.conf().join("!00-weir.conflist");
    agent.until("the other name", SOON, || other.exists() && !node.conflist().exists() && node.is_ready());
    fs::remove_file(node.conf().join("00-a.conflist")).unwrap();
    follows(&node, &agent, "a2");
    assert!(!other.exists());
    assert!(!agent.log().contains("repaired") && !agent.log().contains("error"), "{}", agent.log());
    // Removed for good: ours outlives it a moment, for those who delete before they write, and not longer.
    fs::remove_file(node.conf().join("10-a.conflist")).unwrap();
    agent.until("still there", Duration::from_millis(500), || node.conflist().exists());
    agent.until("removed", SOON, || !node.conflist().exists());
    agent.says("waiting for the primary");
    node.put("10-a.conflist", &list("a3", "bridge"));
    follows(&node, &agent, "a3");
}

#[test]
fn deleted_and_written_again_leaves_no_gap() {
    let node = Node::new();
    node.put("10-a.conflist", &list("a", "bridge"));
    let agent = node.start();
    follows(&node, &agent, "a");
    for round in 0..20 {
        fs::remove_file(node.conf().join("10-a.conflist")).unwrap();
        assert!(node.conflist().exists(), "round {round}");
        fs::write(node.conf().join("10-a.conflist"), list(&format!("a{round}"), "bridge")).unwrap();
        assert!(node.conflist().exists(), "round {round}");
        follows(&node, &agent, &format!("a{round}"));
    }
    assert!(!agent.log().contains("removed") && !agent.log().contains("can not be used"), "{}", agent.log());
}

#[test]
fn a_malformed_primary_keeps_the_last_good_one() {
    let node = Node::new();
    let agent = node.start();
    node.put("10-a.conflist", "{");
    agent.says("the plugin is not in the chain");
    assert!(!node.conflist().exists());
    node.put("10-a.conflist", &list("a", "bridge"));
    follows(&node, &agent, "a");
    let good = fs::read(node.conflist()).unwrap();
    for (text, why) in [
        ("", "it is empty"),
        ("{\"name\":", "no JSON object"),
        (r#"{"name":"a","plugins":[]}"#, "plugins is missing"),
        (r#"{"cniVersion":"9.0.0","name":"a","plugins":[{"type":"x"}]}"#, "upgrade Weir before"),
    ] {
        node.put("10-a.conflist", text);
        agent.says(why);
        assert_eq!(fs::read(node.conflist()).unwrap(), good, "{text}");
        let (code, line) = node.call(&["--check"]);
        assert!(code == 1 && line.contains(why), "{line}");
        // Also when ours is damaged meanwhile.
        fs::remove_file(node.conflist()).unwrap();
        agent.until("repaired", REPAIR, || fs::read(node.conflist()).is_ok_and(|bytes| bytes == good));
    }
    // An agent that starts now has no better one either, and leaves what is there.
    drop(agent);
    let mut agent = node.start();
    agent.says("ours stays as it was");
    assert_eq!(fs::read(node.conflist()).unwrap(), good);
    node.put("10-a.conflist", &list("b", "bridge"));
    follows(&node, &agent, "b");
    assert!(agent.stop());
}

type Damage = fn(&Path);

#[test]
fn what_is_damaged_is_repaired_within_a_second() {
    let node = Node::new();
    node.put_primary("10-pods.conflist");
    let agent = node.start();
    follows(&node, &agent, "pods");
    let good = node.everything();
    let damages: [(&str, Damage); 6] = [
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| drop(fs::File::create(path).unwrap())),
        ("written to", |path| fs::write(path, "{}").unwrap()),
        ("no permissions", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap()),
        ("open to all", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap()),
        ("a link", |path| {
            // In one step, or the agent would be quicker.
            let link = path.parent().unwrap().join("link");
            symlink("/etc/hostname", &link).unwrap();
            fs::rename(link, path).unwrap();
        }),
    ];
    let mut slowest = Duration::ZERO;
    for path in [node.plugin(), node.conflist()] {
        for (what, damage) in damages {
            damage(&path);
            let what = format!("{} {what}", path.display());
            slowest = slowest.max(agent.until(&what, REPAIR, || node.everything() == good));
        }
    }
    println!("slowest repair: {slowest:?}");
    agent.until("said", SOON, || agent.count("plugin repaired") >= 6 && agent.count("configuration repaired") >= 6);
    assert!(Path::new("/etc/hostname").exists());
}

#[test]
fn ours_is_never_there_twice() {
    let node = Node::new();
    // By hand in the primary, a copy under the other name, and the rest of an agent that was killed while it wrote.
    node.put("10-a.conflist", r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"weir-cni"}]}"#);
    node.put("!00-weir.conflist", &list("old", "bridge"));
    fs::write(node.conf().join(".weir-conflist.new"), "half").unwrap();
    let agent = node.start();
    follows(&node, &agent, "a");
    agent.until("the other is gone", SOON, || !node.conf().join("!00-weir.conflist").exists());
    assert_eq!(node.conflist_json().unwrap()["plugins"], json!([{"type": "bridge"}, ours(&node)]));
    // A second agent waits for its turn, and takes it.
    let mut second = node.start();
    second.says("waiting for another agent on this node to end");
    assert_eq!(second.lines().len(), 1);
    assert!(node.is_ready());
    drop(agent);
    second.says("node agent started");
    fs::remove_file(node.conflist()).unwrap();
    second.until("repaired", REPAIR, || node.is_ready());
    // A component that copies the first configuration into its own must not be copied back.
    let copy = json!({"cniVersion": "1.0.0", "name": "m", "plugins": [
        {"type": "multus", "delegates": [node.conflist_json().unwrap()]}]});
    node.put("00-multus.conflist", &copy.to_string());
    second.says("holds a copy of Weir's own configuration");
    assert_eq!(node.conflist_json().unwrap()["name"], "a");
    assert!(second.stop());
}

#[test]
fn cilium_that_renames_ours_is_said() {
    let node = Node::new();
    node.put("05-cilium.conflist", &list("cilium", "cilium-cni"));
    let agent = node.start();
    follows(&node, &agent, "cilium");
    let renamed = node.conf().join(format!("{CONFLIST}.cilium_bak"));
    fs::rename(node.conflist(), &renamed).unwrap();
    agent.until("repaired", REPAIR, || node.conflist().exists() && !renamed.exists());
    agent.says("cni.exclusive=false");
    // One that does it again and again is not fought at its own speed.
    for _ in 0..60 {
        if node.conflist().exists() {
            fs::rename(node.conflist(), &renamed).unwrap();
        }
        if agent.log().contains("repairs are slowed down") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.says("repairs are slowed down");
    let repairs = agent.count("configuration repaired");
    assert!(repairs <= 20, "{repairs}");
}

#[test]
fn uninstalls_to_the_byte() {
    let node = Node::new();
    node.put_primary("10-pods.conflist");
    fs::write(node.bin().join("bridge"), "theirs").unwrap();
    let before = node.everything();
    let mut agent = node.start();
    follows(&node, &agent, "pods");
    fs::create_dir(node.cache().join("weir-cni")).unwrap();
    fs::write(node.cache().join("weir-cni/said-no-annotations"), "").unwrap();
    fs::write(node.conf().join("!00-weir.conflist.cilium_bak"), "").unwrap();
    let (code, why) = node.call(&["--check", "--uninstall"]);
    assert!(code == 1 && why.contains("is still there"), "{why}");
    // Stays until it is told to end, as a DaemonSet's pod has to. It waits for the agent to end, which leaves everything.
    let mut removing = node.command(&weir_cni(), &["--uninstall", "--stay"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(node.plugin().exists() && node.conflist().exists());
    assert!(agent.stop());
    // The plugin goes some seconds after the configuration.
    agent.until("nothing left", Duration::from_secs(30), || node.everything() == before);
    assert_eq!(node.call(&["--check", "--uninstall"]), (0, String::new()));
    assert!(removing.try_wait().unwrap().is_none());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(removing.id().try_into().unwrap()), nix::sys::signal::SIGTERM)
        .unwrap();
    assert!(removing.wait().unwrap().success());
    assert_eq!(node.call(&["--uninstall"]).0, 0, "of nothing");
    assert_eq!(node.everything(), before);
}

#[test]
fn a_folder_that_is_gone_ends_the_agent_with_the_reason() {
    let node = Node::new();
    let mut agent = node.start();
    agent.says("waiting for the primary");
    fs::remove_dir_all(node.conf()).unwrap();
    assert!(!agent.ended());
    assert!(agent.log().contains("must be a folder of the node"), "{}", agent.log());
    let mut again = node.start();
    assert!(!again.ended());
}

#[test]
fn an_idle_agent_sleeps() {
    let node = Node::new();
    node.put_primary("10-pods.conflist");
    let agent = node.start();
    follows(&node, &agent, "pods");
    let before = agent.ticks();
    // Other plugins' files are not looked at.
    for n in 0..200 {
        fs::write(node.bin().join("bridge"), vec![0; n * 1000]).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    let used = agent.ticks() - before;
    assert!(used <= 10, "{used} ticks of 10 ms");
}
