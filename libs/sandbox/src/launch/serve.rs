//! The supervisor's two first steps.

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::SigSet,
    unistd::setsid,
};

use super::{
    SERVE_INSIDE_COMMAND,
    owner::{Owner, start_time},
    user,
};
use crate::{
    layout::{Layout, write_atomic},
    supervisor::{self, Options, ServeError, refused},
};

/// First step of the supervisor: makes the namespaces, with a user namespace where it is not root's, starts the second step
/// inside, and ends.
///
/// # Errors
/// What the kernel said.
pub fn serve(options: &Options, user_namespace: bool) -> Result<(), ServeError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| ServeError::Io { what, source }
    };
    // `up` blocks the signals that it waits for, and a started program inherits that.
    SigSet::empty().thread_set_mask().map_err(|error| failed("signal mask")(error.into()))?;
    setsid().map_err(|error| failed("new session")(error.into()))?;
    if user_namespace {
        user::enter()?;
    }
    // The mount namespace is made by the second step: it mounts its own /proc, and this process still needs the machine's.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)
        .map_err(|error| refused("network and process namespaces", error.into()))?;
    let weir = std::env::current_exe().map_err(failed("own executable"))?;
    let mut command = Command::new(weir);
    command.arg0("weir-sandbox").arg(SERVE_INSIDE_COMMAND).arg("--name").arg(options.layout.name());
    command.arg("--manifests").arg(&options.manifests).arg("--bin-dir").arg(&options.bin_dir);
    if !options.mesh {
        command.arg("--without-mesh");
    }
    if !options.ipv6 {
        command.arg("--ipv4-only");
    }
    let mut child = command.spawn().map_err(failed("supervisor"))?;
    let record = || -> io::Result<()> {
        let started = start_time(child.id()).ok_or_else(|| io::Error::other("ended at once"))?;
        let owner = Owner { pid: child.id(), started };
        write_atomic(&options.layout.owner(), &serde_json::to_vec(&owner)?)
    };
    record().map_err(|error| {
        // Nobody could find it any more.
        let _ = child.kill();
        failed("supervisor")(error)
    })
}

/// Removes the files of a sandbox as root of a new user namespace.
///
/// # Errors
/// What the kernel said.
pub fn remove_inside(layout: &Layout) -> Result<(), ServeError> {
    SigSet::empty()
        .thread_set_mask()
        .map_err(|error| ServeError::Io { what: "signal mask".into(), source: error.into() })?;
    user::enter()?;
    let what = format!("folder {}", layout.root().display());
    layout.remove_folder().map_err(|source| ServeError::Io { what, source })
}

/// Second step of the supervisor, as first process of the new process namespace.
///
/// # Errors
/// Why it ended.
pub fn serve_inside(options: Options) -> Result<(), ServeError> {
    supervisor::prepare(options.ipv6)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| ServeError::Io { what: "runtime".into(), source })?;
    runtime.block_on(supervisor::serve(options))
}
