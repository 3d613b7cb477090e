//! The kubelet's calls to the application (probes and lifecycle hooks), pointed at the proxy.
//!
//! Only what would arrive at a captured port is changed: `httpGet`, `tcpSocket` and `grpc`. `exec` and `sleep` stay, and so
//! does a call to a port that is excluded from capture. What the call was is handed to the proxy as [`AppCalls`].

use serde_json::{Value, json};
use weir_mesh::{
    ports,
    probe::{self, Action, AppCall, AppCalls, Which},
};

use crate::{
    edit::Editor,
    refusal::{Reason, Refusal},
    user::{Container, UserPod, printable},
};

/// Where a container keeps each call, below its own path.
const CALLS: [(Which, &[&str]); 5] = [
    (Which::Liveness, &["livenessProbe"]),
    (Which::Readiness, &["readinessProbe"]),
    (Which::Startup, &["startupProbe"]),
    (Which::PostStart, &["lifecycle", "postStart"]),
    (Which::PreStop, &["lifecycle", "preStop"]),
];
/// The kubelet's default for `timeoutSeconds`.
const PROBE_TIMEOUT_SECONDS: u32 = 1;
/// The kubelet sets no end to a `postStart` call; the proxy needs one.
const POST_START_TIMEOUT_SECONDS: u32 = 3600;

/// Points the calls of all containers (but those named in `skip`) at the proxy, and says what they were. `known` holds the
/// calls that an earlier injection of this pod recorded.
pub(crate) fn rewrite(
    pod: &UserPod<'_>,
    editor: &mut Editor,
    skip: &[&str],
    excluded_ports: &[u16],
    known: &AppCalls,
    warnings: &mut Vec<String>,
    reasons: &mut Vec<Reason>,
) -> Result<AppCalls, Refusal> {
    let mut calls = AppCalls::new();
    for container in pod.containers.iter().filter(|c| c.keeps_running() && !skip.contains(&c.name)) {
        for (which, place) in CALLS {
            let Some(handler) = crate::edit::get(container.raw, place).filter(|handler| handler.is_object()) else {
                continue;
            };
            let path = probe::path(container.name, which);
            let what = || format!("{} of container {}", place.join("."), printable(container.name));
            if is_rewritten(handler, &path) {
                match known.get(&path) {
                    Some(call) => drop(calls.insert(path, call.clone())),
                    None => reasons.push(Reason::LostCall(what())),
                }
                continue;
            }
            let timeout_seconds = timeout(which, handler, pod.grace_seconds());
            match action(container, handler) {
                Ok(None) => {}
                Ok(Some(action)) if excluded_ports.contains(&port_of(&action)) => {}
                Ok(Some(action)) => {
                    point_at_proxy(editor, container, place, handler, &path)?;
                    calls.insert(path, AppCall { timeout_seconds, action });
                }
                Err(why) => warnings.push(format!("{} is left as it is: {why}", what())),
            }
        }
    }
    Ok(calls)
}

/// The JSON that the proxy reads from its environment.
///
/// The kubelet expands `$(NAME)` in values; as an escape of JSON a dollar sign is safe from that.
pub(crate) fn to_env(calls: &AppCalls) -> String {
    escape_dollars(&serde_json::to_string(calls).unwrap_or_default()) // plain data: this can not fail
}

/// JSON text without a dollar sign, which can stand in strings only.
pub(crate) fn escape_dollars(json: &str) -> String {
    json.replace('$', "\\u0024")
}

/// What an earlier injection recorded in the environment of a proxy container.
pub(crate) fn known(proxy: &Value) -> AppCalls {
    let env = proxy.get("env").and_then(Value::as_array);
    let text = env.into_iter().flatten().find_map(|entry| {
        let ours = entry.get("name").and_then(Value::as_str) == Some(weir_mesh::bootstrap::env::PROBES);
        if ours { entry.get("value").and_then(Value::as_str) } else { None }
    });
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn is_rewritten(handler: &Value, path: &str) -> bool {
    let get = |key| crate::edit::get(handler, &["httpGet", key]);
    get("port").and_then(Value::as_u64) == Some(u64::from(ports::MERGED))
        && get("path").and_then(Value::as_str) == Some(path)
}

fn timeout(which: Which, handler: &Value, grace_seconds: u32) -> u32 {
    match which {
        Which::PostStart => POST_START_TIMEOUT_SECONDS,
        Which::PreStop => grace_seconds.max(1),
        _ => handler
            .get("timeoutSeconds")
            .and_then(Value::as_u64)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0)
            .unwrap_or(PROBE_TIMEOUT_SECONDS),
    }
}

