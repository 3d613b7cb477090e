//! Nothing of a cluster outlives it, whatever ends it: the test that holds it, its own processes, or a panic.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a step that fails is a failed test

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use weir_cluster::{Cluster, Layout, Options, cgroups, guard, requirements};

fn small() -> Options {
    Options { nodes: 1, dns: false, ..Options::default() }
}

/// What of a cluster is on the machine: processes, mounts, control groups, files.
fn traces(layout: &Layout) -> Vec<String> {
    let mut found = Vec::new();
    let name = layout.root().file_name().unwrap().to_string_lossy().into_owned();
    if cgroups::exist(&format!("weir-cluster-{name}-")) {
        found.push("control groups".to_owned());
    }
    if layout.root().exists() {
        found.push(layout.root().display().to_string());
    }
    let root = layout.root().to_string_lossy().into_owned();
    if fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&root) {
        found.push("mounts".to_owned());
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let own = entry.file_name().to_string_lossy() == std::process::id().to_string();
        if words.contains(&root) && !own {
            found.push(words.replace('\0', " "));
        }
    }
    found
}

fn assert_gone(layout: &Layout) {
    let end = Instant::now() + Duration::from_secs(20);
    while !traces(layout).is_empty() {
        assert!(Instant::now() < end, "left: {:?}", traces(layout));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_takes_the_cluster_down() {
    if requirements::skips("a_panic_takes_the_cluster_down") {
        return;
    }
    // Folders that the nodes' programs write to, and the machine must not see.
    let seen = ["/opt/cni", "/etc/cni/net.d", "/var/lib/kubelet", "/run/containerd", "/usr/libexec/kubernetes"];
    // Making images for a cluster leaves an empty lock of buildah's there.
    let is_ours = |entry: &fs::DirEntry| entry.file_name() != "cni.lock";
    let listing = || seen.map(|path| fs::read_dir(path).into_iter().flatten().flatten().filter(is_ours).count());
    let before = listing();
    let cluster = Cluster::start(small()).await.unwrap();
    let layout = cluster.layout().clone();
    assert!(!traces(&layout).is_empty(), "what is looked for is there while it runs");
    let node = cluster.node(1).shell("ls /opt/cni/bin/ptp && ls /run/containerd/containerd.sock").unwrap();
    assert!(node.contains("ptp"), "{node}");
    let ended = catch_unwind(AssertUnwindSafe(move || {
        let _held = cluster;
        panic!("as a test that fails");
    }));
    assert!(ended.is_err());
    assert_eq!(traces(&layout), Vec::<String>::new(), "it is gone when the panic is through");
    assert_eq!(before, listing());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_guard_leaves_what_the_next_start_removes() {
    if requirements::skips("a_killed_guard_leaves_what_the_next_start_removes") {
        return;
    }
    let cluster = Cluster::start(small()).await.unwrap();
    let layout = cluster.layout().clone();
    let guard: i32 = fs::read_to_string(layout.root().join("guard")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), nix::sys::signal::Signal::SIGKILL).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while layout.is_alive() {
        assert!(Instant::now() < end, "processes live on without their guard: {:?}", traces(&layout));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(traces(&layout).iter().all(|trace| !trace.contains("kubelet ")), "{:?}", traces(&layout));
    guard::sweep().unwrap();
    assert_gone(&layout);
    drop(cluster);
}

/// The process that is killed: this test's own program, run again.
const VICTIM: &str = "WEIR_CLUSTER_VICTIM";

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_test_takes_its_cluster_with_it() {
    if let Some(file) = std::env::var_os(VICTIM) {
        let cluster = Cluster::start(small()).await.unwrap();
        fs::write(PathBuf::from(&file).with_extension("new"), cluster.layout().root().as_os_str().as_encoded_bytes())
            .unwrap();
        fs::rename(PathBuf::from(&file).with_extension("new"), file).unwrap();
        std::future::pending::<()>().await;
    }
    if requirements::skips("a_killed_test_takes_its_cluster_with_it") {
        return;
    }
    let file = std::env::temp_dir().join(format!("weir-cluster-victim-{}", std::process::id()));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_killed_test_takes_its_cluster_with_it"]).env(VICTIM, &file);
    let mut victim = Victim(command.spawn().unwrap());
    // The first cluster of a machine builds the programs of its images.
    let end = Instant::now() + Duration::from_secs(900);
    while !file.exists() {
        assert!(Instant::now() < end && victim.0.try_wait().unwrap().is_none(), "no cluster was started");
        std::thread::sleep(Duration::from_millis(50));
    }
    let layout = Layout::at(fs::read_to_string(&file).unwrap());
    fs::remove_file(&file).unwrap();
    drop(victim);
    assert_gone(&layout);
}
