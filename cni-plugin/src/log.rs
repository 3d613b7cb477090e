//! Lines for the node's log: JSON on standard error, which container runtimes keep in theirs.

use std::{io::Write, path::Path};

use serde::Serialize;
use weir_init::Applied;

#[derive(Serialize)]
struct InForce<'a> {
    level: &'static str,
    msg: &'static str,
    pod: &'a str,
    netns: &'a Path,
    rules: usize,
    elapsed_us: u128,
}

/// A pod's redirect is in force.
pub(crate) fn in_force(to: &mut dyn Write, pod: &str, netns: &Path, applied: Applied) {
    line(
        to,
        &InForce {
            level: "info",
            msg: "redirect in force",
            pod,
            netns,
            rules: applied.rules,
            elapsed_us: applied.elapsed.as_micros(),
        },
    );
}

#[derive(Serialize)]
struct Warning<'a> {
    level: &'static str,
    msg: &'a str,
}

/// Something that a person should change.
pub(crate) fn warning(to: &mut dyn Write, message: &str) {
    line(to, &Warning { level: "warn", msg: message });
}

/// Something that the node agent did or found; what does not apply is left out.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) level: &'static str,
    pub(crate) msg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) primary: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rules: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) elapsed_us: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'a str>,
}

impl<'a> Event<'a> {
    pub(crate) fn info(msg: &'a str) -> Self {
        Self { level: "info", msg, ..Self::default() }
    }

    pub(crate) fn warn(msg: &'a str) -> Self {
        Self { level: "warn", msg, ..Self::default() }
    }

    pub(crate) fn error(msg: &'a str) -> Self {
        Self { level: "error", msg, ..Self::default() }
    }

    pub(crate) fn say(&self) {
        line(&mut std::io::stderr(), self);
    }
}

/// One write, so that lines of plugins that run at the same time do not mix. A log that can not be written must not stop a pod.
fn line(to: &mut dyn Write, value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        let _ = to.write_all(format!("{text}\n").as_bytes());
    }
}
