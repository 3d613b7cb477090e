//! Prometheus' annotations of a pod, pointed at the proxy.
//!
//! A Prometheus outside the mesh would be refused at the application's port where plaintext is. The proxy answers it on a port that
//! is not captured, with its own metrics and then the application's, which it asks for itself.

use serde_json::Value;
use weir_mesh::{bootstrap::env, ports};

use crate::{
    edit::Editor,
    refusal::Refusal,
    user::{UserPod, printable},
};

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";
/// Where Prometheus looks if it is not told.
const DEFAULT_PATH: &str = "/metrics";
/// Where the proxy answers.
const MERGED_PATH: &str = "/stats/prometheus";
const LONGEST_PATH: usize = 1024;

/// The application's own metrics, `PORT/PATH`, for the proxy to merge with its own; Prometheus is sent to the proxy. `proxy` is the
/// container of an earlier injection, which holds what the annotations said before.
pub(crate) fn rewrite(
    user: &UserPod<'_>,
    editor: &mut Editor,
    proxy: Option<&Value>,
    excluded_ports: &[u16],
    warnings: &mut Vec<String>,
) -> Result<Option<String>, Refusal> {
    if user.annotation(SCRAPE) != Some("true") {
        return Ok(None);
    }
    let mut not_merged = |why: String| warnings.push(format!("the application's metrics are not merged: {why}"));
    let path = user.annotation(PATH).unwrap_or(DEFAULT_PATH);
    let Some(text) = user.annotation(PORT) else {
        not_merged(format!("{PORT} does not say where they are"));
        return Ok(None);
    };
    let Some(port) = text.parse::<u16>().ok().filter(|port| *port > 0) else {
        not_merged(format!("{PORT} {:?} is no port", printable(text)));
        return Ok(None);
    };
    if (port, path) == (ports::MERGED, MERGED_PATH) {
        return Ok(proxy.and_then(known));
    }
    if ports::RESERVED.contains(&port) {
        return Ok(None); // the proxy's own metrics are all that is asked for
    }
    if let Some(scheme) = user.annotation(SCHEME).filter(|scheme| !scheme.eq_ignore_ascii_case("http")) {
        not_merged(format!("{SCHEME} {:?} is not http; see weir.dev/exclude-inbound-ports", printable(scheme)));
        return Ok(None);
    }
    if !is_path(path) {
        not_merged(format!("{PATH} {:?} is no path", printable(path)));
        return Ok(None);
    }
    if !excluded_ports.contains(&port) {
        for (name, value) in [(PORT, ports::MERGED.to_string()), (PATH, MERGED_PATH.to_owned())] {
            editor.set(&["metadata", "annotations", name], value.into())?;
        }
    }
    Ok(Some(format!("{port}{path}")))
}

/// What an earlier injection recorded. It is judged like what a user writes.
fn known(proxy: &Value) -> Option<String> {
    let list = proxy.get("env").and_then(Value::as_array)?;
    let entry = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(env::APP_METRICS))?;
    let target = entry.get("value").and_then(Value::as_str)?;
    let (port, path) = target.split_at_checked(target.find('/')?)?;
    let fits = port.parse::<u16>().is_ok_and(|port| port > 0 && !ports::RESERVED.contains(&port)) && is_path(path);
    fits.then(|| target.to_owned())
}

/// Also free of what the kubelet would expand.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= LONGEST_PATH
        && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'$' | b'"' | b'\\'))
}
