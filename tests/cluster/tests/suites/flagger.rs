//! Flagger itself, with Prometheus itself, by the files of `examples/rollout`: it promotes a good version and turns a bad one back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weir_cluster::{Case, Suite, cases, mesh, tools};

use crate::callers::{self, RATE, asked, share};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/rollout");
/// The go.mod with the version of Flagger.
const FLAGGER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rollouts/flagger");
/// How long a phase of a roll-out may take: some looks, of which Flagger makes one in 10 s at most.
const PATIENCE: Duration = Duration::from_secs(150);
/// Ports on the first node.
const PROMETHEUS: u16 = 9090;
const FLAGGERS_OWN: u16 = 8090;

/// A program on the first node. What enters the node ends with this, the program itself with the cluster, whose process namespace it is in.
struct Runs {
    child: Child,
    log: PathBuf,
}

impl Runs {
    fn start(case: &Case<'_>, program: &Path, arguments: &[String]) -> Self {
        let name = program.file_name().unwrap().to_str().unwrap();
        let log = case.cluster.layout().logs().join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let mut command = case.cluster.node(1).command(program.to_str().unwrap());
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }

    /// The last lines that it said.
    fn said(&self) -> String {
        let all = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example's scrape configuration, for a Prometheus that is no pod, and with looks as frequent as a test has time for.
fn prometheus(case: &Case<'_>, tools: &Path) -> Runs {
    let folder = case.cluster.layout().root().join("prometheus");
    fs::create_dir(&folder).unwrap();
    let kubeconfig = case.cluster.kubeconfig_inside();
    let role = format!("- role: pod\n        kubeconfig_file: {}", kubeconfig.display());
    let example = fs::read_to_string(format!("{EXAMPLE}/prometheus.yaml")).unwrap();
    let config = folder.join("prometheus.yaml");
    let global = "global: {scrape_interval: 2s, scrape_timeout: 2s}\n";
    fs::write(&config, format!("{global}{}", example.replace("- role: pod", &role))).unwrap();
    let arguments = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", folder.join("data").display()),
        format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"),
    ];
    Runs::start(case, &tools.join("prometheus"), &arguments)
}

fn flagger(case: &Case<'_>, tools: &Path) -> Runs {
    let arguments = [
        format!("-kubeconfig={}", case.cluster.kubeconfig_inside().display()),
        format!("-metrics-server=http://127.0.0.1:{PROMETHEUS}"),
        format!("-port={FLAGGERS_OWN}"),
        format!("-namespace={}", case.namespace),
        "-mesh-provider=gatewayapi:v1".to_owned(),
        "-control-loop-interval=2s".to_owned(),
        "-log-level=info".to_owned(),
    ];
    Runs::start(case, &tools.join("flagger"), &arguments)
}

/// The arguments of a version, which answers so many percent with 500.
fn version(name: &str, fail: u32) -> String {
    json!(["serve", "--listen=[::]:80", format!("--version={name}"), format!("--fail={fail}")]).to_string()
}

fn release(case: &Case<'_>, name: &str, fail: u32) {
    let patch = format!(
        r#"[{{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": {}}}]"#,
        version(name, fail)
    );
    case.kubectl(&["patch", "deployment", "catalog", "--type=json", "--patch", &patch]);
}

fn status(case: &Case<'_>) -> Value {
    let said = case.kubectl(&["get", "canary", "catalog", "--output=json"]);
    serde_json::from_str::<Value>(&said).unwrap()["status"].clone()
}

/// Weights of the version that all have, and of the new one.
fn weights(case: &Case<'_>) -> (u64, u64) {
    let said = case.kubectl(&["get", "httproute", "catalog", "--output=json"]);
    let route: Value = serde_json::from_str(&said).unwrap();
    let of = |at: usize| route["spec"]["rules"][0]["backendRefs"][at]["weight"].as_u64().unwrap();
    (of(0), of(1))
}

/// Waits for a phase, and says which weights the new version had until then.
async fn until(case: &Case<'_>, flagger: &Runs, phase: &str) -> Vec<u64> {
    let end = Instant::now() + PATIENCE;
    let mut steps = Vec::new();
    loop {
        let status = status(case);
        if let Some(weight) = status["canaryWeight"].as_u64().filter(|weight| steps.last() != Some(weight)) {
            steps.push(weight);
        }
        if status["phase"] == phase {
            return steps;
        }
        assert!(Instant::now() < end, "not {phase}: {status:#}\n{}", flagger.said());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn flagger_promotes_a_good_version_and_turns_a_bad_one_back(case: &Case<'_>) {
    let tools = tools::built("rollouts").unwrap();
    mesh::gateway_api(case.cluster).unwrap();
    mesh::joined(case).await;
    let kinds =
        tools::module(Path::new(FLAGGER), "github.com/fluxcd/flagger").unwrap().join("artifacts/flagger/crd.yaml");
    case.cluster.kubectl(&["apply", "--server-side", "--filename", kinds.to_str().unwrap()]).unwrap();
    case.cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]).unwrap();
    let _prometheus = prometheus(case, &tools);
    let example = fs::read_to_string(format!("{EXAMPLE}/flagger.yaml")).unwrap();
    for text in ["image: nginx:1.28", "http://prometheus.monitoring:9090", "interval: 1m"] {
        assert!(example.contains(text), "{text}");
    }
    let app = format!("image: weir.test/app:1\n          args: {}", version("one", 0));
    let address = format!("http://127.0.0.1:{PROMETHEUS}");
    case.apply(
        &example
            .replace("image: nginx:1.28", &app)
            .replace("http://prometheus.monitoring:9090", &address)
            .replace("interval: 1m", "interval: 10s"),
    );
    let flagger = flagger(case, &tools);
    until(case, &flagger, "Initialized").await;
    callers::start(case).await;
    asked(case, "/reset");

    release(case, "two", 0);
    until(case, &flagger, "Progressing").await;
    let steps = until(case, &flagger, "Succeeded").await;
    println!("  shares of the good version: {steps:?}");
    assert!(steps.windows(3).any(|three| three == [5, 25, 50]), "{steps:?}\n{}", flagger.said());
    assert_eq!((weights(case), share(case, 100, "two")), ((100, 0), 100));
    let (sent, _, failed) = asked(case, "/reset");
    println!("  {sent} requests meanwhile, {failed} failed");
    assert!(sent > 40 * u64::from(RATE) && failed == 0, "{failed} of {sent} failed");

    release(case, "three", 60);
    until(case, &flagger, "Progressing").await;
    let steps = until(case, &flagger, "Failed").await;
    println!("  shares of the bad version: {steps:?}");
    assert!(steps.contains(&5) && !steps.contains(&25), "at its first step: {steps:?}\n{}", flagger.said());
    assert_eq!((weights(case), share(case, 100, "two")), ((100, 0), 100));
    callers::saw_little_of_it(case).await;
}

pub(crate) const SUITE: Suite = Suite {
    name: "flagger",
    title: "Roll-outs by Flagger",
    // Building them takes minutes, once, and is no part of the test's time.
    prepare: || tools::built("rollouts").and_then(|_| mesh::options()),
    limit: Duration::from_secs(420),
    alone: false,
    tests: cases![flagger_promotes_a_good_version_and_turns_a_bad_one_back],
};
