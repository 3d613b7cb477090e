//! Gateway API's conformance suite for meshes, on a cluster with Weir as its chart installs it.
//!
//! Nothing that judges is ours: the suite's own test program, and the echo that its manifests name (Istio's), are built from their Go
//! modules by `tools/go-tools conformance`. Ours is what stands around them: the cluster, the echo's image, the list of features, and
//! the account of every mesh test, also of those that the suite's report does not count.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{CertificateParams, KeyPair};

use crate::{cluster::Cluster, images::Image, mesh, tools};

/// The module whose go.mod has the suite's version.
const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/go/suite");
const SUITE_MODULE: &str = "sigs.k8s.io/gateway-api/conformance";

const PROFILES: &str = "MESH-HTTP,MESH-GRPC";
/// All that exist for meshes (`pkg/features/mesh.go`), and those of Gateways that mesh tests ask for: without them the suite leaves out
/// MeshFrontend, MeshFrontendHostname, MeshPorts and the redirects by 303, 307 and 308.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];
/// The suite's own limits end a test that hangs; this one ends a suite that does.
const LIMIT: &str = "-test.timeout=40m";

/// What is to be run.
#[derive(Debug)]
pub struct Wish {
    /// One test of the suite; nothing is recorded then.
    pub only: Option<String>,
    /// The cluster stays, with the pods of the suite, until `weir-cluster down`.
    pub keep: bool,
    /// What the suite said, every line of it.
    pub log: PathBuf,
    /// Where the record of a whole run goes.
    pub record: PathBuf,
}

/// What became of a test: the suite's word for it, and how many of its cases passed.
#[derive(Debug, Default)]
struct Outcome {
    word: String,
    passed: usize,
    cases: usize,
}

/// Runs the suite, and says whether every mesh test of it passed.
///
/// # Errors
/// When it can not be run.
pub async fn run(wish: &Wish) -> Result<bool> {
    let tools = tools::built("conformance")?;
    let module = suite()?;
    let wanted = match &wish.only {
        Some(name) => vec![name.clone()],
        None => mesh_tests(&module)?,
    };
    let mut options = mesh::options()?;
    options.images.push(echo(&tools, &module)?);
    let cluster = Cluster::start(options).await?;
    let judged = judge(&cluster, &tools, wish, &wanted);
    let passed = matches!(&judged, Ok(passed) if *passed);
    if !passed {
        cluster.diagnose(mesh::SYSTEM).await;
    }
    if wish.keep {
        println!("the cluster stays: export KUBECONFIG={}; make cluster-down ends it", cluster.kubeconfig().display());
        cluster.stay()?;
    } else {
        tokio::task::spawn_blocking(|| cluster.end()).await??;
    }
    judged
}

fn judge(cluster: &Cluster, tools: &Path, wish: &Wish, wanted: &[String]) -> Result<bool> {
    mesh::gateway_api(cluster)?;
    mesh::install(cluster, &[])?;
    let report = wish.log.with_extension("yaml");
    let outcomes = outcomes(cluster, tools, wish, &report)?;
    let (mut passed, mut lines) = (0, String::new());
    for name in wanted {
        passed += usize::from(outcomes.get(name).is_some_and(|outcome| outcome.word == "PASS"));
        let said = outcomes.get(name).map(|Outcome { word, passed, cases }| format!("{word} | {passed} of {cases}"));
        lines.push_str(&format!("| {name} | {} |\n", said.as_deref().unwrap_or("not run | ")));
    }
    println!("{passed} of {} mesh tests passed; what the suite said: {}", wanted.len(), wish.log.display());
    if wish.only.is_none() {
        let head = "| test | result | cases passed |\n| --- | --- | --- |\n";
        fs::create_dir_all(&wish.record)?;
        fs::write(wish.record.join("tests.md"), format!("# Every mesh test of the suite\n\n{head}{lines}"))?;
        let said = fs::read_to_string(&report).context("the suite wrote no report")?;
        fs::write(wish.record.join("report.yaml"), said)?;
    }
    Ok(passed == wanted.len())
}

