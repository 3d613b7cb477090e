//! Ending a sandbox.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    LOOK, LaunchError, failed,
    owner::{Owner, is_young},
    user,
};
use crate::{client::Client, layout::Layout};

/// Longest time until a supervisor that is being started is on record.
const RECORDED: Duration = Duration::from_secs(2);
/// Longest time that a supervisor gets to end by itself.
const GRACEFUL: Duration = Duration::from_secs(15);
/// Longest time until a killed supervisor is gone.
const KILLED: Duration = Duration::from_secs(10);

/// What `down` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Downed {
    /// A running sandbox, ended in order.
    Ended,
    /// A sandbox that had to be killed, or whose supervisor had ended already.
    CleanedUp,
    /// Nothing.
    Nothing,
}

/// Ends a sandbox and removes all that is left of it.
///
/// # Errors
/// Where its process can not be ended or its files can not be removed.
pub fn down(layout: &Layout) -> Result<Downed, LaunchError> {
    // The `up` of a supervisor that is just starting may have been killed: only the supervisor's record leads to it.
    let begun = Instant::now();
    while Owner::read(layout).is_none() && is_young(layout) && begun.elapsed() < RECORDED {
        std::thread::sleep(LOOK);
    }
    take_down(layout)
}

/// As [`down`], where no supervisor is about to start.
pub(super) fn take_down(layout: &Layout) -> Result<Downed, LaunchError> {
    if !layout.root().exists() {
        return Ok(Downed::Nothing);
    }
    let mut result = Downed::CleanedUp;
    if let Some(owner) = Owner::read(layout).filter(Owner::is_alive) {
        let asked = Client::new(layout).stop().is_ok();
        if asked && gone(&owner, GRACEFUL) {
            result = Downed::Ended;
        } else {
            let pid = i32::try_from(owner.pid).map_err(|error| failed("process id")(io::Error::other(error)))?;
            // The kernel ends every process of a process namespace with its first one.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            if !gone(&owner, KILLED) {
                let source = io::Error::other(format!("process {pid} does not end"));
                return Err(LaunchError::Io { what: format!("sandbox {}", layout.name()), source });
            }
        }
    }
    user::remove(layout)?;
    Ok(result)
}

fn gone(owner: &Owner, limit: Duration) -> bool {
    let begun = Instant::now();
    while owner.is_alive() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}
