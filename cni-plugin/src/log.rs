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

/// One write, so that lines of plugins that run at the same time do not mix. A log that can not be written must not stop a pod.
fn line(to: &mut dyn Write, value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        let _ = to.write_all(format!("{text}\n").as_bytes());
    }
}
