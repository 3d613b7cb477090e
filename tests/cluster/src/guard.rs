//! The outermost processes of a cluster. They see to it that nothing outlives it, whatever is killed.
//!
//! ```text
//! guard        on the machine: waits, then removes control groups and files
//! └─ init      first process of a process namespace: with it the kernel ends every other, and mounts and networks go with them
//!    └─ supervise   everything else (supervisor.rs)
//! ```
//! Killing the guard kills init (parent death signal). What then is left (empty control groups, files) goes with [`sweep`].

use std::{
    fs, io,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

use crate::{
    cgroups,
    control::{self, Request},
    layout::Layout,
};

/// How long a cluster may take to end when it is asked to.
const ASKED: Duration = Duration::from_secs(15);
/// How long it may take to end when its guard was killed.
const KILLED: Duration = Duration::from_secs(15);

/// The guard: starts init, waits for its end, cleans up.
///
/// # Errors
/// When the namespace can not be made.
pub fn run(layout: &Layout, supervise: &[String]) -> Result<ExitCode> {
    let hold = layout.hold()?;
    fs::write(layout.guard(), std::process::id().to_string())?;
    unshare(CloneFlags::CLONE_NEWPID).context("a process namespace")?;
    let status = Command::new(std::env::current_exe()?).arg("init").args(supervise).status().context("start init");
    let removed = remove(layout);
    drop(hold);
    removed?;
    Ok(if status?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first process of the process namespace: starts the supervisor, and takes in all that lose their parents.
///
/// # Errors
/// When the supervisor can not be started.
pub fn init(supervise: &[String]) -> Result<ExitCode> {
    if getpid().as_raw() != 1 {
        bail!("init is for the first process of a process namespace");
    }
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let supervisor = Command::new(std::env::current_exe()?).arg("supervise").args(supervise).spawn()?;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == i32::try_from(supervisor.id())? => {
                return Ok(ExitCode::from(u8::try_from(code)?));
            }
            Ok(WaitStatus::Signaled(pid, ..)) if pid.as_raw() == i32::try_from(supervisor.id())? => {
                return Ok(ExitCode::FAILURE);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes what clusters left whose processes are gone, and says how many there were.
///
/// # Errors
/// When something can not be removed.
pub fn sweep() -> io::Result<usize> {
    let dead: Vec<Layout> = Layout::all().into_iter().filter(|layout| !layout.is_alive()).collect();
    for layout in &dead {
        remove(layout)?;
    }
    Ok(dead.len())
}

/// Ends a cluster and waits until nothing of it is left.
///
/// # Errors
/// When it does not end, even killed.
pub fn end(layout: &Layout) -> Result<()> {
    // Hung or not yet listening: killed below.
    let _ = control::ask(layout, &Request::End);
    if !gone(layout, ASKED)
        && let Ok(pid) = fs::read_to_string(layout.guard())
        && is_guard(&pid, layout.root())
    {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    if !gone(layout, KILLED) {
        bail!("the cluster in {} does not end", layout.root().display());
    }
    if layout.root().exists() {
        remove(layout)?;
    }
    Ok(())
}

fn gone(layout: &Layout, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while layout.is_alive() && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    !layout.is_alive()
}

/// Process ids come again: only a process with our program and this folder in its command line is the guard.
fn is_guard(pid: &str, root: &Path) -> bool {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = words.split('\0').skip(1);
    words.next() == Some("guard") && words.next() == Some(&*root.to_string_lossy())
}

fn remove(layout: &Layout) -> io::Result<()> {
    cgroups::remove(&format!("{}-", layout.id()))?;
    layout.remove()
}
