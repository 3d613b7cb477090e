//! Sheds load before the container's memory limit ends the proxy, and with it every connection.
//!
//! The working set is what the kubelet counts: all memory of the container but the part of the page cache that the kernel would give up
//! first. At [`BEGIN`] per cent of the limit nothing new is taken: connections are refused, requests answered 503 (flag `OM`; a proxy of
//! the mesh hears "not delivered" and goes elsewhere). What is under way goes on, and makes room by ending.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::telemetry::Registry;

/// Per cent of the limit at which load is shed.
const BEGIN: u64 = 90;
/// Per cent at which it is taken again: far enough below that it does not flap.
const END: u64 = 80;
/// Per cent below which it is looked at less often: an attack needs a moment to fill what is left.
const CALM: u64 = 50;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The same with much room.
const LOOK_CALM: Duration = Duration::from_secs(1);
/// While it lasts, it is said this often.
const SAY: Duration = Duration::from_secs(60);
/// Without a limit the kernel has this or more (cgroup v1 says it in pages).
const NO_LIMIT: u64 = 1 << 60;

/// Whether load is shed; shared by all workers.
#[derive(Debug, Clone, Default)]
pub struct Overload(Arc<AtomicBool>);

impl Overload {
    /// True while nothing new is taken.
    pub fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Follows the memory of the container. `limit`, in bytes, stands for the container's, and is compared with the memory of this
    /// process alone.
    pub async fn follow(self, limit: Option<u64>, registry: Arc<Registry>) {
        let mut state = State::default();
        loop {
            // A container's limit may change while it runs, also from none.
            let measured = match limit {
                Some(limit) => resident().map(|used| (used, limit)),
                None => Group::own(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
                    .and_then(|group| group.read()),
            };
            let (used, limit) = measured.unwrap_or((0, u64::MAX));
            let per_cent = per_cent(used, limit);
            let said = state.look(per_cent, Instant::now());
            self.0.store(state.on, Relaxed);
            registry.proxy.overload.set(i64::from(state.on));
            let mib = |bytes: u64| bytes >> 20;
            match said {
                Some(true) => tracing::error!(
                    used_mib = mib(used),
                    limit_mib = mib(limit),
                    "memory runs out: no connection and no request is taken until it is below {END} % of the limit (raise the proxy's memory limit)"
                ),
                Some(false) => tracing::info!(used_mib = mib(used), limit_mib = mib(limit), "there is memory again"),
                None => {}
            }
            sleep(if per_cent < CALM { LOOK_CALM } else { LOOK }).await;
        }
    }
}

fn per_cent(used: u64, limit: u64) -> u64 {
    used.saturating_mul(100).checked_div(limit).unwrap_or(u64::MAX)
}

/// On or off, and when it was last said.
#[derive(Debug, Default)]
struct State {
    on: bool,
    said: Option<Instant>,
}

impl State {
    /// Takes a new measurement; what is to be said, if anything.
    fn look(&mut self, per_cent: u64, now: Instant) -> Option<bool> {
        let on = per_cent >= if self.on { END } else { BEGIN };
        let changed = on != self.on;
        self.on = on;
        let due = self.said.is_none_or(|at| now.saturating_duration_since(at) >= SAY);
        if on && due {
            self.said = Some(now);
            return Some(true);
        }
        // The end of what was said; a change to and fro within the minute is in the metric.
        (changed && !on && due).then_some(false)
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The control group with the narrowest limit of those that this process is in.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    names: Names,
}

/// Names of the files, which differ between the two versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Names {
    limit: &'static str,
    used: &'static str,
    inactive: &'static str,
}

const V2: Names = Names { limit: "memory.max", used: "memory.current", inactive: "inactive_file" };
const V1: Names =
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", inactive: "total_inactive_file" };

impl Group {
    /// Found by `/proc/self/cgroup` and where the groups are mounted.
    fn own(list: &Path, mount: &Path) -> Option<Self> {
        let list = fs::read_to_string(list).ok()?;
        let line = |controller: &str| {
            list.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let has = parts.next()?.split(',').any(|name| name == controller);
                parts.next().filter(|_| has)
            })
        };
        // Where the memory controller is one of v1, the v2 tree beside it has no memory.
        let (root, path, names) = match line("memory") {
            Some(path) => (mount.join("memory"), path, V1),
            None => (mount.to_owned(), line("")?, V2),
        };
        // A group has its parents' limits, too. Seen from inside a container the path may be the host's, which is not there.
        let mut at = root.join(path.trim_start_matches('/'));
        let mut narrowest: Option<(u64, PathBuf)> = None;
        while at.starts_with(&root) {
            if let Some(limit) = limit(&at, names)
                && narrowest.as_ref().is_none_or(|(known, _)| limit < *known)
            {
                narrowest = Some((limit, at.clone()));
            }
            if !at.pop() {
                break;
            }
        }
        narrowest.map(|(_, folder)| Self { folder, names })
    }

    /// Bytes used, and the limit.
    fn read(&self) -> Option<(u64, u64)> {
        let limit = limit(&self.folder, self.names)?;
        let used = number(&self.folder.join(self.names.used))?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == self.names.inactive).then(|| value.trim().parse::<u64>().ok())?
        });
        Some((used.saturating_sub(inactive.unwrap_or(0)), limit))
    }
}

