//! Injection into manifests, for `weir inject -f`: the pod templates of the workload kinds, and lists of them.

use serde_json::Value;

use crate::{inject::inject_pod, refusal::Refusal, settings::Settings};

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A pod in it can not be in the mesh as it is.
    #[error("{object}: {refusal}")]
    Refused {
        /// `KIND/NAME` of the object, or `KIND (unnamed)`.
        object: String,
        /// All reasons.
        refusal: Refusal,
    },
    /// A workload without a pod template, or a list without items.
    #[error("{object}: {path} is missing or no object")]
    Template {
        /// `KIND/NAME` of the object.
        object: String,
        /// Where it should be.
        path: String,
    },
    /// Lists within lists.
    #[error("lists are nested too deeply")]
    Nested,
}

/// How deep lists may be nested; the API knows no list in a list.
const MAX_NESTING: usize = 4;

/// Injects into every pod and pod template of a manifest; objects of other kinds pass unchanged.
///
/// # Errors
/// The first object that is refused, with all its reasons.
pub fn inject_manifest(settings: &Settings, manifest: Value) -> Result<Value, ManifestError> {
    inject_manifest_with_warnings(settings, manifest, &mut Vec::new())
}

/// Like [`inject_manifest`]; adds a line for each warning, with the object that it is about.
///
/// # Errors
/// The first object that is refused, with all its reasons.
pub fn inject_manifest_with_warnings(
    settings: &Settings,
    mut manifest: Value,
    warnings: &mut Vec<String>,
) -> Result<Value, ManifestError> {
    inject_at(settings, &mut manifest, warnings, 0)?;
    Ok(manifest)
}

fn inject_at(
    settings: &Settings,
    object: &mut Value,
    warnings: &mut Vec<String>,
    depth: usize,
) -> Result<(), ManifestError> {
    if depth > MAX_NESTING {
        return Err(ManifestError::Nested);
    }
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(place) = pod_place(&kind, object.get("apiVersion").and_then(Value::as_str).unwrap_or_default()) else {
        let is_list = kind == "List" || kind.strip_suffix("List").is_some_and(|item| pod_place_of_kind(item).is_some());
        if is_list && let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
            for item in items {
                inject_at(settings, item, warnings, depth + 1)?;
            }
        }
        return Ok(());
    };
    let meta = |key: &str| object.pointer(&format!("/metadata/{key}")).and_then(Value::as_str).unwrap_or_default();
    let name = if meta("name").is_empty() { meta("generateName") } else { meta("name") };
    let id = if name.is_empty() { format!("{kind} (unnamed)") } else { format!("{kind}/{name}") };
    let namespace = meta("namespace").to_owned();
    let pod = object.pointer_mut(place).filter(|pod| pod.is_object());
    let pod = pod.ok_or_else(|| ManifestError::Template { object: id.clone(), path: place.replace('/', ".") })?;
    let refused = |refusal| ManifestError::Refused { object: id.clone(), refusal };
    let outcome = inject_pod(settings, pod, &namespace).map_err(refused)?;
    warnings.extend(outcome.warnings.into_iter().map(|warning| format!("{id}: {warning}")));
    json_patch::patch(pod, &outcome.patch)
        .map_err(|_| refused(Refusal::malformed("the pod", "an object that can be changed")))
}

/// Where a kind keeps its pod; `None` for kinds that have none.
fn pod_place(kind: &str, api_version: &str) -> Option<&'static str> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let (of_group, place) = pod_place_of_kind(kind)?;
    (of_group == group).then_some(place)
}

fn pod_place_of_kind(kind: &str) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        "Pod" => ("", ""),
        "ReplicationController" => ("", "/spec/template"),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => ("apps", "/spec/template"),
        "Job" => ("batch", "/spec/template"),
        "CronJob" => ("batch", "/spec/jobTemplate/spec/template"),
        _ => return None,
    })
}
