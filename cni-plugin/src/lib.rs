//! The CNI plugin: puts a mesh pod's redirect in force when the container runtime makes the pod's network.
//!
//! It runs last in the chain, calls no API, starts no program and keeps no state of a pod: what a pod needs stands in its
//! annotations, which the runtime hands over (capability `io.kubernetes.cri.pod-annotations`), and what it makes lives and
//! dies with the pod's network namespace.
//!
//! A pod that has our annotation and can not be programmed fails to start. All other pods are never touched.
//!
//! [`node`] is the agent that puts the plugin on a node, keeps it there, and repairs pods that started without it.

mod commands;
mod config;
mod error;
mod log;
pub mod node;
mod once;

use std::{
    env,
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
};

pub use config::{Config, MAX_STDIN, VERSIONS};
pub use error::{CniError, Code};

/// What the runtime says by environment variables (CNI specification, section 2).
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: Option<String>,
    /// `CNI_CONTAINERID`
    pub container: Option<String>,
    /// `CNI_NETNS`
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`
    pub interface: Option<String>,
    /// `CNI_ARGS`: `KEY=VALUE;…`
    pub arguments: Option<String>,
}

impl Environment {
    /// Reads the variables of this process.
    pub fn of_process() -> Self {
        let text = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            command: text("CNI_COMMAND"),
            container: text("CNI_CONTAINERID"),
            netns: env::var_os("CNI_NETNS").filter(|value| !value.is_empty()).map(PathBuf::from),
            interface: text("CNI_IFNAME"),
            arguments: text("CNI_ARGS"),
        }
    }

    /// `NAMESPACE/NAME` of the pod, as far as the runtime says it.
    pub(crate) fn pod(&self) -> String {
        let argument = |name: &str| {
            let all = self.arguments.as_deref().unwrap_or_default();
            all.split(';').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => self.container.clone().unwrap_or_default(),
        }
    }
}

/// Carries out one command. The answer, or the error as the specification words it, goes to `stdout`; lines for the node's
/// log go to `stderr`.
pub fn run(environment: &Environment, stdin: impl Read, stdout: &mut dyn Write, stderr: &mut dyn Write) -> ExitCode {
    let mut version = config::NEWEST.to_owned();
    let answer = config::read(stdin)
        .and_then(|bytes| commands::run(environment, &bytes, &mut version, stderr))
        .unwrap_or_else(|error| Answer { failed: true, text: Some(error.to_json(&version)) });
    let written = match &answer.text {
        Some(text) => writeln!(stdout, "{text}").and_then(|()| stdout.flush()),
        None => Ok(()),
    };
    if answer.failed || written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What goes to standard output, and whether that is an error.
struct Answer {
    failed: bool,
    text: Option<String>,
}