/// The limit of a group, where it has one.
fn limit(folder: &Path, names: Names) -> Option<u64> {
    number(&folder.join(names.limit)).filter(|limit| (1..NO_LIMIT).contains(limit))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_and_ends_at_different_marks_and_says_so_once_a_minute() {
        let start = Instant::now();
        let mut state = State::default();
        let mut said = Vec::new();
        for (second, per_cent) in [(0, 89), (1, 90), (2, 95), (3, 85), (4, 79), (5, 91), (62, 92), (63, 70), (200, 10)]
        {
            let word = state.look(per_cent, start + Duration::from_secs(second));
            said.push((second, state.on, word));
        }
        let want = [
            (0, false, None),
            (1, true, Some(true)),
            (2, true, None),
            (3, true, None),
            (4, false, None),
            (5, true, None),
            (62, true, Some(true)),
            (63, false, None),
            (200, false, None),
        ];
        assert_eq!(said, want);
        state = State::default();
        assert_eq!(state.look(95, start), Some(true));
        assert_eq!(state.look(50, start + SAY), Some(false));
    }

    #[test]
    fn the_narrowest_group_counts_in_both_versions() {
        let folder = std::env::temp_dir().join(format!("weir-overload-{}", std::process::id()));
        let file = |path: &str, text: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("list2", "0::/pod/proxy\n");
        file("v2/memory.max", "max\n");
        file("v2/pod/memory.max", "1000\n");
        file("v2/pod/memory.current", "600\n");
        file("v2/pod/memory.stat", "anon 500\ninactive_file 100\nactive_file 7\n");
        file("v2/pod/proxy/memory.max", "max\n");
        let own = |list: &str, mount: &str| Group::own(&folder.join(list), &folder.join(mount));
        let group = own("list2", "v2").unwrap();
        assert_eq!((&group.folder, group.read()), (&folder.join("v2/pod"), Some((500, 1000))));
        file("v2/pod/proxy/memory.max", "900\n");
        assert_eq!(own("list2", "v2").unwrap().folder, folder.join("v2/pod/proxy"));
        // Inside a container: its own group is the root of what it sees, whatever the path is.
        file("inside/memory.max", "800\n");
        assert_eq!(own("list2", "inside").unwrap().folder, folder.join("inside"));

        file("list1", "9:name=systemd:/\n4:cpu,memory:/pod\n0::/\n");
        file("v1/memory/memory.limit_in_bytes", "9223372036854771712\n");
        file("v1/memory/pod/memory.limit_in_bytes", "2000\n");
        file("v1/memory/pod/memory.usage_in_bytes", "1900\n");
        file("v1/memory/pod/memory.stat", "inactive_file 1\ntotal_inactive_file 150\n");
        assert_eq!(own("list1", "v1").unwrap().read(), Some((1750, 2000)));
        assert_eq!(own("list1", "v2"), None, "no limit, nothing to follow");
        assert_eq!(own("missing", "v2"), None);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn shares_do_not_overflow() {
        assert_eq!((per_cent(90, 100), per_cent(u64::MAX, 1), per_cent(5, 0)), (90, u64::MAX, u64::MAX));
    }
}
