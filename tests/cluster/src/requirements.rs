//! Whether this machine can run a cluster.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use nix::unistd::geteuid;

use crate::cgroups;

/// What `tools/setup cluster` installs.
const PROGRAMS: [&str; 10] =
    ["containerd", "runc", "ctr", "iptables", "nft", "conntrack", "ipset", "busybox", "buildah", "nsenter"];
/// What a node does first, tried in a network namespace that ends with the try.
const NETFILTER: &str = "ip link add weir0 type bridge && ip link add weir1 type veth peer name weir2 && nft add table ip weir \
    && iptables -t nat -A PREROUTING -p tcp -m comment --comment weir -j DNAT --to-destination 198.18.0.1:1";

/// True where no cluster can run: says so, and which tests are left out.
///
/// # Panics
/// When tests must not be left out (`CI=true`).
pub fn skips(tests: &str) -> bool {
    let Some(missing) = missing() else { return false };
    eprintln!("SKIPPED: {tests}: no cluster here: {missing}");
    let must = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    assert!(!must, "CI must not leave out tests");
    true
}

/// Why a cluster can not run here; nothing if it can.
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("a cluster needs root: it makes namespaces and control groups".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |program: &&str| {
        path.split(':')
            .chain(["/usr/sbin", "/sbin"])
            .any(|folder| fs::exists(format!("{folder}/{program}")).unwrap_or(false))
    };
    let absent: Vec<&str> = PROGRAMS.into_iter().filter(|program| !there(program)).collect();
    if !absent.is_empty() {
        return Some(format!("not installed: {}; run `tools/setup cluster`", absent.join(", ")));
    }
    if !there(&"go") {
        return Some("not installed: Go 1.26 or newer, which builds Kubernetes (https://go.dev/dl)".to_owned());
    }
    if !fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("overlay") {
        return Some("the kernel has no overlay file system (modprobe overlay)".to_owned());
    }
    if let Some(refusal) = refused(Command::new("unshare").args(["--net", "sh", "-c", NETFILTER])) {
        return Some(format!("the kernel has no bridge, veth or netfilter for us: {refusal}"));
    }
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let probe = format!("weir-cluster-probe-{}-{}", std::process::id(), PROBES.fetch_add(1, Relaxed));
    let made = cgroups::create(&probe);
    let removed = cgroups::remove(&probe);
    if let Err(error) = made {
        return Some(format!("no control groups can be made: {error:#}"));
    }
    removed.err().map(|error| format!("control groups can not be removed: {error}"))
}

fn refused(command: &mut Command) -> Option<String> {
    match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
        Err(error) => Some(error.to_string()),
    }
}
