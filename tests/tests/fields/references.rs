//! What all kinds of routes have: parents and backends.

use std::slice::from_ref;

use serde_json::{Value, json};

use crate::{
    ask::Probe,
    mesh::{Mesh, SERVICE},
    objects::{and, backend, object},
    table::Table,
};

/// How a kind of route is shown.
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
    /// The port of Services that it is for, and another one.
    pub(crate) port: u16,
    pub(crate) other_port: u16,
    /// What every route of the kind has besides.
    pub(crate) spec: Value,
    /// Everybody who answers.
    pub(crate) pods: fn() -> Probe,
    /// Who answers how many of eight.
    pub(crate) shares: fn() -> Probe,
    /// What a backend that can not be called answers.
    pub(crate) bad: &'static str,
}

impl Kind {
    /// A route with this parent, these backends and fields of `spec`.
    fn route(&self, parent: &Value, backends: Value, more: Value) -> Value {
        let rules = json!({"parentRefs": [parent], "rules": [{"backendRefs": backends}]});
        let spec = and(self.spec.clone(), rules);
        object("gateway.networking.k8s.io/v1", self.kind, "rules", and(spec, more))
    }
}

/// Shows them. Without a rule in force the Service answers by itself: by both of its pods.
pub(crate) fn show(table: &mut Table, mesh: &Mesh, kind: &Kind) {
    let parent = json!({"group": "", "kind": "Service", "namespace": "shop", "name": SERVICE, "port": kind.port});
    let one = backend("one", kind.port);
    let probe = (kind.pods)();
    let with = |parent: &Value, more: Value| kind.route(parent, json!([one]), more);
    let plain = with(&parent, json!({}));
    let parent_and = |more: Value| with(&and(parent.clone(), more), json!({}));
    // A parent without a group or a kind is a Gateway, which is not ours.
    for other in [
        parent_and(json!({"group": "gateway.networking.k8s.io"})),
        parent_and(json!({"kind": "Gateway"})),
        parent_and(json!({"name": "one"})),
        parent_and(json!({"namespace": "elsewhere"})),
        parent_and(json!({"port": kind.other_port})),
    ] {
        table.acts(mesh, &probe, (from_ref(&plain), "one"), (&[other], "one and two"));
    }
    table.refused(&["spec.parentRefs[].sectionName"], &parent_and(json!({"sectionName": "http"})), &plain);
    let (none, all) =
        (with(&parent, json!({"useDefaultGateways": "None"})), with(&parent, json!({"useDefaultGateways": "All"})));
    table.refused(&["spec.useDefaultGateways=All"], &all, &plain);
    table.acts(mesh, &probe, (&[none], "one"), (&[all], "one and two"));
    let here = json!({"group": "", "kind": "Service", "namespace": "shop", "name": "one", "port": kind.port});
    let plain = kind.route(&parent, json!([here]), json!({}));
    for (other, seen) in [
        (json!({"group": "apps"}), kind.bad),
        (json!({"kind": "Pod"}), kind.bad),
        (json!({"namespace": "elsewhere"}), kind.bad),
        (json!({"name": "two"}), "two"),
        (json!({"port": 9}), kind.bad),
    ] {
        let other = kind.route(&parent, json!([and(here.clone(), other)]), json!({}));
        table.acts(mesh, &probe, (from_ref(&plain), "one"), (&[other], seen));
    }
    let two = backend("two", kind.port);
    let heavy = kind.route(&parent, json!([and(one.clone(), json!({"weight": 3})), two]), json!({}));
    let alike = kind.route(&parent, json!([one, two]), json!({}));
    table.acts(mesh, &(kind.shares)(), (&[heavy], "one 6, two 2"), (&[alike], "one 4, two 4"));
}
