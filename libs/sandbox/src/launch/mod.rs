//! Starting and ending a sandbox from outside: what `up` and `down` do.

mod check;
mod down;
mod owner;
mod report;
mod serve;
mod user;
mod wait;

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::stat::{Mode, umask};

use self::{down::take_down, wait::wait_until_ready};
pub use self::{
    down::{Downed, down},
    owner::Owner,
    serve::{remove_inside, serve, serve_inside},
};
use crate::{
    api::load::{self, LoadError},
    client::{Client, ClientError},
    layout::Layout,
    net::node::has_ipv6,
    runtime::logs::tail,
};

/// Hidden subcommand of `weir` that makes the namespaces and starts the supervisor in them.
pub const SERVE_COMMAND: &str = "sandbox-serve";
/// Its second step, inside the namespaces.
pub const SERVE_INSIDE_COMMAND: &str = "sandbox-serve-inside";

/// Hidden subcommand of `weir` that removes the files of a sandbox inside a user namespace.
pub const REMOVE_COMMAND: &str = "sandbox-remove";
/// Tells a hidden subcommand to make a user namespace first.
pub const USER_NAMESPACE_FLAG: &str = "--user-namespace";

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Longest time until the supervisor answers.
const SUPERVISOR: Duration = Duration::from_secs(15);

/// Why a sandbox does not start or end.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The name is taken.
    #[error("sandbox {0} is running already: end it by `weir sandbox down --name {0}`, or take another --name")]
    Running(String),
    /// Something is not installed, or not allowed.
    #[error("{0}")]
    Missing(String),
    /// The manifests are wrong.
    #[error("{0}")]
    Manifests(#[from] LoadError),
    /// The machine said no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// The supervisor ended while it was needed.
    #[error("the supervisor ended: {0}")]
    Ended(String),
    /// Not all pods became ready.
    #[error("{0}")]
    NotReady(String),
    /// Someone interrupted.
    #[error("interrupted; everything is taken down again")]
    Interrupted,
    /// The supervisor could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.into();
    move |source| LaunchError::Io { what, source }
}

/// How to start a sandbox.
#[derive(Debug, Clone)]
pub struct Up {
    /// Where it keeps its files.
    pub layout: Layout,
    /// Manifests.
    pub manifests: PathBuf,
    /// Weir's programs.
    pub bin_dir: PathBuf,
    /// Whether the mesh runs.
    pub mesh: bool,
    /// Whether there is to be no IPv6 even where the kernel has it.
    pub ipv4_only: bool,
    /// Longest time until all pods are ready.
    pub limit: Duration,
    /// Whether it runs [`Layout::manifests`], a copy that can be edited freely and ends with the sandbox.
    pub copy: bool,
}

/// Starts a sandbox and waits until all its pods are ready. What fails or is interrupted is taken down again.
///
/// # Errors
/// [`LaunchError`], with the logs of what did not become ready.
pub fn up(up: &Up, interrupted: &Arc<AtomicBool>, progress: &mut dyn FnMut(&str)) -> Result<Client, LaunchError> {
    // Containers of other users read what is written for them.
    umask(Mode::from_bits_truncate(0o022));
    check::check(up)?;
    let ipv6 = !up.ipv4_only && has_ipv6();
    if !ipv6 && !up.ipv4_only {
        progress("this kernel has no IPv6: pods and Services have IPv4 only");
    }
    load::load(&up.manifests, ipv6)?;
    take_folder(&up.layout, progress)?;
    let manifests = if up.copy { copy_manifests(up) } else { Ok(up.manifests.clone()) };
    let started = manifests.and_then(|manifests| spawn(up, &manifests, ipv6));
    let error = match started.and_then(|()| wait_until_ready(up, interrupted, progress)) {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    // The first error matters more than one of the way down, which `down` would show again.
    let _ = take_down(&up.layout);
    // A terminal interrupts the supervisor's first step as well, which then looks as if it had failed by itself.
    Err(if interrupted.load(Ordering::Relaxed) { LaunchError::Interrupted } else { error })
}

fn copy_manifests(up: &Up) -> Result<PathBuf, LaunchError> {
    let to = up.layout.manifests();
    let copy = || -> io::Result<()> {
        fs::create_dir(&to)?;
        let files = if up.manifests.is_dir() {
            fs::read_dir(&up.manifests)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?
        } else {
            vec![up.manifests.clone()]
        };
        for path in files {
            if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                fs::copy(&path, to.join(name))?;
            }
        }
        Ok(())
    };
    copy().map_err(failed(format!("copy of {}", up.manifests.display())))?;
    Ok(to)
}

fn take_folder(layout: &Layout, progress: &mut dyn FnMut(&str)) -> Result<(), LaunchError> {
    let what = || failed(format!("folder {}", layout.root().display()));
    match layout.create() {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(what()(error)),
        Err(_) => {}
    }
    let alive = match Owner::read(layout) {
        Some(owner) => owner.is_alive(),
        None => owner::is_young(layout),
    };
    if alive {
        return Err(LaunchError::Running(layout.name().to_owned()));
    }
    progress("an earlier sandbox of this name ended without `down`: its files are removed");
    user::remove(layout)?;
    layout.create().map_err(what())
}

fn spawn(up: &Up, manifests: &Path, ipv6: bool) -> Result<(), LaunchError> {
    let log = File::create(up.layout.supervisor_log()).map_err(failed("log of the supervisor"))?;
    let weir = std::env::current_exe().map_err(failed("own executable"))?;
    let manifests = fs::canonicalize(manifests).map_err(failed(manifests.display().to_string()))?;
    let mut command = Command::new(weir);
    command.arg(SERVE_COMMAND).arg("--name").arg(up.layout.name());
    command.arg("--manifests").arg(manifests).arg("--bin-dir").arg(&up.bin_dir);
    if !up.mesh {
        command.arg("--without-mesh");
    }
    if !ipv6 {
        command.arg("--ipv4-only");
    }
    command.current_dir("/").stdin(Stdio::null()).env("PATH", search_path());
    command.stdout(log.try_clone().map_err(failed("log of the supervisor"))?).stderr(log);
    let status =
        if user::is_root() { command.status().map_err(failed("supervisor"))? } else { user::run(command, &up.layout)? };
    if status.success() { Ok(()) } else { Err(ended(&up.layout)) }
}

/// Why the supervisor has ended: its last line where that says it, else all that it said last.
fn ended(layout: &Layout) -> LaunchError {
    let said = tail(&layout.supervisor_log(), 20);
    let reason = said.lines().last().and_then(|line| line.strip_prefix("weir: ")).map(str::to_owned);
    LaunchError::Ended(reason.unwrap_or(said))
}

/// Where programs are looked for: an ordinary user's search path lacks the folders of `nft` and `ip`.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}
