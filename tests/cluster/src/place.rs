//! Where programs run: a network namespace with a mount namespace, without names. They end with the last process and file that hold
//! them, so nothing has to take them down.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network and a mount namespace.
#[derive(Debug)]
pub(crate) struct Place {
    net: File,
    mount: File,
}

impl Place {
    /// New namespaces; `prepare` runs inside before anything else does.
    pub(crate) fn new(prepare: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        let made = inside(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("new namespaces")?;
            prepare()?;
            ip(&["link set lo up".to_owned()])?;
            let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}"));
            Ok(Self { net: open("net")?, mount: open("mnt")? })
        });
        made?
    }

    /// Runs `work` inside, on a thread of its own. Processes that it starts stay inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(|| {
            // A thread that shares its working directory with others can not change its mounts.
            unshare(CloneFlags::CLONE_FS).context("a working directory of its own")?;
            setns(&self.mount, CloneFlags::CLONE_NEWNS).context("enter a mount namespace")?;
            setns(&self.net, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            work()
        })?
    }

    /// A path to the network namespace, for programs that this process starts.
    pub(crate) fn net_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd()).into()
    }

    /// What enters it from outside the cluster, as arguments of `nsenter`; `supervisor` is this process' id out there.
    pub(crate) fn entrance(&self, supervisor: u32) -> Vec<String> {
        let file = |file: &File| format!("/proc/{supervisor}/fd/{}", file.as_raw_fd());
        vec![
            format!("--net={}", file(&self.net)),
            format!("--mount={}", file(&self.mount)),
            format!("--pid=/proc/{supervisor}/ns/pid"),
        ]
    }
}

fn inside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("place".to_owned()).spawn_scoped(scope, work).context("a thread")?;
        thread.join().map_err(|_| anyhow::anyhow!("the work inside a place panicked"))
    })
}

/// Runs lines of `ip` in the namespace of this thread.
pub(crate) fn ip(lines: &[String]) -> Result<()> {
    feed("ip", &["-batch", "-"], &lines.join("\n"))
}

/// Runs a program in the namespaces of this thread, with this input.
pub(crate) fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        match io::Write::write_all(&mut stdin, input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
