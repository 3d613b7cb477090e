//! The pause container: first process of a pod that shares its process namespace.

use std::process::ExitCode;

use anyhow::Result;
use nix::sys::{
    signal::{SigSet, Signal},
    wait::{WaitPidFlag, WaitStatus, waitpid},
};

/// Waits for SIGTERM.
pub(crate) fn run() -> Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    while signals.wait()? == Signal::SIGCHLD {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    }
    Ok(ExitCode::SUCCESS)
}
