//! Starting and ending a sandbox from outside: what `up` and `down` do.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, Signal, kill},
    unistd::{Pid, Uid, setsid},
};
use serde::{Deserialize, Serialize};
use weir_mesh::names::{PROXY_CONTAINER, SYSTEM_NAMESPACE};

use crate::{
    api::load::{self, LoadError},
    client::{Client, ClientError},
    cni,
    layout::{Layout, write_atomic},
    pod::{PodStatus, state::ContainerState},
    runtime::logs::tail,
    supervisor::{self, Options, ServeError, protocol::Status},
};

/// Hidden subcommand of `weir` that makes the namespaces and starts the supervisor in them.
pub const SERVE_COMMAND: &str = "sandbox-serve";
/// Its second step, inside the namespaces.
pub const SERVE_INSIDE_COMMAND: &str = "sandbox-serve-inside";

/// Asks a proxy once whether it is ready, by the program that its `postStart` hook runs.
const PROXY_WAIT: [&str; 4] = ["/weir-proxy", "wait", "--timeout", "0"];

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long all pods must be ready before the sandbox counts as up.
const STEADY: Duration = Duration::from_millis(150);
/// Longest time until the supervisor answers.
const SUPERVISOR: Duration = Duration::from_secs(15);
/// Longest time until a supervisor that is being started is on record.
const RECORDED: Duration = Duration::from_secs(2);
/// Longest time that a supervisor gets to end by itself.
const GRACEFUL: Duration = Duration::from_secs(15);
/// Longest time until a killed supervisor is gone.
const KILLED: Duration = Duration::from_secs(10);
/// Programs of the system that the sandbox runs, with the Debian package that has each.
const PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("nft", "nftables")];
/// Weir's own programs that the mesh needs.
const MESH_PROGRAMS: [&str; 4] = ["weir-cni", "weir-control", "weir-proxy", "weir-webhook"];

/// Why a sandbox does not start or end.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Not root.
    #[error("the sandbox needs root for now (network namespaces and mounts): run it by sudo")]
    NotRoot,
    /// The name is taken.
    #[error("sandbox {0} is running already: end it by `weir sandbox down --name {0}`, or take another --name")]
    Running(String),
    /// Something is not installed.
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

/// Who runs a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id of the supervisor, on the machine.
    pub pid: u32,
    /// When it was started, in clock ticks since boot: tells it from a later process with the same id.
    pub started: u64,
}

