//! `weir sandbox`: the whole mesh on one machine.

mod logs;
mod status;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use weir_sandbox::{
    Client, Layout,
    launch::{self, Downed, LaunchError, Up},
    supervisor::{Options, protocol::Exec},
};

use crate::{code, demo, failure::Failure};

/// Name of the sandbox where none is given.
const DEFAULT_NAME: &str = "default";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the manifests of a folder and wait until all pods are ready
    Up(UpArguments),
    /// Show pods, Services, and what happened last
    Status {
        #[command(flatten)]
        name: Name,
        /// Show all events
        #[arg(long)]
        events: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a program in a container
    Exec {
        #[command(flatten)]
        name: Name,
        /// POD, NAMESPACE/POD, deploy/NAME or NAMESPACE/deploy/NAME
        pod: String,
        /// Container; the pod's first where none is given
        #[arg(short, long)]
        container: Option<String>,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show what a container wrote
    Logs {
        #[command(flatten)]
        name: Name,
        /// POD, NAMESPACE/POD, deploy/NAME or NAMESPACE/deploy/NAME
        pod: String,
        /// Container; the pod's first where none is given
        #[arg(short, long)]
        container: Option<String>,
        /// Go on until interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// Start an example, show what the mesh does with it, take it down
    Demo(demo::Arguments),
    /// End a sandbox; nothing of it is left
    Down {
        #[command(flatten)]
        name: Name,
    },
}

/// Which sandbox.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// Name of the sandbox
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

impl Name {
    fn layout(&self) -> Result<Layout, Failure> {
        Layout::new(&self.name).map_err(Failure::usage)
    }
}

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    name: Name,
    /// Folder of manifests; edits are followed while the sandbox runs
    manifests: PathBuf,
    /// Folder of Weir's programs; that of this one where none is given
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Run the pods alone, without control plane, webhook and redirect
    #[arg(long)]
    without_mesh: bool,
    /// Give pods and Services no addresses of IPv6
    #[arg(long)]
    ipv4_only: bool,
    /// Longest time until all pods are ready, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// What the hidden steps of the supervisor are told.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[arg(long)]
    name: String,
    #[arg(long)]
    manifests: PathBuf,
    #[arg(long)]
    bin_dir: PathBuf,
    #[arg(long)]
    without_mesh: bool,
    #[arg(long)]
    ipv4_only: bool,
    #[arg(long)]
    user_namespace: bool,
}

/// What the hidden step that removes files is told.
#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    #[arg(long)]
    name: String,
    /// It knows no other way; who starts a step in a user namespace says so to each.
    #[arg(long)]
    user_namespace: bool,
}

pub(crate) fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Up(arguments) => up(&arguments),
        Command::Status { name, events, json } => status::run(&name.layout()?, events, json),
        Command::Exec { name, pod, container, command } => {
            let exec = Exec { pod, container, command };
            Client::new(&name.layout()?).exec(exec).map(code).map_err(Failure::failed)
        }
        Command::Logs { name, pod, container, follow } => logs::run(&name.layout()?, &pod, container, follow),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Down { name } => down(&name.layout()?),
    }
}

fn up(arguments: &UpArguments) -> Result<ExitCode, Failure> {
    let interrupted = on_interrupt()?;
    let begun = Instant::now();
    let up = Up {
        layout: arguments.name.layout()?,
        manifests: arguments.manifests.clone(),
        bin_dir: bin_dir(arguments.bin_dir.as_ref())?,
        mesh: !arguments.without_mesh,
        ipv4_only: arguments.ipv4_only,
        limit: Duration::from_secs(arguments.timeout),
        copy: false,
    };
    let mut progress = |line: &str| say!("{:6.1} s  {line}", begun.elapsed().as_secs_f64());
    launch::up(&up, &interrupted, &mut progress).map_err(fail)?;
    let name = up.layout.name();
    let option = if name == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
    say!(
        "{:6.1} s  sandbox {name} is up: {} sandbox status|exec|logs|down{option}",
        begun.elapsed().as_secs_f64(),
        called()
    );
    Ok(ExitCode::SUCCESS)
}

/// A launch error with its exit code.
pub(crate) fn fail(error: LaunchError) -> Failure {
    match error {
        LaunchError::Interrupted => Failure::interrupted(error),
        LaunchError::Manifests(_) | LaunchError::Running(_) => Failure::usage(error),
        _ => Failure::failed(error),
    }
}

/// Folder of Weir's programs: the one given, or that of this executable.
pub(crate) fn bin_dir(given: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    let folder = match given {
        Some(folder) => folder.clone(),
        None => {
            let own = std::env::current_exe().map_err(Failure::failed)?;
            own.parent().map(PathBuf::from).unwrap_or_default()
        }
    };
    folder.canonicalize().map_err(|error| Failure::usage(format!("--bin-dir {}: {error}", folder.display())))
}

/// How this program was called, for lines that a person copies: `weir` need not be in the search path.
pub(crate) fn called() -> String {
    std::env::args_os().next().map_or_else(|| "weir".into(), |name| name.to_string_lossy().into_owned())
}

/// From now on SIGINT and SIGTERM do not end this process but set the flag. To be called before any thread exists.
pub(crate) fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(Failure::failed)?;
    let set = flag.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            complain!(
                "weir: {}",
                if set.swap(true, Ordering::Relaxed) {
                    "already taking everything down, please wait"
                } else {
                    "interrupted: taking everything down"
                }
            );
        }
    });
    Ok(flag)
}

fn down(layout: &Layout) -> Result<ExitCode, Failure> {
    let name = layout.name();
    match launch::down(layout).map_err(fail)? {
        Downed::Ended => say!("sandbox {name} is down"),
        Downed::CleanedUp => say!("sandbox {name} had ended without order; its files are removed"),
        Downed::Nothing => {
            let others = Layout::all();
            let others = if others.is_empty() { String::new() } else { format!(" (there are {})", others.join(", ")) };
            say!("there is no sandbox {name}{others}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &ServeArguments) -> Result<Options, Failure> {
    // The supervisor's own log is a file that people read when something went wrong.
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    Ok(Options {
        layout: Layout::new(&arguments.name).map_err(Failure::usage)?,
        manifests: arguments.manifests.clone(),
        bin_dir: arguments.bin_dir.clone(),
        mesh: !arguments.without_mesh,
        ipv6: !arguments.ipv4_only,
    })
}

pub(crate) fn serve(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    launch::serve(&options(arguments)?, arguments.user_namespace).map(|()| ExitCode::SUCCESS).map_err(Failure::failed)
}

pub(crate) fn remove_inside(arguments: &RemoveArguments) -> Result<ExitCode, Failure> {
    let layout = Layout::new(&arguments.name).map_err(Failure::usage)?;
    launch::remove_inside(&layout).map(|()| ExitCode::SUCCESS).map_err(Failure::failed)
}

pub(crate) fn serve_inside(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    launch::serve_inside(options(arguments)?).map(|()| ExitCode::SUCCESS).map_err(Failure::failed)
}
