//! What the kernel says about this process, read at each scrape.

use std::fs;

use super::own::{head, line};

/// Kernel clock ticks in a second: `USER_HZ`, 100 on every architecture that Linux has today.
const TICKS_PER_SECOND: u64 = 100;

/// Writes what can be read; a file that can not be read leaves its lines out.
pub(super) fn encode(text: &mut String) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        head(text, "process_cpu_seconds_total", "counter", "Processor time used, in seconds.");
        let whole = stat.cpu_ticks / TICKS_PER_SECOND;
        let hundredths = stat.cpu_ticks % TICKS_PER_SECOND;
        text.push_str(&format!("process_cpu_seconds_total {whole}.{hundredths:02}\n"));
        head(text, "process_threads", "gauge", "Threads.");
        line(text, "process_threads", "", stat.threads);
        head(text, "process_virtual_memory_bytes", "gauge", "Virtual memory.");
        line(text, "process_virtual_memory_bytes", "", stat.virtual_bytes);
        if let Some(boot) = boot_time() {
            head(text, "process_start_time_seconds", "gauge", "When the process started, since 1970.");
            line(text, "process_start_time_seconds", "", boot.saturating_add(stat.start_ticks / TICKS_PER_SECOND));
        }
    }
    if let Some(bytes) = resident_bytes() {
        head(text, "process_resident_memory_bytes", "gauge", "Resident memory.");
        line(text, "process_resident_memory_bytes", "", bytes);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        head(text, "process_open_fds", "gauge", "Open file descriptors.");
        line(text, "process_open_fds", "", entries.count());
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        head(text, "process_max_fds", "gauge", "File descriptors that may be open.");
        line(text, "process_max_fds", "", soft);
    }
}

struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
}

impl Stat {
    /// Reads `/proc/PID/stat` (proc(5)). The name in parentheses may hold anything, so fields are counted behind it.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Field 3 of proc(5) is the first behind the name.
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
        })
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_process() {
        let mut text = String::new();
        encode(&mut text);
        for name in
            ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"]
        {
            assert!(text.contains(&format!("\n{name} ")), "{name} is missing in\n{text}");
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let text = "1 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 7 18 999 4096 20";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.threads, stat.start_ticks, stat.virtual_bytes), (300, 7, 999, 4096));
    }
}
