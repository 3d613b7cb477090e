//! Which process runs a sandbox.

use std::fs;

use serde::{Deserialize, Serialize};

use super::SUPERVISOR;
use crate::layout::Layout;

/// Who runs a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id of the supervisor, on the machine.
    pub pid: u32,
    /// When it was started, in clock ticks since boot: tells it from a later process with the same id.
    pub started: u64,
}

impl Owner {
    pub(super) fn read(layout: &Layout) -> Option<Self> {
        // Another user's record could name a process of ours.
        let text = layout.is_ours().then(|| fs::read(layout.owner()).ok())??;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat`; none for a process that is gone or only waits to be reaped.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything.
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether someone may just be starting the sandbox: its folder is there, and not old.
pub(super) fn is_young(layout: &Layout) -> bool {
    let changed = fs::metadata(layout.root()).and_then(|found| found.modified());
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < SUPERVISOR))
}
