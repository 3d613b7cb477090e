//! Why pods did not become ready.

use weir_mesh::names::{PROXY_CONTAINER, SYSTEM_NAMESPACE};

use super::Up;
use crate::{client::Client, pod::state::ContainerState, runtime::logs::tail, supervisor::protocol::Status};

/// Asks a proxy once whether it is ready, by the program that its `postStart` hook runs.
const PROXY_WAIT: [&str; 4] = ["/weir-proxy", "wait", "--timeout", "0"];

/// Why a running proxy is not ready, in its own words.
fn proxy_says(client: &Client, pod: &str) -> Option<String> {
    let output = client.run_in(pod, Some(PROXY_CONTAINER), &PROXY_WAIT).ok()?;
    let said = output.stderr.trim();
    (output.code != 0 && !said.is_empty()).then(|| said.to_owned())
}

/// Says which pods are not ready, why, and what their containers said last.
pub(super) fn report(up: &Up, client: &Client, status: &Status, what: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mut waiting: Vec<_> = status.pods.iter().filter(|(_, pod)| !pod.status.ready).collect();
    // The mesh's own pods first: where they are not ready, the others wait for them.
    let system = format!("{SYSTEM_NAMESPACE}/");
    waiting.sort_by_key(|(name, _)| !name.starts_with(&system));
    // Writing into a String does not fail.
    for (name, pod) in waiting {
        let _ = write!(out, "{}pod {name} {what}", if out.is_empty() { "" } else { "\n" });
        if let Some(message) = &pod.status.message {
            let _ = write!(out, ": {message}");
        }
        for container in &pod.status.containers {
            let state = match &container.state {
                ContainerState::Waiting(reason) => reason.clone(),
                ContainerState::Running if container.ready => continue,
                ContainerState::Running => "running, not ready".into(),
                ContainerState::Ended(0) => continue,
                ContainerState::Ended(code) => format!("ended with exit code {code}"),
            };
            let _ = write!(out, "\n  container {}: {state}", container.name);
            if container.name == PROXY_CONTAINER
                && container.state == ContainerState::Running
                && let Some(reason) = proxy_says(client, name)
            {
                let _ = write!(out, "\n    {reason}");
            }
            let (namespace, pod_name) = name.split_once('/').unwrap_or_default();
            let log = tail(&up.layout.log(namespace, pod_name, &container.name), 8);
            for line in log.lines() {
                let _ = write!(out, "\n    | {line}");
            }
        }
    }
    let warnings: Vec<_> = status.events.iter().filter(|event| event.warning).collect();
    for event in warnings.iter().skip(warnings.len().saturating_sub(8)) {
        let _ = write!(out, "\n  event: {}: {}: {}", event.object, event.reason, event.message);
    }
    if out.is_empty() { what.to_owned() } else { out }
}
