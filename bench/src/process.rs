//! Processes that this program starts: with a user of their own, their output in a file, and never outliving it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{lab::Netns, usage};

/// A program to be started.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Name for people and for the log file.
    pub name: String,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, and nothing else.
    pub env: Vec<(&'static str, String)>,
    /// User and group; `None`: as this program.
    pub user: Option<u32>,
    /// Where it runs and where its output goes.
    pub dir: &'a Path,
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// Name for people.
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it inside a namespace.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn start(netns: &Netns, launch: Launch<'_>) -> anyhow::Result<Self> {
        let log = launch.dir.join(format!("{}.log", launch.name));
        let output = File::create(&log)?;
        // setpriv becomes the program: the process id stays. The kernel kills the program when this one is gone.
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if let Some(user) = launch.user {
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        }
        command
            .arg("--")
            .arg(launch.program)
            .args(&launch.args)
            .env_clear()
            .envs(launch.env)
            .current_dir(launch.dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = netns.spawn(&mut command)?;
        Ok(Self { name: launch.name, child, log })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time since its start.
    ///
    /// # Errors
    /// Where it has ended, with the end of its log.
    pub fn cpu(&mut self) -> anyhow::Result<Duration> {
        self.alive()?;
        usage::cpu(self.pid())
    }

    /// Resident memory in kB.
    ///
    /// # Errors
    /// Where it has ended, with the end of its log.
    pub fn resident_kb(&mut self) -> anyhow::Result<u64> {
        self.alive()?;
        usage::resident_kb(self.pid())
    }

    /// Says why where it has ended.
    ///
    /// # Errors
    /// Where it has ended, with the end of its log.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}):\n{}", self.name, self.log_end()),
        }
    }

    /// The last lines of its output.
    pub fn log_end(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    /// Waits until `ready` says yes.
    ///
    /// # Errors
    /// Where the process ends, or it takes longer than `limit`.
    pub fn until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !ready() {
            self.alive()?;
            if start.elapsed() > limit {
                bail!("{} is not ready after {limit:?}:\n{}", self.name, self.log_end());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the binaries of the workspace are: beside this program, or one folder up where it is a test.
///
/// # Errors
/// Where the binary is not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not beside {}: build it with the same profile first", own.display()))
}