impl Owner {
    fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&fs::read(layout.owner()).ok()?).ok()
    }

    fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat`; none for a process that is gone or only waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything.
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
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
    check(up)?;
    load::load(&up.manifests)?;
    take_folder(&up.layout, progress)?;
    let manifests = if up.copy { copy_manifests(up) } else { Ok(up.manifests.clone()) };
    let started = manifests.and_then(|manifests| spawn(up, &manifests));
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

fn check(up: &Up) -> Result<(), LaunchError> {
    if !Uid::effective().is_root() {
        return Err(LaunchError::NotRoot);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
        .map(|(program, package)| format!("`{program}` (Debian package {package})"))
        .collect();
    for plugin in cni::NEEDED {
        if !cni::PLUGIN_FOLDERS.iter().any(|folder| Path::new(folder).join(plugin).is_file()) {
            missing.push(format!("the CNI plugin `{plugin}` (Debian package containernetworking-plugins)"));
        }
    }
    if !missing.is_empty() {
        return Err(LaunchError::Missing(format!("the sandbox needs {}: install it first", missing.join(", "))));
    }
    if up.mesh {
        let absent: Vec<&str> =
            MESH_PROGRAMS.into_iter().filter(|program| !up.bin_dir.join(program).is_file()).collect();
        if !absent.is_empty() {
            return Err(LaunchError::Missing(format!(
                "{} not found in {}: build them, name their folder by --bin-dir, or leave the mesh out by --without-mesh",
                absent.join(", "),
                up.bin_dir.display()
            )));
        }
    }
    Ok(())
}

/// Whether someone may just be starting the sandbox: its folder is there, and not old.
fn is_young(layout: &Layout) -> bool {
    let changed = fs::metadata(layout.root()).and_then(|found| found.modified());
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < SUPERVISOR))
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
        None => is_young(layout),
    };
    if alive {
        return Err(LaunchError::Running(layout.name().to_owned()));
    }
    progress("an earlier sandbox of this name ended without `down`: its files are removed");
    layout.remove().map_err(what())?;
    layout.create().map_err(what())
}

fn spawn(up: &Up, manifests: &Path) -> Result<(), LaunchError> {
    let log = File::create(up.layout.supervisor_log()).map_err(failed("log of the supervisor"))?;
    let weir = std::env::current_exe().map_err(failed("own executable"))?;
    let manifests = fs::canonicalize(manifests).map_err(failed(manifests.display().to_string()))?;
    let mut command = Command::new(weir);
    command.arg(SERVE_COMMAND).arg("--name").arg(up.layout.name());
    command.arg("--manifests").arg(manifests).arg("--bin-dir").arg(&up.bin_dir);
    if !up.mesh {
        command.arg("--without-mesh");
    }
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(failed("log of the supervisor"))?).stderr(log);
    let status = command.status().map_err(failed("supervisor"))?;
    if status.success() { Ok(()) } else { Err(LaunchError::Ended(tail(&up.layout.supervisor_log(), 20))) }
}

/// First step of the supervisor: makes the namespaces, starts the second step inside, and ends.
///
/// # Errors
/// What the kernel said.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| ServeError::Io { what, source }
    };
    // `up` blocks the signals that it waits for, and a started program inherits that.
    SigSet::empty().thread_set_mask().map_err(|error| failed("signal mask")(error.into()))?;
    setsid().map_err(|error| failed("new session")(error.into()))?;
    // The mount namespace is made by the second step: it mounts its own /proc, and this process still needs the machine's.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)
        .map_err(|error| failed("new namespaces")(error.into()))?;
    let weir = std::env::current_exe().map_err(failed("own executable"))?;
    let mut command = Command::new(weir);
    command.arg0("weir-sandbox").arg(SERVE_INSIDE_COMMAND).arg("--name").arg(options.layout.name());
    command.arg("--manifests").arg(&options.manifests).arg("--bin-dir").arg(&options.bin_dir);
    if !options.mesh {
        command.arg("--without-mesh");
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

/// Second step of the supervisor, as first process of the new process namespace.
///
/// # Errors
/// Why it ended.
pub fn serve_inside(options: Options) -> Result<(), ServeError> {
    supervisor::prepare()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| ServeError::Io { what: "runtime".into(), source })?;
    runtime.block_on(supervisor::serve(options))
}

fn wait_until_ready(
    up: &Up,
    interrupted: &Arc<AtomicBool>,
    progress: &mut dyn FnMut(&str),
) -> Result<Client, LaunchError> {
    let client = Client::new(&up.layout);
    let owner = Owner::read(&up.layout).ok_or_else(|| LaunchError::Ended(tail(&up.layout.supervisor_log(), 20)))?;
    let begun = Instant::now();
    let mut reporter = Reporter::default();
    let mut steady = None;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Err(LaunchError::Interrupted);
        }
        if !owner.is_alive() {
            return Err(LaunchError::Ended(tail(&up.layout.supervisor_log(), 20)));
        }
        match client.status() {
            Ok(status) => {
                reporter.tell(&status, progress);
                // A program without a probe is ready as soon as it runs, even if it ends at once.
                let steady_since = *steady.get_or_insert_with(Instant::now);
                if !status.ready {
                    steady = None;
                } else if steady_since.elapsed() >= STEADY {
                    return Ok(client);
                }
                let hopeless: Vec<_> =
                    status.pods.iter().filter(|(_, pod)| pod.status.hopeless).map(|(name, _)| name.as_str()).collect();
                if !hopeless.is_empty() {
                    return Err(LaunchError::NotReady(report(up, &client, &status, "can not become ready")));
                }
                if begun.elapsed() > up.limit {
                    let what = format!("did not become ready within {} s", up.limit.as_secs());
                    return Err(LaunchError::NotReady(report(up, &client, &status, &what)));
                }
            }
            Err(_) if begun.elapsed() < SUPERVISOR => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(LOOK);
    }
}

/// Tells what changed since it told the last time.
#[derive(Default)]
struct Reporter {
    ready: Vec<String>,
    last: Option<Instant>,
}

/// Without news a line comes this often, so that nobody wonders.
const HEARTBEAT: Duration = Duration::from_secs(3);

impl Reporter {
    fn tell(&mut self, status: &Status, progress: &mut dyn FnMut(&str)) {
        let now = Instant::now();
        let last = *self.last.get_or_insert(now);
        let mut news = false;
        for (name, pod) in &status.pods {
            if pod.status.ready && !self.ready.contains(name) {
                self.ready.push(name.clone());
                progress(&format!("ready: {name}"));
                news = true;
            }
        }
        if news {
            self.last = Some(now);
        } else if now.duration_since(last) > HEARTBEAT {
            let waiting: Vec<String> = status
                .pods
                .iter()
                .filter(|(_, pod)| !pod.status.ready)
                .map(|(name, pod)| match why(&pod.status) {
                    Some(reason) => format!("{name} ({reason})"),
                    None => name.clone(),
                })
                .collect();
            progress(&format!("waiting for {}", waiting.join(", ")));
            self.last = Some(now);
        }
    }
}

/// What a pod waits for, where that is known: its own reason, or that of a container which was started before.
fn why(pod: &PodStatus) -> Option<&str> {
    let containers = pod.containers.iter().filter(|container| container.restarts > 0);
    let mut reasons = containers.filter_map(|container| match &container.state {
        ContainerState::Waiting(reason) => Some(reason.as_str()),
        _ => None,
    });
    pod.message.as_deref().or_else(|| reasons.next())
}

/// Why a running proxy is not ready, in its own words.
fn proxy_says(client: &Client, pod: &str) -> Option<String> {
    let output = client.run_in(pod, Some(PROXY_CONTAINER), &PROXY_WAIT).ok()?;
    let said = output.stderr.trim();
    (output.code != 0 && !said.is_empty()).then(|| said.to_owned())
}

/// Says which pods are not ready, why, and what their containers said last.
fn report(up: &Up, client: &Client, status: &Status, what: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mut waiting: Vec<_> = status.pods.iter().filter(|(_, pod)| !pod.status.ready).collect();
    // The mesh's own pods first: where they are not ready, the others wait for them.
    let system = format!("{SYSTEM_NAMESPACE}/");
    waiting.sort_by_key(|(name, _)| !name.starts_with(&system));
    // Writing into a String does not fail.
    for (name, pod) in waiting {
        let _ = write!(out, "{}pod {name} {what}", if out.is_empty() { "" } else { "\n" });
        if let Some(message) = &pod.status.message {
            let _ = write!(out, ": {message}");
        }
        for container in &pod.status.containers {
            let state = match &container.state {
                ContainerState::Waiting(reason) => reason.clone(),
                ContainerState::Running if container.ready => continue,
                ContainerState::Running => "running, not ready".into(),
                ContainerState::Ended(0) => continue,
                ContainerState::Ended(code) => format!("ended with exit code {code}"),
            };
            let _ = write!(out, "\n  container {}: {state}", container.name);
            if container.name == PROXY_CONTAINER
                && container.state == ContainerState::Running
                && let Some(reason) = proxy_says(client, name)
            {
                let _ = write!(out, "\n    {reason}");
            }
            let (namespace, pod_name) = name.split_once('/').unwrap_or_default();
            let log = tail(&up.layout.log(namespace, pod_name, &container.name), 8);
            for line in log.lines() {
                let _ = write!(out, "\n    | {line}");
            }
        }
    }
    let warnings: Vec<_> = status.events.iter().filter(|event| event.warning).collect();
    for event in warnings.iter().skip(warnings.len().saturating_sub(8)) {
        let _ = write!(out, "\n  event: {}: {}: {}", event.object, event.reason, event.message);
    }
    if out.is_empty() { what.to_owned() } else { out }
}

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
    if !Uid::effective().is_root() {
        return Err(LaunchError::NotRoot);
    }
    // The `up` of a supervisor that is just starting may have been killed: only the supervisor's record leads to it.
    let begun = Instant::now();
    while Owner::read(layout).is_none() && is_young(layout) && begun.elapsed() < RECORDED {
        std::thread::sleep(LOOK);
    }
    take_down(layout)
}

/// As [`down`], where no supervisor is about to start.
fn take_down(layout: &Layout) -> Result<Downed, LaunchError> {
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
    layout.remove().map_err(failed(format!("folder {}", layout.root().display())))?;
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
