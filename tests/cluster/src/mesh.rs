//! Weir on a cluster of the tests: its images, and its chart as a user installs it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use crate::{case::Case, cluster::Cluster, options::Options, tools::module};

/// The chart's folder.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/weir");
/// The namespace that it is installed in.
pub const SYSTEM: &str = "weir-system";
/// The release's name.
pub const RELEASE: &str = "weir";

const GATEWAY_API: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gateway-api");
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/images");
const TAG: &str = "test";
/// How long an installation may take on a busy machine.
const PATIENCE: &str = "150s";

/// Set where the images are built already: the folder that they lie in.
pub(crate) const IMAGES_FOLDER: &str = "WEIR_CLUSTER_IMAGES";

/// A cluster whose nodes have Weir's images.
///
/// # Errors
/// When something does not build; what it said is on standard error.
pub fn options() -> Result<Options> {
    let folder = match std::env::var_os(IMAGES_FOLDER) {
        Some(folder) => folder.into(),
        None => images()?,
    };
    let images =
        ["webhook", "control-plane", "proxy", "cni", "init"].map(|image| folder.join(format!("weir-{image}.tar")));
    Ok(Options { images: images.into(), ..Options::default() })
}

/// Builds Weir's images as `make images` does, without the optimisation that takes minutes; the folder that they lie in.
pub(crate) fn images() -> Result<PathBuf> {
    // With the other results of the build: target/PROFILE/deps/TEST is this program.
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).context("a program in no folder")?.join("weir-images");
    let mut command = Command::new(IMAGES);
    command.args(["--profile", "dev", "--tag", TAG, "--out"]).arg(&folder);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context(IMAGES)?;
    ensure!(output.status.success(), "tools/images failed");
    Ok(folder)
}

/// What the chart must be told about these clusters; then more of the same form, `name=value`.
pub fn values(more: &[&str]) -> Vec<String> {
    let tag = format!("image.tag={TAG}");
    let given = [&*tag, "meshCidrs={198.18.0.0/15,fd00::/8}"];
    given.iter().chain(more).flat_map(|value| ["--set".to_owned(), (*value).to_owned()]).collect()
}

/// `helm upgrade --install`, as a user would; waits until everything is ready.
///
/// # Errors
/// When Helm says so.
pub fn install(cluster: &Cluster, more: &[&str]) -> Result<String> {
    let values = values(more);
    let mut arguments = vec!["upgrade", "--install", RELEASE, CHART, "--namespace", SYSTEM, "--create-namespace"];
    arguments.extend(["--wait", "--timeout", PATIENCE]);
    arguments.extend(values.iter().map(String::as_str));
    cluster.helm(&arguments)
}

/// `helm uninstall`; returns when its own clean-up has ended.
///
/// # Errors
/// When Helm says so, also where something is left.
pub fn uninstall(cluster: &Cluster) -> Result<String> {
    cluster.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", PATIENCE])
}

/// True for a file that is there on a node.
///
/// # Errors
/// When the node can not be entered.
pub fn on_nodes(cluster: &Cluster, file: &Path) -> Result<Vec<bool>> {
    let script = format!("test -e '{}' && echo there || echo gone", file.display());
    cluster.nodes().map(|node| Ok(node.shell(&script)?.trim() == "there")).collect()
}

/// True where a release is installed.
pub fn is_installed(cluster: &Cluster) -> bool {
    cluster.helm(&["status", RELEASE, "--namespace", SYSTEM]).is_ok()
}

/// Weir with the chart's own values, unless some Weir is there already.
///
/// # Panics
/// When the installation fails; the state of Weir's pods is printed before.
pub async fn installed(case: &Case<'_>) {
    if is_installed(case.cluster) {
        return;
    }
    let begun = Instant::now();
    if let Err(error) = install(case.cluster, &[]) {
        case.cluster.diagnose(SYSTEM).await;
        panic!("{error:#}");
    }
    println!("  installed in {:.1} s", begun.elapsed().as_secs_f64());
}

/// Weir is installed, and new pods of the test's namespace are in the mesh.
///
/// # Panics
/// When that fails.
pub async fn joined(case: &Case<'_>) {
    installed(case).await;
    join(case);
}

/// New pods of the test's namespace are in the mesh, whoever installed it.
///
/// # Panics
/// When the label is refused.
pub fn join(case: &Case<'_>) {
    case.cluster
        .kubectl(&["label", "namespace", case.namespace, "weir.dev/inject=enabled", "--overwrite"])
        .unwrap_or_else(|error| panic!("{error:#}"));
}

/// Pods of the test's namespace refuse plaintext. In force on a pod when its proxy has heard of it, soon after.
///
/// # Panics
/// When it is not taken.
pub fn strict(case: &Case<'_>) {
    case.apply(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default}, spec: {mtls: {mode: STRICT}}}",
    );
}

/// Gives the cluster Gateway API's kinds, from its own Go module.
///
/// # Errors
/// When the module can not be had, or the API server does not take them.
pub fn gateway_api(cluster: &Cluster) -> Result<()> {
    kinds(cluster, "--filename", "standard")
}

/// The same with the fields that are experimental yet: sessions among them.
///
/// # Errors
/// As above, and where the cluster has the others already.
pub fn experimental_gateway_api(cluster: &Cluster) -> Result<()> {
    kinds(cluster, "--kustomize", "experimental")
}

fn kinds(cluster: &Cluster, by: &str, channel: &str) -> Result<()> {
    let kinds = module(Path::new(GATEWAY_API), "sigs.k8s.io/gateway-api")?.join("config/crd").join(channel);
    let kinds = kinds.to_str().context("a path that is no text")?;
    cluster.kubectl(&["apply", "--server-side", by, kinds])?;
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"])?;
    Ok(())
}
