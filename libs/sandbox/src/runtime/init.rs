//! A container's first process: builds the file system, starts the program, passes signals on, reaps.

use std::{
    fs,
    io::{self, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sethostname},
};

use super::{
    mounts,
    process::CAN_NOT_RUN,
    spec::{ContainerSpec, OWN_PATH},
};

/// Hidden subcommand of `weir` under which [`super::process`] runs.
pub const PROCESS_COMMAND: &str = "sandbox-process";
/// Hidden subcommand of `weir` under which this module runs.
pub const INIT_COMMAND: &str = "sandbox-init";

/// Signals that a container's program gets when its first process does.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// Runs the container described on standard input. Gives the exit code of its program (128 + signal where one ended it).
pub fn run() -> i32 {
    match start() {
        Ok((child, signals)) => supervise(child, signals),
        Err(error) => {
            eprintln!("weir sandbox: can not start the container: {error}");
            CAN_NOT_RUN
        }
    }
}

fn start() -> io::Result<(Child, SigSet)> {
    let spec: ContainerSpec = serde_json::from_reader(io::stdin().lock())?;
    // Blocked before the program exists, so that no signal is lost between its start and our first wait.
    let mut signals: SigSet = PASSED_ON.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
    sethostname(&spec.hostname)?;
    mounts::build(&spec)?;
    let mut child =
        Command::new(OWN_PATH).arg0("weir").arg(PROCESS_COMMAND).env_clear().stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&spec.process)?)?;
    }
    let _ = fs::write("/proc/self/comm", "init");
    // Standard input is a socket: who started us wants to know that programs can be started in the container from now on.
    let _ = nix::unistd::write(io::stdin(), b"1");
    let _ = super::process::close_stdin();
    Ok((child, signals))
}

fn supervise(child: Child, signals: SigSet) -> i32 {
    let Ok(program) = i32::try_from(child.id()) else { return CAN_NOT_RUN };
    let program = Pid::from_raw(program);
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(program) {
                    return code;
                }
            }
            // Gone already: its SIGCHLD comes next.
            Ok(signal) => drop(kill(program, signal)),
            Err(Errno::EINTR) => {}
            Err(error) => {
                eprintln!("weir sandbox: {error}");
                return CAN_NOT_RUN;
            }
        }
    }
}

/// Takes all ended processes; the exit code once the program is among them.
fn reap(program: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == program => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == program => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

/// Exit code of a process as a container runtime gives it.
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(CAN_NOT_RUN)
}
