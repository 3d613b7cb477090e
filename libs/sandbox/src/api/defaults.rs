//! The defaults that an API server writes into a pod before it asks the webhooks.

use serde_json::{Map, Value, json};

/// Writes the defaults into a pod's raw form; what is there stays.
pub fn pod(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let account = spec
        .get("serviceAccountName")
        .or_else(|| spec.get("serviceAccount"))
        .cloned()
        .unwrap_or_else(|| json!("default"));
    for (name, value) in [
        ("serviceAccountName", account.clone()),
        ("serviceAccount", account),
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("enableServiceLinks", json!(true)),
        ("securityContext", json!({})),
    ] {
        spec.entry(name).or_insert(value);
    }
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            self::container(container);
        }
    }
}

fn container(container: &mut Map<String, Value>) {
    container.entry("terminationMessagePath").or_insert_with(|| json!("/dev/termination-log"));
    container.entry("terminationMessagePolicy").or_insert_with(|| json!("File"));
    container.entry("imagePullPolicy").or_insert_with(|| json!("IfNotPresent"));
    container.entry("resources").or_insert_with(|| json!({}));
    let ports = container.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.entry("protocol").or_insert_with(|| json!("TCP"));
    }
    for which in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(which).and_then(Value::as_object_mut) else { continue };
        for (name, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            probe.entry(name).or_insert_with(|| json!(value));
        }
        http_get(probe);
    }
    for hook in ["postStart", "preStop"] {
        let hook = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(hook));
        if let Some(hook) = hook.and_then(Value::as_object_mut) {
            http_get(hook);
        }
    }
}

fn http_get(holder: &mut Map<String, Value>) {
    if let Some(get) = holder.get_mut("httpGet").and_then(Value::as_object_mut) {
        get.entry("path").or_insert_with(|| json!("/"));
        get.entry("scheme").or_insert_with(|| json!("HTTP"));
    }
}
