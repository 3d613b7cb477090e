//! Weir on a cluster of the tests: its images, and its chart as a user installs it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cluster::Cluster, options::Options};

/// The chart's folder.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/weir");
/// The namespace that it is installed in.
pub const SYSTEM: &str = "weir-system";
/// The release's name.
pub const RELEASE: &str = "weir";

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/images");
const TAG: &str = "test";
/// How long an installation may take on a busy machine.
const PATIENCE: &str = "150s";

/// A cluster whose nodes have Weir's images, built as `make images` does, without the optimisation that takes minutes.
///
/// # Errors
/// When something does not build; what it said is on standard error.
pub fn options() -> Result<Options> {
    // With the other results of the build: target/PROFILE/deps/TEST is this program.
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).context("a program in no folder")?.join("weir-images");
    let mut command = Command::new(IMAGES);
    command.args(["--profile", "dev", "--tag", TAG, "--out"]).arg(&folder);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context(IMAGES)?;
    ensure!(output.status.success(), "tools/images failed");
    let images = ["webhook", "control-plane", "proxy", "cni"].map(|image| folder.join(format!("weir-{image}.tar")));
    Ok(Options { images: images.into(), ..Options::default() })
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
