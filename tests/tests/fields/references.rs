//! What all kinds of routes have: parents and backends.

use serde_json::{Value, json};

use crate::{
    ask::Probe,
    mesh::{Mesh, SERVICE},
    objects::{and, backend, object},
    table::Table,
};

/// How a kind of route is shown.
pub(crate) struct Kind {
    /// The port of Services that it is for, and another one.
    pub(crate) port: u16,
    pub(crate) other_port: u16,
    /// What every route and every rule of the kind has besides.
    pub(crate) spec: Value,
    pub(crate) rule: Value,
    /// Everybody who answers.
    pub(crate) pods: fn() -> Probe,
    /// Who answers how many of eight.
    pub(crate) shares: fn() -> Probe,
    /// What a backend that can not be called answers.
    pub(crate) bad: &'static str,
}

impl Kind {
    fn route(&self, table: &Table, parent: Value, backends: &[Value], more: Value) -> Value {
        let rule = and(self.rule.clone(), json!({"backendRefs": backends}));
        let spec = and(self.spec.clone(), json!({"parentRefs": [parent], "rules": [rule]}));
        object("gateway.networking.k8s.io/v1", table.kind, "rules", and(spec, more))
    }
}

/// Shows them. Without a rule in force the Service answers by itself: by both of its pods.
pub(crate) fn show(table: &mut Table, mesh: &Mesh, kind: &Kind) {
    let whole = json!({"group": "", "kind": "Service", "namespace": "shop", "name": SERVICE, "port": kind.port});
    let one = backend("one", kind.port);
    let probe = (kind.pods)();
    let without = |key: &str| {
        let mut parent = whole.clone();
        parent.as_object_mut().unwrap().remove(key);
        parent
    };
    // A parent without a group or a kind is a Gateway, which is not ours.
    for (key, parent) in [
        ("group", without("group")),
        ("kind", without("kind")),
        ("name", and(whole.clone(), json!({"name": "one"}))),
        ("namespace", and(whole.clone(), json!({"namespace": "elsewhere"}))),
        ("port", and(whole.clone(), json!({"port": kind.other_port}))),
    ] {
        let with = kind.route(table, whole.clone(), &[one.clone()], json!({}));
        let without = kind.route(table, parent, &[one.clone()], json!({}));
        assert!(whole.get(key).is_some());
        table.acts(mesh, &probe, (&[with], "one"), (&[without], "one and two"));
    }
    let section = and(whole.clone(), json!({"sectionName": "http"}));
    let (plain, sections) = (
        kind.route(table, whole.clone(), &[one.clone()], json!({})),
        kind.route(table, section, &[one.clone()], json!({})),
    );
    table.refused(&["spec.parentRefs[].sectionName"], &sections, &plain);
    let default = |value: &str| kind.route(table, whole.clone(), &[one.clone()], json!({"useDefaultGateways": value}));
    let (none, all) = (default("None"), default("All"));
    table.refused(&["spec.useDefaultGateways=All"], &all, &plain);
    table.acts(mesh, &probe, (&[none], "one"), (&[all], "one and two"));
    let here = json!({"group": "", "kind": "Service", "namespace": "shop", "name": "one", "port": kind.port});
    for (more, seen) in [
        (json!({"group": "apps"}), kind.bad),
        (json!({"kind": "Pod"}), kind.bad),
        (json!({"namespace": "elsewhere"}), kind.bad),
        (json!({"name": "two"}), "two"),
        (json!({"port": 9}), kind.bad),
    ] {
        let with = kind.route(table, whole.clone(), &[here.clone()], json!({}));
        let without = kind.route(table, whole.clone(), &[and(here.clone(), more)], json!({}));
        table.acts(mesh, &probe, (&[with], "one"), (&[without], seen));
    }
    let two = backend("two", kind.port);
    let heavy = and(one.clone(), json!({"weight": 3}));
    let with = kind.route(table, whole.clone(), &[heavy, two.clone()], json!({}));
    let without = kind.route(table, whole.clone(), &[one, two], json!({}));
    table.acts(mesh, &(kind.shares)(), (&[with], "one 6, two 2"), (&[without], "one 4, two 4"));
}
