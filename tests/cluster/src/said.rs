//! What kubectl says besides its output: warnings and refusals, which a test wants to read.

use std::{fs, process::Stdio};

use crate::case::Case;

/// How a command of kubectl ended.
#[derive(Debug)]
pub struct Said {
    /// It succeeded.
    pub ok: bool,
    /// Its output, and what it said on standard error.
    pub text: String,
}

/// Runs kubectl in the test's namespace.
///
/// # Panics
/// When it can not be run.
pub fn kubectl(case: &Case<'_>, arguments: &[&str]) -> Said {
    let mut command = case.cluster.tool("kubectl");
    command.args(["--namespace", case.namespace]).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    Said { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// `kubectl create` of these manifests, with more arguments.
///
/// # Panics
/// When it can not be run.
pub fn create(case: &Case<'_>, manifests: &str, more: &[&str]) -> Said {
    let file = case.cluster.layout().root().join(format!("{}.yaml", case.namespace));
    let written = fs::write(&file, manifests);
    let file = match (written, file.to_str()) {
        (Ok(()), Some(file)) => file,
        (written, _) => panic!("{}: {written:?}", file.display()),
    };
    kubectl(case, &[&["create", "--filename", file], more].concat())
}
