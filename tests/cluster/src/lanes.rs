//! Runs suites, some at the same time: each waits for its cluster more than it works. The `main` of tests without Rust's own harness.
//!
//! ```no_run
//! use weir_cluster::{Case, Options, Suite, cases, lanes, suite::LIMIT};
//!
//! async fn pods_start(case: &Case<'_>) {
//!     case.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: here}");
//! }
//!
//! const PODS: Suite = Suite {
//!     name: "pods",
//!     title: "Pods start",
//!     prepare: || Ok(Options::default()),
//!     limit: LIMIT,
//!     alone: false,
//!     tests: cases![pods_start],
//! };
//!
//! fn main() -> std::process::ExitCode {
//!     lanes::run(&[PODS])
//! }
//! ```

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use nix::sys::{prctl, signal::Signal};

use crate::{
    mesh, requirements,
    suite::{Suite, Test},
};

/// Set for a suite that runs beside others.
const IN_LANE: &str = "WEIR_CLUSTER_LANE";
/// Fewest and most at the same time.
const LANES: (usize, usize) = (2, 4);

/// What the command line asks for: the part of `cargo test`'s own that makes sense here. Tests are called `SUITE::TEST`.
#[derive(Default)]
struct Selection {
    filters: Vec<String>,
    exact: bool,
    list: bool,
}

impl Selection {
    fn from_arguments() -> Self {
        let mut selection = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--exact" => selection.exact = true,
                "--list" => selection.list = true,
                "--test-threads" | "--format" | "--color" | "-Z" => {
                    arguments.next();
                }
                flag if flag.starts_with('-') => {}
                _ => selection.filters.push(argument),
            }
        }
        selection
    }

    fn has(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        self.filters.is_empty() || self.filters.iter().any(matches)
    }
}

/// A suite, and those of its tests that are asked for.
struct Chosen {
    suite: Suite,
    tests: Vec<Test>,
}

impl Chosen {
    fn names(&self) -> impl Iterator<Item = String> {
        self.tests.iter().map(|(test, _)| format!("{}::{test}", self.suite.name))
    }
}

/// Runs the suites that the command line asks for, the first ones first, and says at the end how each went.
///
/// Where no cluster can run, it says which tests are skipped and why, and fails if that must not be (`CI=true`).
pub fn run(suites: &[Suite]) -> ExitCode {
    let selection = Selection::from_arguments();
    let chosen = suites.iter().map(|suite| {
        let has = |(test, _): &&Test| selection.has(&format!("{}::{test}", suite.name));
        Chosen { suite: *suite, tests: suite.tests.iter().filter(has).copied().collect() }
    });
    let chosen: Vec<Chosen> = chosen.filter(|chosen| !chosen.tests.is_empty()).collect();
    if selection.list {
        chosen.iter().flat_map(Chosen::names).for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let names: Vec<String> = chosen.iter().flat_map(Chosen::names).collect();
    if names.is_empty() || requirements::skips(&names.join(", ")) {
        return ExitCode::SUCCESS;
    }
    if let [one] = &*chosen {
        if std::env::var_os(IN_LANE).is_some() {
            // Whoever reads what this says is gone: so is its cluster, at once.
            let _ = prctl::set_pdeathsig(Signal::SIGTERM);
        }
        return one.suite.run(&one.tests);
    }
    run_all(chosen).unwrap_or_else(|error| {
        println!("FAILED: {error:#}");
        ExitCode::FAILURE
    })
}

/// How a suite went.
struct Ended {
    title: &'static str,
    tests: usize,
    passed: bool,
    seconds: u64,
}

fn run_all(chosen: Vec<Chosen>) -> Result<ExitCode> {
    // Once for all of them.
    let images = mesh::images()?;
    let (alone, beside): (Vec<Chosen>, Vec<Chosen>) = chosen.into_iter().partition(|chosen| chosen.suite.alone);
    let lanes = thread::available_parallelism().map_or(LANES.0, |cores| cores.get().clamp(LANES.0, LANES.1));
    let ended = Mutex::new(Vec::new());
    for (queue, lanes) in [(beside, lanes), (alone, 1)] {
        let queue = Mutex::new(VecDeque::from(queue));
        thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    while let Some(next) = { lock(&queue).pop_front() } {
                        let begun = Instant::now();
                        println!("begins: {}", next.suite.title);
                        let result = run_apart(&next, &images);
                        // Held while it prints, so that no two suites' lines mix.
                        let mut ended = lock(&ended);
                        let (passed, said) =
                            result.unwrap_or_else(|error| (false, format!("{error:#}\n").into_bytes()));
                        println!("\n==== {}", next.suite.title);
                        let _ = std::io::stdout().write_all(&said);
                        let seconds = begun.elapsed().as_secs();
                        ended.push(Ended { title: next.suite.title, tests: next.tests.len(), passed, seconds });
                    }
                });
            }
        });
    }
    println!();
    let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    for Ended { title, tests, passed, seconds } in &ended {
        println!("{} {title} ({tests} tests, {seconds} s)", if *passed { "ok    " } else { "FAILED" });
    }
    Ok(if ended.iter().all(|ended| ended.passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a suite in a process of its own: if it passed, and all that it printed.
fn run_apart(chosen: &Chosen, images: &std::path::Path) -> Result<(bool, Vec<u8>)> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--exact").args(chosen.names()).env(IN_LANE, chosen.suite.name).env(mesh::IMAGES_FOLDER, images);
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn().context(chosen.suite.name)?;
    // It holds ends of the pipe that must close before the child's output ends.
    drop(command);
    let mut said = Vec::new();
    reader.read_to_end(&mut said)?;
    Ok((child.wait()?.success(), said))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