/// The suite itself; what it said of each of its tests.
fn outcomes(cluster: &Cluster, tools: &Path, wish: &Wish, report: &Path) -> Result<BTreeMap<String, Outcome>> {
    let mut command = Command::new(tools.join("conformance.test"));
    command.env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null()).stdout(Stdio::piped());
    command.args(["-test.v", "-test.run=^TestConformance$", LIMIT]);
    command.arg(format!("--conformance-profiles={PROFILES}"));
    command.arg(format!("--supported-features={}", FEATURES.join(",")));
    command.arg("--namespace-labels=weir.dev/inject=enabled");
    command.arg(format!("--report-output={}", report.display()));
    command.args(["--organization=weir", "--project=weir", "--url=https://weir.dev", "--contact=https://weir.dev"]);
    command.arg(concat!("--version=v", env!("CARGO_PKG_VERSION")));
    command.args(wish.only.iter().map(|name| format!("--run-test={name}")));
    command.args(wish.keep.then_some("--cleanup-base-resources=false"));
    if let Some(folder) = wish.log.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut log = File::create(&wish.log).with_context(|| wish.log.display().to_string())?;
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let mut outcomes: BTreeMap<String, Outcome> = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().context("the suite has no output")?).lines() {
        let line = line?;
        writeln!(log, "{line}")?;
        let Some((word, test, case)) = verdict(&line) else { continue };
        let outcome = outcomes.entry(test.to_owned()).or_default();
        if case.is_some() {
            outcome.cases += 1;
            outcome.passed += usize::from(word == "PASS");
        } else {
            word.clone_into(&mut outcome.word);
            if word != "SKIP" {
                println!("{word} {test}");
            }
        }
    }
    // It fails with any of its tests, which are known by now.
    let status = child.wait()?;
    ensure!(!outcomes.is_empty(), "the suite ended with {status} before its first test: see {}", wish.log.display());
    Ok(outcomes)
}

/// `--- PASS: TestConformance/TEST/CASE (1.23s)`, or the same without a case: the word, the test and the case.
fn verdict(line: &str) -> Option<(&str, &str, Option<&str>)> {
    let (word, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": TestConformance/")?;
    let (name, _) = rest.rsplit_once(" (")?;
    let (test, case) = name.split_once('/').map_or((name, None), |(test, case)| (test, Some(case)));
    Some((word, test, case))
}

/// The folder of the suite's source and manifests.
///
/// # Errors
/// When the module can not be had.
pub fn suite() -> Result<PathBuf> {
    tools::module(Path::new(SUITE), SUITE_MODULE)
}

/// The names of all tests for meshes that the suite has.
fn mesh_tests(module: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(module.join("tests/mesh"))? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "go") {
            let text = fs::read_to_string(&file)?;
            let named = text.lines().filter_map(|line| line.trim().strip_prefix("ShortName:"));
            names.extend(named.map(|name| name.trim().trim_end_matches(',').trim_matches('"').to_owned()));
        }
    }
    names.sort();
    ensure!(!names.is_empty(), "the suite in {} has no mesh tests", module.display());
    Ok(names)
}

/// The image that the suite's manifests name, from the same program.
fn echo(tools: &Path, module: &Path) -> Result<PathBuf> {
    let kept = tools.join("echo.tar");
    if kept.exists() {
        return Ok(kept);
    }
    let manifests = fs::read_to_string(module.join("mesh/manifests.yaml"))?;
    let mut names = manifests.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    let Some(name) = names.next() else { bail!("the suite's manifests name no image") };
    ensure!(names.all(|other| other == name), "the suite's manifests name several images");
    // The port with HTTPS; nobody looks at whose certificate it is.
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["echo".to_owned()])?.self_signed(&key)?;
    let (cert_file, key_file) = (tools.join("echo.crt"), tools.join("echo.key"));
    fs::write(&cert_file, certificate.pem())?;
    fs::write(&key_file, key.serialize_pem())?;
    let image = Image {
        name,
        files: vec![
            (tools.join("server"), "server"),
            (tools.join("client"), "client"),
            (cert_file, "cert.crt"),
            (key_file, "cert.key"),
        ],
        dockerfile: "FROM scratch\nCOPY server client /usr/local/bin/\nCOPY cert.crt cert.key /\n\
                     ENV PATH=/usr/local/bin\nUSER 1338:1338\nENTRYPOINT [\"server\"]\n",
    };
    image.build(&kept)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_of_tests_and_of_their_cases_are_told_apart() {
        assert_eq!(verdict("    --- PASS: TestConformance/MeshBasic (3.10s)"), Some(("PASS", "MeshBasic", None)));
        let case = "0_request_to_'echo/v1'_should_go_to_echo-v1";
        let line = format!("        --- FAIL: TestConformance/MeshTrafficSplit/{case} (3.10s)");
        assert_eq!(verdict(&line), Some(("FAIL", "MeshTrafficSplit", Some(case))));
        assert_eq!(verdict("--- FAIL: TestConformance (60.00s)"), None);
        assert_eq!(verdict("=== RUN   TestConformance/MeshBasic"), None);
    }
}
