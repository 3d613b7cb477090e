//! The parts that injection adds to a pod: containers, volumes and annotations, as the API server would hold them.
//!
//! Every field that Kubernetes fills in by default is written out, so that looking at the pod again after the API server has
//! stored or re-read it finds no difference. No volume here is local to the node (`emptyDir`, `hostPath`), so a pod is no
//! harder to evict than before, and the autoscaler needs no annotation for us.

use serde::Serialize;
use serde_json::{Value, json};
use weir_mesh::{PodSettings, bootstrap::env, names, ports, probe::AppCalls};

use crate::{
    appcalls::{escape_dollars, to_env},
    settings::{Redirect, Settings},
};

/// The proxy in its image.
pub(crate) const PROXY_BINARY: &str = "/weir-proxy";
/// The init program in its image.
pub(crate) const INIT_BINARY: &str = "/weir-init";
/// Annotation that carries the root certificates to [`root_volume`], where the webhook was given them.
pub(crate) const ROOTS_ANNOTATION: &str = "weir.dev/roots";
/// Name of the proxy's metrics port; Istio's scrape configurations and dashboards look for it.
const METRICS_PORT_NAME: &str = "http-envoy-prom";
/// Life of the proxy's token. The kubelet renews it at 80 %; the least that Kubernetes gives is 600.
const TOKEN_SECONDS: u32 = 3600;
/// `defaultMode` of the volumes, 0644.
const FILE_MODE: u32 = 420;

/// What differs between two pods.
pub(crate) struct ForPod<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) pod: &'a PodSettings,
    pub(crate) calls: &'a AppCalls,
    pub(crate) drain_seconds: u32,
    /// `PORT/PATH` of the application's own metrics.
    pub(crate) app_metrics: Option<String>,
}

/// The proxy: a native sidecar.
pub(crate) fn proxy_container(of: &ForPod<'_>, resources: Value) -> Value {
    json!({
        "name": names::PROXY_CONTAINER,
        "image": of.settings.proxy_image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PROXY_BINARY],
        "args": ["run"],
        "restartPolicy": "Always",
        "env": environment(of),
        "lifecycle": {"postStart": {"exec": {"command": [PROXY_BINARY, "wait"]}}},
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": ports::METRICS, "protocol": "TCP"}],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": ports::PROXY_GID,
            "runAsNonRoot": true,
            "runAsUser": ports::PROXY_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": names::TOKEN_VOLUME, "mountPath": names::TOKEN_DIR, "readOnly": true},
            {"name": names::ROOT_VOLUME, "mountPath": names::ROOT_DIR, "readOnly": true},
        ],
    })
}

