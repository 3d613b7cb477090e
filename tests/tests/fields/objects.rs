//! Objects that rows are made of.

use serde_json::{Value, json};

use crate::mesh::{GRPC, HTTP, SERVICE};

/// An object of namespace `shop`.
pub(crate) fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// A route with these rules for a port of the row's Service.
pub(crate) fn route(kind: &str, port: u16, rules: Value) -> Value {
    let parent = json!({"group": "", "kind": "Service", "name": SERVICE, "port": port});
    object("gateway.networking.k8s.io/v1", kind, "rules", json!({"parentRefs": [parent], "rules": rules}))
}

/// An HTTPRoute with one rule.
pub(crate) fn http(rule: Value) -> Value {
    route("HTTPRoute", HTTP, json!([rule]))
}

/// A GRPCRoute with one rule.
pub(crate) fn grpc(rule: Value) -> Value {
    route("GRPCRoute", GRPC, json!([rule]))
}

/// A backend.
pub(crate) fn backend(name: &str, port: u16) -> Value {
    json!({"name": name, "port": port})
}

/// The value with other fields besides.
pub(crate) fn and(mut value: Value, more: Value) -> Value {
    for (key, field) in more.as_object().unwrap() {
        value[key] = field.clone();
    }
    value
}

/// A DestinationRule for the row's Service.
pub(crate) fn destination(policy: Value) -> Value {
    let spec = json!({"host": SERVICE, "trafficPolicy": policy});
    object("networking.istio.io/v1", "DestinationRule", "calls", spec)
}

/// A TrafficPolicy for the row's Service.
pub(crate) fn policy(spec: Value) -> Value {
    let targets = json!({"targetRefs": [{"group": "", "kind": "Service", "name": SERVICE}]});
    object("weir.dev/v1alpha1", "TrafficPolicy", "policy", and(targets, spec))
}
