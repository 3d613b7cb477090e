//! What the kernel says a process and the machine have used.

use std::{fs, time::Duration};

use anyhow::Context as _;

/// Ticks a second in `/proc`, fixed by the kernel's interface with user space on all platforms that Weir runs on.
const TICKS: f64 = 100.0;

/// CPU time of a process since its start, all threads, user and system.
///
/// # Errors
/// Where it is gone.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The second field is the program's name in parentheses and may hold anything; utime and stime are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat without a name")?;
    let ticks: u64 =
        rest.split_ascii_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or_default()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
}

/// Resident memory of a process in kB.
///
/// # Errors
/// Where it is gone.
pub fn resident_kb(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")
}

/// What the machine's processors did, in seconds.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Machine {
    /// Worked.
    pub busy: f64,
    /// Did nothing.
    pub idle: f64,
    /// Taken by other guests of the host.
    pub steal: f64,
    /// Used by this program and the processes it started and still has.
    pub ours: f64,
}

impl Machine {
    /// Since start.
    ///
    /// # Errors
    /// Where `/proc/stat` is not readable.
    pub fn now(ours: &[u32]) -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).context("no cpu line in /proc/stat")?;
        let field: Vec<f64> = line.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0) / TICKS).collect();
        let get = |index: usize| field.get(index).copied().unwrap_or(0.0);
        let mut used = cpu(std::process::id())?;
        for pid in ours {
            used += cpu(*pid)?;
        }
        // user, nice, system, irq and softirq are work; idle and iowait are not.
        Ok(Self {
            busy: get(0) + get(1) + get(2) + get(5) + get(6),
            idle: get(3) + get(4),
            steal: get(7),
            ours: used.as_secs_f64(),
        })
    }

    /// What was done since an earlier moment.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy - earlier.busy,
            idle: self.idle - earlier.idle,
            steal: self.steal - earlier.steal,
            ours: self.ours - earlier.ours,
        }
    }

    /// Share of all processors that was taken by other guests of the host.
    pub fn steal_share(self) -> f64 {
        self.steal / (self.busy + self.idle + self.steal).max(f64::MIN_POSITIVE)
    }

    /// Share of all processors that other programs of this machine used.
    pub fn others_share(self) -> f64 {
        ((self.busy - self.ours) / (self.busy + self.idle + self.steal).max(f64::MIN_POSITIVE)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_process() {
        let before = cpu(std::process::id()).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(100) {}
        assert!(cpu(std::process::id()).unwrap() > before);
        assert!(resident_kb(std::process::id()).unwrap() > 500);
        assert!(cpu(u32::MAX).is_err());
        let machine = Machine::now(&[]).unwrap();
        assert!(machine.busy > 0.0 && machine.ours > 0.0);
    }
}
