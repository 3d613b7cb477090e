//! Tests that share one cluster: it takes seconds to start, and must be taken down by the process that started it.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::PostParams, core::ObjectMeta};

use crate::{case::Case, cluster::Cluster, mesh, options::Options};

/// The longest that one test of most suites may take.
pub const LIMIT: Duration = Duration::from_secs(180);

/// A test: its name, and what it does.
pub type Test = (&'static str, for<'a> fn(&'a Case<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>);

/// Tests by the names of their functions: `async fn(&Case<'_>)`.
#[macro_export]
macro_rules! cases {
    ($($name:path),+ $(,)?) => {
        &[$((stringify!($name), |case| ::std::boxed::Box::pin($name(case)))),+]
    };
}

/// The tests of one subject, one after the other on one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// Stands before the names of its tests.
    pub name: &'static str,
    /// What they prove, for people.
    pub title: &'static str,
    /// Builds what it needs, and says what the cluster is to be like.
    pub prepare: fn() -> Result<Options>,
    /// Its tests.
    pub tests: &'static [Test],
    /// The longest that one of them may take.
    pub limit: Duration,
    /// It measures time: nothing else may run meanwhile.
    pub alone: bool,
}

impl Suite {
    /// Starts a cluster, runs these of the tests, prints a line for each and one for all, and takes the cluster down.
    pub(crate) fn run(&self, tests: &[Test]) -> ExitCode {
        let begun = Instant::now();
        let ended = (self.prepare)().and_then(|options| {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(run_on_cluster(options, tests, self.limit))
        });
        let (title, seconds) = (self.title, begun.elapsed().as_secs());
        match ended {
            Ok(failed) if failed.is_empty() => {
                println!("{title}: all {} ok in {seconds} s", tests.len());
                return ExitCode::SUCCESS;
            }
            Ok(failed) => {
                println!("{title}: {} of {} FAILED in {seconds} s: {}", failed.len(), tests.len(), failed.join(", "));
            }
            Err(error) => println!("{title}: FAILED in {seconds} s: {error:#}"),
        }
        ExitCode::FAILURE
    }
}

async fn run_on_cluster(options: Options, tests: &[Test], limit: Duration) -> Result<Vec<&'static str>> {
    let begun = Instant::now();
    let cluster = Cluster::start(options).await?;
    println!("cluster: ready in {:.1} s ({} ms of it inside)", begun.elapsed().as_secs_f64(), cluster.facts().took_ms);
    let mut failed = Vec::new();
    for test in tests {
        let begun = Instant::now();
        let passed = run_one(&cluster, test, limit).await?;
        println!(
            "test {} ... {} ({:.1} s)",
            test.0,
            if passed { "ok" } else { "FAILED" },
            begun.elapsed().as_secs_f64()
        );
        if !passed {
            failed.push(test.0);
        }
    }
    let begun = Instant::now();
    tokio::task::spawn_blocking(|| cluster.end()).await??;
    println!("cluster: gone in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(failed)
}

async fn run_one(cluster: &Cluster, (name, test): &Test, limit: Duration) -> Result<bool> {
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    let namespace = Namespace {
        metadata: ObjectMeta { name: Some(name.replace('_', "-")), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let namespace = namespaces.create(&PostParams::default(), &namespace).await?.metadata.name.unwrap_or_default();
    let case = Case::new(cluster, &namespace);
    case.wait_for_service_account().await;
    let ended = tokio::time::timeout(limit, AssertUnwindSafe(test(&case)).catch_unwind()).await;
    if ended.is_err() {
        eprintln!("test {name} takes longer than {limit:?}");
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