/// What the kubelet would call; `None` where it calls nothing over the network.
fn action(container: &Container<'_>, handler: &Value) -> Result<Option<Action>, String> {
    let part = |name: &str| handler.get(name).filter(|part| part.is_object());
    let text = |part: &Value, key: &str| {
        part.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if let Some(http) = part("httpGet") {
        let scheme = text(http, "scheme").unwrap_or_else(|| "HTTP".into());
        let mut path = text(http, "path").unwrap_or_default();
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        let header = |header: &Value| Some((text(header, "name")?, text(header, "value").unwrap_or_default()));
        let headers = http.get("httpHeaders").and_then(Value::as_array);
        return Ok(Some(Action::Http {
            port: port(container, http)?,
            path,
            tls: scheme.eq_ignore_ascii_case("https"),
            host: text(http, "host"),
            headers: headers.into_iter().flatten().filter_map(header).collect(),
        }));
    }
    if let Some(tcp) = part("tcpSocket") {
        return Ok(Some(Action::Tcp { port: port(container, tcp)?, host: text(tcp, "host") }));
    }
    if let Some(grpc) = part("grpc") {
        let service = text(grpc, "service").unwrap_or_default();
        return Ok(Some(Action::Grpc { port: port(container, grpc)?, service }));
    }
    Ok(None)
}

/// The port of a call, as the kubelet resolves it: a number, a name among the container's own ports, or a number as text.
fn port(container: &Container<'_>, part: &Value) -> Result<u16, String> {
    let number = |raw: Option<&Value>| raw.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let port = match part.get("port") {
        Some(Value::String(name)) => {
            let declared = container.raw.get("ports").and_then(Value::as_array);
            let named = declared
                .into_iter()
                .flatten()
                .find(|declared| declared.get("name").and_then(Value::as_str) == Some(name))
                .map(|declared| number(declared.get("containerPort")));
            named.unwrap_or_else(|| name.parse().ok()).filter(|port| *port > 0).ok_or_else(|| {
                format!(
                    "its container declares no port named {:?}, so the kubelet can not call it either",
                    printable(name)
                )
            })?
        }
        raw => number(raw).filter(|port| *port > 0).ok_or("its port is no port from 1 to 65535")?,
    };
    Ok(port)
}

fn port_of(action: &Action) -> u16 {
    match action {
        Action::Http { port, .. } | Action::Tcp { port, .. } | Action::Grpc { port, .. } => *port,
    }
}

/// Makes the handler an `httpGet` of the proxy. Only the fields that say what is called are touched; timing and all others
/// are the user's.
fn point_at_proxy(
    editor: &mut Editor,
    container: &Container<'_>,
    place: &[&str],
    handler: &Value,
    path: &str,
) -> Result<(), Refusal> {
    let index = container.index.to_string();
    let at = |rest: &[&'static str]| -> Vec<String> {
        let base = ["spec", container.list.key(), index.as_str()];
        base.iter().chain(place).chain(rest).map(|step| (*step).to_owned()).collect()
    };
    let mut edit = |rest: &[&'static str], value: Option<Value>| {
        let steps = at(rest);
        let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
        match value {
            Some(value) => editor.set(&steps, value),
            None => editor.remove(&steps),
        }
    };
    if handler.get("httpGet").is_some_and(Value::is_object) {
        edit(&["httpGet", "path"], Some(path.into()))?;
        edit(&["httpGet", "port"], Some(ports::MERGED.into()))?;
        edit(&["httpGet", "scheme"], Some("HTTP".into()))?;
        edit(&["httpGet", "host"], None)?;
        edit(&["httpGet", "httpHeaders"], None)?;
    } else {
        edit(&["tcpSocket"], None)?;
        edit(&["grpc"], None)?;
        edit(&["httpGet"], Some(json!({"path": path, "port": ports::MERGED, "scheme": "HTTP"})))?;
    }
    Ok(())
}
