//! `weir sandbox demo`: starts an example, shows what the mesh does with it, and takes it down. Everything it prints was measured
//! just now; what does not come out as it should makes the exit code 1.

mod cleanup;
mod metrics;
mod outside;
mod roll;
mod split;
mod start;
mod view;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use clap::Args;
use weir_sandbox::{
    Client, Layout,
    client::{ClientError, Output},
    launch::{self, LaunchError, Up},
    supervisor::protocol::Status,
};

use crate::{
    failure::Failure,
    load, out,
    sandbox::{bin_dir, called, fail, on_interrupt},
};
use cleanup::Cleanup;

/// The pod that calls, in the mesh.
const CLIENT: &str = "shop/deploy/client";
/// The pod that calls, outside of the mesh.
const OUTSIDER: &str = "outside/deploy/client";
/// Longest time for the whole demo: a minute is what the README promises.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest time until all pods are ready; what comes then takes a quarter of a minute.
const START: Duration = Duration::from_secs(40);
/// Exit code where nobody read to the end, as a shell shows a program that ended by SIGPIPE.
const UNREAD: u8 = 141;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The example
    #[arg(default_value = "examples/canary")]
    example: PathBuf,
    /// Leave it running
    #[arg(long)]
    keep: bool,
    /// Name of the sandbox
    #[arg(long, default_value = "demo")]
    name: String,
    /// Folder of Weir's programs; that of this one where none is given
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// What every step needs.
struct Demo {
    client: Client,
    layout: Layout,
    /// A copy of the example that the demo edits.
    folder: PathBuf,
    interrupted: Arc<AtomicBool>,
    /// What did not come out as it should.
    failed: Vec<String>,
}

/// Why a step could not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Someone interrupted, or nobody reads any more.
    Interrupted,
    /// It can not.
    Failed(String),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

type Step<T = ()> = Result<T, Stop>;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let interrupted = on_interrupt()?;
    let layout = Layout::new(&arguments.name).map_err(Failure::usage)?;
    if layout.root().exists() {
        return Err(Failure::usage(format!(
            "a sandbox {0} exists: end it by `{1} sandbox down --name {0}`, or take another --name",
            layout.name(),
            called()
        )));
    }
    let begun = Instant::now();
    let up = Up {
        layout: layout.clone(),
        manifests: arguments.example.clone(),
        bin_dir: bin_dir(arguments.bin_dir.as_ref())?,
        mesh: true,
        ipv4_only: false,
        limit: START,
        copy: true,
    };
    view::title("Start", "manifests -> API objects -> admission -> network namespaces -> redirect -> proxies");
    let mut progress = |line: &str| {
        say!("  {:5.1} s  {line}", begun.elapsed().as_secs_f64());
        if out::closed() {
            interrupted.store(true, Ordering::Relaxed);
        }
    };
    let client = match launch::up(&up, &interrupted, &mut progress) {
        Err(LaunchError::Interrupted) if out::closed() => return Ok(ExitCode::from(UNREAD)),
        started => started.map_err(fail)?,
    };
    // From here on everything is taken back, however this function is left. Before, the start has taken back its own.
    let mut cleanup = Cleanup::new(&layout);
    let folder = layout.manifests();
    let mut demo = Demo { client, layout, folder, interrupted, failed: Vec::new() };
    match demo.steps() {
        Ok(()) => {}
        Err(Stop::Interrupted) => {
            drop(cleanup);
            if out::closed() {
                return Ok(ExitCode::from(UNREAD));
            }
            return Err(Failure::interrupted("interrupted; everything was taken down"));
        }
        Err(Stop::Failed(reason)) => demo.failed.push(reason),
    }
    if arguments.keep {
        cleanup.keep();
        view::title("End", "it goes on running");
    } else {
        let begun = Instant::now();
        let nothing_left = cleanup.now().map_err(fail)?;
        view::title("End", "");
        let took = begun.elapsed().as_secs_f64();
        let left = if nothing_left { "nothing is left" } else { "files are left" };
        demo.expect(nothing_left, &format!("taken down in {took:.1} s, {left}"));
    }
    let (took, limit) = (begun.elapsed(), LIMIT.as_secs());
    demo.expect(took < LIMIT, &format!("the whole demo took {:.1} s (at most {limit})", took.as_secs_f64()));
    demo.say_where_to_look(arguments.keep);
    if demo.failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let list: Vec<String> = demo.failed.iter().map(|reason| format!("  - {reason}")).collect();
    Err(Failure::failed(format!("the demo did not come out as it should:\n{}", list.join("\n"))))
}

