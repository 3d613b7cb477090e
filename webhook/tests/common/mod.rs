//! What several tests need: the operator's settings of the goldens, and rules by which any result is judged.
#![allow(dead_code)] // each test uses a part

pub(crate) mod server;

use json_patch::{Patch, jsonptr::Token};
use serde_json::Value;
use weir_webhook::{Redirect, Settings};

/// Settings as the chart would give them.
pub(crate) fn settings() -> Settings {
    Settings {
        proxy_image: "weir/proxy:test".into(),
        init_image: "weir/init:test".into(),
        mesh_cidrs: ["198.18.0.0/15", "fd00::/8"].map(|cidr| cidr.parse().unwrap()).to_vec(),
        ..Settings::default()
    }
}

/// The same without a CNI plugin.
pub(crate) fn init_mode() -> Settings {
    Settings { redirect: Redirect::Init, ..settings() }
}

/// Annotations that injection writes; where Prometheus is sent to is judged by the goldens.
const OUR_ANNOTATIONS: [&str; 5] =
    ["weir.dev/capture", "weir.dev/status", "weir.dev/roots", "prometheus.io/port", "prometheus.io/path"];

/// Panics if a patch touches anything that injection has no business with.
pub(crate) fn assert_allowed(patch: &Patch) {
    for operation in patch.iter() {
        let path: Vec<String> =
            operation.path().tokens().map(|token: Token<'_>| token.decoded().into_owned()).collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let probe = |rest: &[&str]| {
            let call = match rest {
                ["livenessProbe" | "readinessProbe" | "startupProbe", call @ ..] => call,
                ["lifecycle", "postStart" | "preStop", call @ ..] => call,
                _ => return false,
            };
            matches!(
                call,
                ["httpGet" | "tcpSocket" | "grpc"] | ["httpGet", "path" | "port" | "scheme" | "host" | "httpHeaders"]
            )
        };
        let index = |text: &str| text.parse::<usize>().is_ok();
        let fine = match path.as_slice() {
            ["metadata"] | ["metadata", "annotations"] => operation_adds_empty(operation),
            ["metadata", "annotations", name] => OUR_ANNOTATIONS.contains(name),
            ["spec", "initContainers" | "volumes"] => operation_adds_empty(operation),
            ["spec", "initContainers", at] => index(at) && names_ours(operation, &["weir-proxy", "weir-init"]),
            ["spec", "volumes", at] => index(at) && names_ours(operation, &["weir-token", "weir-root"]),
            ["spec", "initContainers" | "containers", at, rest @ ..] => index(at) && probe(rest),
            _ => false,
        };
        assert!(fine, "the patch touches {}: {operation}", operation.path());
    }
}

fn operation_adds_empty(operation: &json_patch::PatchOperation) -> bool {
    match operation {
        json_patch::PatchOperation::Add(add) => match &add.value {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        },
        _ => false,
    }
}

/// Removing is allowed for ours only, too, but the operation does not say what it removes: the caller's other checks do.
fn names_ours(operation: &json_patch::PatchOperation, names: &[&str]) -> bool {
    let value = match operation {
        json_patch::PatchOperation::Add(add) => &add.value,
        json_patch::PatchOperation::Replace(replace) => &replace.value,
        _ => return true,
    };
    value.get("name").and_then(Value::as_str).is_some_and(|name| names.contains(&name))
}

/// The parts of a pod that are not ours, for comparing what a user wrote before and after.
pub(crate) fn without_ours(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for (list, ours) in [("initContainers", ["weir-proxy", "weir-init"]), ("volumes", ["weir-token", "weir-root"])] {
        let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { continue };
        if let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) {
            items.retain(|item| !item.get("name").and_then(Value::as_str).is_some_and(|name| ours.contains(&name)));
        }
        if spec.get(list).is_some_and(|list| list.is_null() || list.as_array().is_some_and(Vec::is_empty)) {
            spec.remove(list);
        }
    }
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            for name in OUR_ANNOTATIONS {
                annotations.remove(name);
            }
        }
        if metadata.get("annotations").is_some_and(|a| a.is_null() || a.as_object().is_some_and(|a| a.is_empty())) {
            metadata.remove("annotations");
        }
    }
    if pod.get("metadata").is_some_and(|m| m.is_null() || m.as_object().is_some_and(|m| m.is_empty())) {
        pod.as_object_mut().unwrap().remove("metadata");
    }
    pod
}

/// The rules of Pod Security "restricted" that a container can break, written down from the standard and not from our code.
/// Returns what is broken.
pub(crate) fn restricted(container: &Value, pod: &Value) -> Vec<String> {
    let own = |key: &str| container.pointer(&format!("/securityContext/{key}")).filter(|v| !v.is_null());
    let inherited = |key: &str| own(key).or_else(|| pod.pointer(&format!("/spec/securityContext/{key}")));
    let mut broken = Vec::new();
    let mut rule = |holds: bool, text: &str| {
        if !holds {
            broken.push(text.to_owned());
        }
    };
    rule(own("privileged").is_none_or(|v| v == false), "privileged");
    rule(own("allowPrivilegeEscalation").is_some_and(|v| v == false), "allowPrivilegeEscalation is not false");
    rule(inherited("runAsNonRoot").is_some_and(|v| v == true), "runAsNonRoot is not true");
    rule(inherited("runAsUser").is_none_or(|v| v != 0), "runAsUser is 0");
    let seccomp = inherited("seccompProfile").and_then(|v| v.get("type")).and_then(Value::as_str);
    rule(matches!(seccomp, Some("RuntimeDefault" | "Localhost")), "seccompProfile");
    let caps = |key: &str| own("capabilities").and_then(|v| v.get(key)).and_then(Value::as_array);
    rule(caps("drop").is_some_and(|list| list.iter().any(|c| c == "ALL")), "capabilities: ALL is not dropped");
    rule(caps("add").is_none_or(|list| list.iter().all(|c| c == "NET_BIND_SERVICE")), "capabilities are added");
    rule(own("procMount").is_none_or(|v| v == "Default"), "procMount");
    let ports = container.get("ports").and_then(Value::as_array);
    rule(ports.into_iter().flatten().all(|p| p.get("hostPort").is_none()), "hostPort");
    rule(own("seLinuxOptions").is_none() && own("windowsOptions").is_none(), "options of the host");
    broken
}

/// Kinds of volume that "restricted" allows.
pub(crate) fn volume_is_restricted(volume: &Value) -> bool {
    let allowed = [
        "name",
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    volume.as_object().is_some_and(|v| v.keys().all(|key| allowed.contains(&key.as_str())))
}