/// The init container that programs the redirect where no CNI plugin does. It is root inside the pod's own network namespace, with
/// the capabilities that its back end needs.
pub(crate) fn init_container(of: &ForPod<'_>, resources: Value) -> Value {
    let capture = escape_dollars(&of.pod.capture.to_json());
    let backend = of.settings.redirect_backend;
    json!({
        "name": names::INIT_CONTAINER,
        "image": of.settings.init_image,
        "imagePullPolicy": "IfNotPresent",
        "command": [INIT_BINARY],
        "args": ["apply", "--backend", backend.as_str(), "--capture", capture],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": backend.capabilities(), "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// The token that the proxy shows to the control plane.
pub(crate) fn token_volume() -> Value {
    let token = json!({
        "audience": names::TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_SECONDS,
        "path": names::TOKEN_FILE,
    });
    json!({
        "name": names::TOKEN_VOLUME,
        "projected": {"defaultMode": FILE_MODE, "sources": [{"serviceAccountToken": token}]},
    })
}

/// The mesh's root certificates.
///
/// The control plane keeps them in a ConfigMap of every namespace, which may not be there yet when a namespace and its
/// Deployment come in one `apply`. Marked optional, such a pod would start with an empty folder, and the kubelet looks again
/// only when it next syncs the pod: not while the `postStart` hook is waiting for just that, and a minute later otherwise. Not
/// optional, the kubelet holds the pod back and tries again after 0.5 s, 1 s, 2 s …: nothing starts without roots, and the
/// pod is late by about as much as the ConfigMap is.
///
/// Where the webhook was given the roots, there is nothing to wait for: they come with the pod as an annotation, and the
/// ConfigMap (then optional, and later in the list, so its file wins) follows a rotation.
pub(crate) fn root_volume(roots: Option<&str>) -> Value {
    let config_map = names::ROOT_CONFIG_MAP;
    if roots.is_none() {
        return json!({"name": names::ROOT_VOLUME, "configMap": {"name": config_map, "defaultMode": FILE_MODE}});
    }
    let field = format!("metadata.annotations['{ROOTS_ANNOTATION}']");
    let start = json!({"path": names::ROOT_FILE, "fieldRef": {"apiVersion": "v1", "fieldPath": field}});
    json!({
        "name": names::ROOT_VOLUME,
        "projected": {"defaultMode": FILE_MODE, "sources": [
            {"downwardAPI": {"items": [start]}},
            {"configMap": {"name": config_map, "optional": true}},
        ]},
    })
}

/// What was injected, for people and dashboards. Never read back.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    version: &'static str,
    redirect: &'static str,
    init_containers: &'a [&'a str],
    volumes: [&'static str; 2],
    calls: Vec<&'a str>,
}

/// The status annotation.
pub(crate) fn status(of: &ForPod<'_>, init_containers: &[&str]) -> String {
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        redirect: of.settings.redirect.as_str(),
        init_containers,
        volumes: [names::TOKEN_VOLUME, names::ROOT_VOLUME],
        calls: of.calls.keys().map(String::as_str).collect(),
    };
    serde_json::to_string(&status).unwrap_or_default() // plain data: this can not fail
}

/// Names of our init containers, in their order.
///
/// The redirect must be in force before the proxy starts: the proxy is ready only once it has proved it, and nothing behind
/// it starts before that. So `weir-init` comes before the proxy, and the proxy before everything else.
pub(crate) fn init_containers(redirect: Redirect) -> &'static [&'static str] {
    match redirect {
        Redirect::Cni => &[names::PROXY_CONTAINER],
        Redirect::Init => &[names::INIT_CONTAINER, names::PROXY_CONTAINER],
    }
}

fn environment(of: &ForPod<'_>) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut list = vec![
        field(env::POD_NAME, "metadata.name"),
        field(env::POD_NAMESPACE, "metadata.namespace"),
        field(env::POD_UID, "metadata.uid"),
        field(env::POD_IPS, "status.podIPs"),
        field(env::SERVICE_ACCOUNT, "spec.serviceAccountName"),
    ];
    let join = |values: &[String]| values.join(",");
    let cidrs: Vec<String> = of.settings.mesh_cidrs.iter().map(ToString::to_string).collect();
    let opaque: Vec<String> = of.pod.opaque_ports.iter().map(ToString::to_string).collect();
    let calls = if of.calls.is_empty() { String::new() } else { to_env(of.calls) };
    let values = [
        (env::TRUST_DOMAIN, of.settings.trust_domain.to_string()),
        (env::CONTROL, of.settings.control.clone()),
        (env::CONTROL_NAME, of.settings.control_name.clone().unwrap_or_default()),
        (env::MESH_CIDRS, join(&cidrs)),
        (env::OPAQUE_PORTS, join(&opaque)),
        (env::PROBES, calls),
        (env::CAPTURE, escape_dollars(&of.pod.capture.to_json())),
        (env::APP_METRICS, of.app_metrics.clone().unwrap_or_default()),
        (env::DRAIN_SECONDS, of.drain_seconds.to_string()),
        (env::LOG, of.pod.proxy_log.clone().unwrap_or_else(|| of.settings.proxy_log.clone())),
    ];
    // An empty value would be dropped by the API server; not set means the same to the proxy.
    let set = values.into_iter().filter(|(_, value)| !value.is_empty());
    list.extend(set.map(|(name, value)| json!({"name": name, "value": value})));
    Value::Array(list)
}
