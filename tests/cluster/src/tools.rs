//! Programs of other people, which `tools/go-tools` builds once, and the files of their modules.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

const GO_TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/go-tools");

/// Builds what is missing of a set, as `tools/go-tools` calls it, and says where it lies.
///
/// # Errors
/// When it can not be built; what went wrong is on standard error.
pub fn built(set: &str) -> Result<PathBuf> {
    let mut command = Command::new(GO_TOOLS);
    let output = command.arg(set).stdin(Stdio::null()).stderr(Stdio::inherit()).output().context(GO_TOOLS)?;
    ensure!(output.status.success(), "tools/go-tools {set} failed");
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// The folder of a Go module's files, of the version that the go.mod in `folder` has.
///
/// # Errors
/// When the module can not be had.
pub fn module(folder: &Path, module: &str) -> Result<PathBuf> {
    let go = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new("go");
        let output = command.args(arguments).current_dir(folder).env("GOWORK", "off").output().context("go")?;
        ensure!(output.status.success(), "go {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    go(&["mod", "download", module])?;
    Ok(go(&["list", "-m", "-f", "{{.Dir}}", module])?.into())
}
