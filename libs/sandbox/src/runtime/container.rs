//! A running container, seen from the supervisor.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    path::Path,
    process::Stdio,
};

use nix::{
    sched::CloneFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    runtime::Handle,
    sync::watch,
};

use super::{
    init::{INIT_COMMAND, PROCESS_COMMAND, exit_code},
    logs::Log,
    spec::{ContainerSpec, OWN_PATH, ProcessSpec},
};
use crate::net::namespace::Enter;

/// Variable that carries the description of a program into a running container.
pub const SPEC_VARIABLE: &str = "WEIR_SANDBOX_PROCESS";

/// A container whose first process was started.
#[derive(Debug, Clone)]
pub struct Container {
    pid: u32,
    exit: watch::Receiver<Option<i32>>,
}

impl Container {
    /// Starts a container in a network namespace.
    ///
    /// # Errors
    /// Where its first process can not be started; what goes wrong later is in its log and exit code.
    pub async fn start(spec: &ContainerSpec, netns: &Path, log: Log) -> io::Result<Self> {
        let description = serde_json::to_vec(spec)?;
        let enter = Enter { new: Some(CloneFlags::CLONE_NEWPID), ..Enter::net(netns)? };
        let weir = spec.weir.clone();
        let runtime = Handle::current();
        // Its standard input is a socket: the description goes in, and one byte comes back when the file system stands. Only
        // then can another program be started inside.
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut talk = UnixStream::from_std(ours)?;
        let mut child = blocking(move || {
            enter.run(|| {
                let _runtime = runtime.enter();
                let mut command = Command::new(weir);
                command.arg0("weir").arg(INIT_COMMAND).env_clear();
                command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
            })
        })
        .await?;
        let pid = child.id().ok_or_else(|| io::Error::other("the container's first process ended at once"))?;
        if let Some(out) = child.stdout.take() {
            tokio::spawn(log.clone().copy(out));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(log.copy(err));
        }
        // A first process that ended early says why in the log, and by its exit code.
        if talk.write_all(&description).await.is_ok() && talk.shutdown().await.is_ok() {
            let _ = talk.read_u8().await;
        }
        let (ended, exit) = watch::channel(None);
        tokio::spawn(async move {
            let code = child.wait().await.map_or(super::process::CAN_NOT_RUN, exit_code);
            let _ = ended.send(Some(code));
        });
        Ok(Self { pid, exit })
    }

    /// Process id of the container's first process, as the supervisor sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Exit code, once the container ended.
    pub fn exited(&self) -> Option<i32> {
        *self.exit.borrow()
    }

    /// Waits for the container to end.
    pub async fn wait(&self) -> i32 {
        let mut exit = self.exit.clone();
        exit.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or(super::process::CAN_NOT_RUN)
    }

    /// Sends a signal to the container's program.
    pub fn signal(&self, signal: Signal) {
        if self.exited().is_none()
            && let Ok(pid) = i32::try_from(self.pid)
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Runs another program inside the container.
    ///
    /// # Errors
    /// Where the container is gone.
    pub async fn exec(&self, process: &ProcessSpec, io: Streams) -> io::Result<tokio::process::Child> {
        if self.exited().is_some() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the container is not running"));
        }
        let description = serde_json::to_string(process)?;
        let enter = Enter::process(self.pid)?;
        let runtime = Handle::current();
        blocking(move || {
            enter.run(|| {
                let _runtime = runtime.enter();
                let mut command = Command::new(OWN_PATH);
                command.arg0("weir").arg(PROCESS_COMMAND).env_clear().env(SPEC_VARIABLE, description);
                command.stdin(io.stdin).stdout(io.stdout).stderr(io.stderr).kill_on_drop(true);
                command.process_group(0).spawn()
            })
        })
        .await
    }
}

/// Standard streams of a program.
#[derive(Debug)]
pub struct Streams {
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
}

impl Streams {
    /// Nothing in; both outputs into pipes.
    pub fn captured() -> Self {
        Self { stdin: Stdio::null(), stdout: Stdio::piped(), stderr: Stdio::piped() }
    }

    /// Three open files, as a client handed them over.
    pub fn handed([stdin, stdout, stderr]: [OwnedFd; 3]) -> Self {
        Self { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
    }
}

/// Runs what blocks on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