impl Demo {
    fn steps(&mut self) -> Step {
        start::show(self)?;
        start::refusal(self)?;
        split::run(self)?;
        roll::run(self)?;
        outside::run(self)?;
        metrics::golden(self)
    }

    fn say_where_to_look(&self, running: bool) {
        let (weir, name) = (called(), self.layout.name());
        view::title("Where to look next", "");
        if !running {
            say!("  `make demo KEEP=1` leaves it running, to look around and to edit the rule");
        }
        let commands = [
            format!("{weir} sandbox status --name {name}"),
            format!("{weir} sandbox exec --name {name} {CLIENT} -- curl -si http://catalog/"),
            format!("{weir} sandbox logs --name {name} {CLIENT} -c weir-proxy"),
            format!("edit {} and see what changes", self.folder.join("route.yaml").display()),
            format!("{weir} sandbox down --name {name}"),
        ];
        for line in commands.iter().filter(|_| running) {
            say!("  {line}");
        }
        say!("  docs/sandbox.md, docs/architecture.md, examples/canary/");
    }

    /// Notes an expectation: printed, and where it does not hold kept for the end.
    fn expect(&mut self, holds: bool, what: &str) {
        say!("  {} {what}", if holds { "ok  " } else { "FAIL" });
        if !holds {
            self.failed.push(what.to_owned());
        }
    }

    fn go_on(&self) -> Step {
        if self.interrupted.load(Ordering::Relaxed) || out::closed() { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// Waits until the condition gives something.
    fn wait<T>(&self, limit: Duration, what: &str, mut condition: impl FnMut(&Status) -> Option<T>) -> Step<T> {
        let begun = Instant::now();
        loop {
            self.go_on()?;
            if let Some(found) = condition(&self.client.status()?) {
                return Ok(found);
            }
            if begun.elapsed() > limit {
                return Err(Stop::Failed(format!("{what} did not happen within {} s", limit.as_secs())));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Runs a program in a pod. An interruption does not wait for its end: it ends the sandbox, and the program with it.
    fn run(&self, pod: &str, command: &[&str]) -> Step<Output> {
        self.go_on()?;
        std::thread::scope(|scope| {
            let (done, ended) = mpsc::channel();
            scope.spawn(move || done.send(self.client.run(pod, command)));
            loop {
                match ended.recv_timeout(LOOK) {
                    Ok(output) => return Ok(output?),
                    Err(RecvTimeoutError::Disconnected) => return Err(Stop::Failed(format!("{command:?} panicked"))),
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if let Err(stop) = self.go_on() {
                    // Whether it could be asked is seen by the clean-up, which comes next.
                    let _ = self.client.stop();
                    return Err(stop);
                }
            }
        })
    }

    /// Runs the load client in a pod.
    fn load(&self, pod: &str, arguments: &[&str]) -> Step<load::Report> {
        let mut command = vec![weir_sandbox::runtime::spec::OWN_PATH, "sandbox-load"];
        command.extend(arguments);
        let output = self.run(pod, &command)?;
        serde_json::from_str(&output.stdout)
            .map_err(|_| Stop::Failed(format!("load client in {pod}: {}{}", output.stdout, output.stderr)))
    }

    /// Writes a file of the followed folder in one step.
    fn write(&self, file: &str, content: &str) -> Step {
        let path = self.folder.join(file);
        weir_sandbox::layout::write_atomic(&path, content.as_bytes())
            .map_err(|error| Stop::Failed(format!("{}: {error}", path.display())))
    }

    fn read(&self, file: &str) -> Step<String> {
        let path = self.folder.join(file);
        std::fs::read_to_string(&path).map_err(|error| Stop::Failed(format!("{}: {error}", path.display())))
    }

    /// Changes a file of the followed folder.
    fn edit(&self, file: &str, change: impl FnOnce(&str) -> String) -> Step {
        let before = self.read(file)?;
        let after = change(&before);
        if after == before {
            return Err(Stop::Failed(format!("{file} does not look as the demo knows it")));
        }
        self.write(file, &after)
    }
}
