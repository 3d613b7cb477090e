//! The control groups of the nodes: one at the top of every hierarchy for each node, which its kubelet fills.
//!
//! They are the one thing of a cluster that the kernel does not remove by itself when its processes end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

const TOP: &str = "/sys/fs/cgroup";
/// Controllers that a kubelet wants, where the machine has version 1 or a mixture (then they lie in folders of their names).
const HIERARCHIES: [&str; 9] = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"];
/// Controllers that a kubelet wants, where the machine has version 2.
const CONTROLLERS: &str = "+cpu +cpuset +io +memory +pids";
/// How long the kernel may take to empty a group whose processes were killed.
const EMPTY: Duration = Duration::from_secs(10);

fn is_v2() -> bool {
    Path::new(TOP).join("cgroup.controllers").exists()
}

fn tops() -> Vec<PathBuf> {
    if is_v2() {
        return vec![TOP.into()];
    }
    let mut tops: Vec<PathBuf> = HIERARCHIES.iter().map(|name| Path::new(TOP).join(name)).collect();
    tops.push(Path::new(TOP).join("unified"));
    // Two names may be one hierarchy, linked: both lead to the same folder.
    tops.retain(|top| top.is_dir());
    tops
}

/// Makes the group `name` in every hierarchy.
pub(crate) fn create(name: &str) -> Result<()> {
    if is_v2() {
        let control = |folder: &Path| fs::write(folder.join("cgroup.subtree_control"), CONTROLLERS);
        control(Path::new(TOP)).context("switch on the machine's cgroup controllers")?;
        let group = Path::new(TOP).join(name);
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        return control(&group).with_context(|| format!("switch on the controllers of {}", group.display()));
    }
    for top in tops().iter().filter(|top| !top.ends_with("unified")) {
        let group = top.join(name);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| group.display().to_string());
            }
            _ => {}
        }
        // A new group of version 1 has no processors, and takes no process until it has.
        for setting in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(top.join(setting)) {
                fs::write(group.join(setting), all).with_context(|| format!("{}/{setting}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes every group whose name starts so, with all below it. Their processes must have been killed.
pub(crate) fn remove(prefix: &str) -> io::Result<()> {
    let end = Instant::now() + EMPTY;
    loop {
        let mut failed = Ok(());
        for group in tops().iter().flat_map(|top| children(top)) {
            if group.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
                failed = remove_tree(&group).and(failed);
            }
        }
        if failed.is_ok() || Instant::now() > end {
            return failed;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// True if a group with such a name is there.
pub fn exist(prefix: &str) -> bool {
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    tops().iter().flat_map(|top| children(top)).any(|group| named(&group))
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for child in children(group) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
