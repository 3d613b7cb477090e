//! Namespaces, entered only by threads and processes made for it: a thread of the supervisor's pool never leaves the node's.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// What a thread enters before it does its work. Order matters: the mount namespace comes last, since paths change with it.
#[derive(Debug, Default)]
pub struct Enter {
    /// Network namespace.
    pub net: Option<File>,
    /// Process namespace of the thread's children.
    pub pid: Option<File>,
    /// Host name.
    pub uts: Option<File>,
    /// Mount namespace.
    pub mount: Option<File>,
    /// Namespaces made new.
    pub new: Option<CloneFlags>,
}

impl Enter {
    /// The network namespace behind a path.
    ///
    /// # Errors
    /// Where the path can not be opened.
    pub fn net(path: &Path) -> io::Result<Self> {
        Ok(Self { net: Some(File::open(path)?), ..Self::default() })
    }

    /// All namespaces of a running process.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn process(pid: u32) -> io::Result<Self> {
        let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
        Ok(Self {
            net: Some(open("net")?),
            pid: Some(open("pid")?),
            uts: Some(open("uts")?),
            mount: Some(open("mnt")?),
            new: None,
        })
    }

    fn apply(self) -> io::Result<()> {
        for (file, kind) in [
            (self.net, CloneFlags::CLONE_NEWNET),
            (self.pid, CloneFlags::CLONE_NEWPID),
            (self.uts, CloneFlags::CLONE_NEWUTS),
        ] {
            if let Some(file) = file {
                setns(file, kind)?;
            }
        }
        if let Some(file) = self.mount {
            // Root and working directory are shared between threads; a mount namespace can be entered only with one's own.
            unshare(CloneFlags::CLONE_FS)?;
            setns(file, CloneFlags::CLONE_NEWNS)?;
        }
        if let Some(flags) = self.new {
            unshare(flags)?;
        }
        Ok(())
    }

    /// Runs `work` on a thread of its own that has entered the namespaces, and waits for it.
    ///
    /// # Errors
    /// Where a namespace can not be entered, or the work fails.
    pub fn run<T: Send>(self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    self.apply()?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
        })
    }
}

/// Makes a network namespace with its loopback up and keeps it under `path`.
///
/// # Errors
/// Where the kernel refuses; nothing is left then.
pub fn create(path: &Path, ipv6: bool) -> io::Result<()> {
    File::create_new(path)?;
    let made = Enter { new: Some(CloneFlags::CLONE_NEWNET), ..Enter::default() }.run(|| {
        super::run("ip", &["link", "set", "lo", "up"], None)?;
        // As container runtimes do: ports below 1024 need no privilege inside a pod.
        fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
        if ipv6 {
            super::node::usable_at_once()?;
        }
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    if made.is_err() {
        delete(path);
    }
    made
}

/// Lets go of a network namespace; it ends with its last process.
pub fn delete(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}
