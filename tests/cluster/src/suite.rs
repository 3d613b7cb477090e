//! Runs the tests of one file on one cluster: a `main` for tests without Rust's own harness, because a cluster takes seconds to start
//! and must be taken down by the process that started it.
//!
//! ```no_run
//! use weir_cluster::{Case, Options, cases, suite};
//!
//! async fn pods_start(case: &Case<'_>) {
//!     case.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: here}");
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     suite::run("Pods start", Options::default(), cases![pods_start])
//! }
//! ```

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::PostParams, core::ObjectMeta};

use crate::{case::Case, cluster::Cluster, mesh, options::Options, requirements};

/// The longest that one test may take, unless it says otherwise.
const LIMIT: Duration = Duration::from_secs(180);

/// A test: its name, and what it does.
pub type Test = (&'static str, for<'a> fn(&'a Case<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>);

/// Tests by the names of their functions: `async fn(&Case<'_>)`.
#[macro_export]
macro_rules! cases {
    ($($name:path),+ $(,)?) => {
        &[$((stringify!($name), |case| ::std::boxed::Box::pin($name(case)))),+]
    };
}

/// What the command line asks for: the part of `cargo test`'s own that makes sense here.
struct Selection {
    filters: Vec<String>,
    exact: bool,
    list: bool,
}

impl Selection {
    fn from_arguments() -> Self {
        let mut selection = Self { filters: Vec::new(), exact: false, list: false };
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

/// Starts a cluster, runs the tests one after the other, prints a line for each and one for all under their title, and takes the
/// cluster down.
///
/// Where no cluster can run, it says which tests are skipped and why, and fails if that must not be (`CI=true`).
pub fn run(title: &str, options: Options, tests: &[Test]) -> ExitCode {
    run_prepared(title, || Ok(options), tests)
}

/// The same, with something to build first, which is not done where no test will run.
pub fn run_prepared(title: &str, prepare: impl FnOnce() -> anyhow::Result<Options>, tests: &[Test]) -> ExitCode {
    let selection = Selection::from_arguments();
    let tests: Vec<&Test> = tests.iter().filter(|(name, _)| selection.has(name)).collect();
    if selection.list {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if tests.is_empty() {
        return ExitCode::SUCCESS;
    }
    let names: Vec<&str> = tests.iter().map(|(name, _)| *name).collect();
    if requirements::skips(&names.join(", ")) {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let begun = Instant::now();
    let ended = prepare().and_then(|options| runtime.block_on(run_on_cluster(options, &tests)));
    let seconds = begun.elapsed().as_secs();
    match ended {
        Ok(failed) if failed.is_empty() => {
            println!("{title}: all {} ok in {seconds} s", tests.len());
            ExitCode::SUCCESS
        }
        Ok(failed) => {
            println!("{title}: {} of {} FAILED in {seconds} s: {}", failed.len(), tests.len(), failed.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{title}: FAILED in {seconds} s: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_on_cluster(options: Options, tests: &[&Test]) -> anyhow::Result<Vec<&'static str>> {
    let begun = Instant::now();
    let cluster = Cluster::start(options).await?;
    println!("cluster: ready in {:.1} s ({} ms of it inside)", begun.elapsed().as_secs_f64(), cluster.facts().took_ms);
    let mut failed = Vec::new();
    for (name, test) in tests {
        let begun = Instant::now();
        let passed = run_one(&cluster, name, *test).await?;
        println!("test {name} ... {} ({:.1} s)", if passed { "ok" } else { "FAILED" }, begun.elapsed().as_secs_f64());
        if !passed {
            failed.push(*name);
        }
    }
    let begun = Instant::now();
    tokio::task::spawn_blocking(|| cluster.end()).await??;
    println!("cluster: gone in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(failed)
}

async fn run_one(
    cluster: &Cluster,
    name: &str,
    test: for<'a> fn(&'a Case<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
) -> anyhow::Result<bool> {
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    let namespace = Namespace {
        metadata: ObjectMeta { name: Some(name.replace('_', "-")), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let namespace = namespaces.create(&PostParams::default(), &namespace).await?.metadata.name.unwrap_or_default();
    let case = Case::new(cluster, &namespace);
    case.wait_for_service_account().await;
    let ended = tokio::time::timeout(LIMIT, AssertUnwindSafe(test(&case)).catch_unwind()).await;
    if ended.is_err() {
        eprintln!("test {name} takes longer than {LIMIT:?}");
    }
    let passed = matches!(ended, Ok(Ok(())));
    if !passed {
        cluster.diagnose(&namespace).await;
        if namespaces.get_opt(mesh::SYSTEM).await?.is_some() {
            cluster.diagnose(mesh::SYSTEM).await;
        }
    }
    // Its pods go while the next test runs.
    namespaces.delete(&namespace, &Default::default()).await?;
    Ok(passed)
}
