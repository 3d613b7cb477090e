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

/// Longest text from elsewhere in a line, in bytes: a pod's namespace and name have at most 317.
const MAX_TEXT: usize = 600;

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

    /// Words that came from files of others are cut where no honest ones are as long.
    pub(crate) fn say(&self) {
        let (pod, reason) = (self.pod.map(cut), self.reason.map(cut));
        line(&mut std::io::stderr(), &Self { pod, reason, ..*self });
    }
}

/// The text, or its first part of at most [`MAX_TEXT`] bytes.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// One write, so that lines of plugins that run at the same time do not mix. A log that can not be written must not stop a pod.
fn line(to: &mut dyn Write, value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        let _ = to.write_all(format!("{text}\n").as_bytes());
    }
}
