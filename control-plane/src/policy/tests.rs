#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;

use serde_json::{Value, json};
use weir_config::manifest::{Source, parse_value_stored};

use super::*;
use crate::{
    source::{Item, ItemRef},
    world::{Subject, World},
};

fn item(value: Value) -> Item {
    let stored = parse_value_stored(value, Source::named("test"));
    Item::of(&stored.manifests.first().unwrap_or_else(|| panic!("{:?}", stored.problems)).object).unwrap()
}

struct Fixture(World);

impl Fixture {
    /// Pods `shop/web` (app=web), `shop/db` (app=db) and `other/web` (app=web).
    fn new() -> Self {
        let mut fixture = Self(World::default());
        for (namespace, name) in [("shop", "web"), ("shop", "db"), ("other", "web")] {
            fixture.apply(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
                "spec": {"containers": [{"name": "a", "image": "a"}]}}));
        }
        fixture
    }

    /// Applies an object; gives the pods that it concerns.
    fn apply(&mut self, value: Value) -> Vec<String> {
        let mut touched = HashSet::new();
        self.0.apply(item(value), &mut touched);
        pods(touched)
    }

    fn delete(&mut self, value: Value) -> Vec<String> {
        let reference: ItemRef = item(value).reference();
        let mut touched = HashSet::new();
        self.0.delete(reference, &mut touched);
        pods(touched)
    }

    fn pod(&self, namespace: &str, name: &str) -> &Workload {
        self.0.workload(&Name::new(namespace, name)).unwrap()
    }

    /// `MODE by NAME` of a pod, and of its ports.
    fn mode(&self, namespace: &str, name: &str) -> String {
        let show = |(mode, by): &(MtlsMode, Option<Name>)| {
            format!("{} by {}", mode.as_str(), by.as_ref().map_or("-".into(), ToString::to_string))
        };
        let mtls = self.0.policies().mtls(self.pod(namespace, name));
        let ports = mtls.ports.iter().map(|(port, mode)| format!(", {port} {}", show(mode)));
        [show(&mtls.all)].into_iter().chain(ports).collect()
    }

    fn access(&self, namespace: &str, name: &str) -> Vec<String> {
        self.0.policies().access(self.pod(namespace, name)).map(|policy| policy.name.to_string()).collect()
    }
}

fn pods(touched: HashSet<Subject>) -> Vec<String> {
    let mut names: Vec<String> = touched
        .into_iter()
        .filter_map(|subject| match subject {
            Subject::Pod(name) => Some(name.to_string()),
            _ => None,
        })
        .collect();
    names.sort();
    names
}

fn peer(namespace: &str, name: &str, created: u32, mode: &str, app: Option<&str>, ports: Value) -> Value {
    let mut value = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": format!("2026-01-{created:02}T00:00:00Z")},
        "spec": {"mtls": {"mode": mode}}});
    if let Some(app) = app {
        value["spec"]["selector"] = json!({"matchLabels": {"app": app}});
    }
    if !ports.is_null() {
        value["spec"]["portLevelMtls"] = ports;
    }
    value
}

fn access(namespace: &str, name: &str, app: Option<&str>) -> Value {
    let mut value = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": {"rules": [{}]}});
    if let Some(app) = app {
        value["spec"]["selector"] = json!({"matchLabels": {"app": app}});
    }
    value
}

#[test]
fn the_nearest_level_wins_and_of_one_level_the_oldest() {
    let mut world = Fixture::new();
    assert_eq!(world.mode("shop", "web"), "PERMISSIVE by -");
    world.apply(peer("weir-system", "mesh", 3, "STRICT", None, Value::Null));
    assert_eq!(world.mode("shop", "web"), "STRICT by weir-system/mesh");
    world.apply(peer("weir-system", "an-older", 2, "PERMISSIVE", None, Value::Null));
    assert_eq!(world.mode("shop", "web"), "PERMISSIVE by weir-system/an-older");
    world.delete(peer("weir-system", "an-older", 2, "PERMISSIVE", None, Value::Null));
    world.apply(peer("shop", "unset", 1, "UNSET", None, Value::Null));
    assert_eq!(world.mode("shop", "web"), "STRICT by weir-system/mesh");
    world.apply(peer("shop", "newer", 5, "PERMISSIVE", None, Value::Null));
    assert_eq!(world.mode("shop", "web"), "STRICT by weir-system/mesh", "the oldest of the namespace leaves it open");
    world.delete(peer("shop", "unset", 1, "UNSET", None, Value::Null));
    assert_eq!(world.mode("shop", "web"), "PERMISSIVE by shop/newer");
    assert_eq!(world.mode("other", "web"), "STRICT by weir-system/mesh");
    world.apply(peer(
        "shop",
        "web",
        9,
        "STRICT",
        Some("web"),
        json!({"80": {"mode": "PERMISSIVE"}, "81": {"mode": "UNSET"}}),
    ));
    assert_eq!(world.mode("shop", "web"), "STRICT by shop/web, 80 PERMISSIVE by shop/web, 81 STRICT by shop/web");
    world.apply(peer(
        "shop",
        "web",
        9,
        "UNSET",
        Some("web"),
        json!({"80": {"mode": "STRICT"}, "81": {"mode": "UNSET"}}),
    ));
    assert_eq!(
        world.mode("shop", "web"),
        "PERMISSIVE by shop/newer, 80 STRICT by shop/web, 81 PERMISSIVE by shop/newer"
    );
    assert_eq!(world.mode("shop", "db"), "PERMISSIVE by shop/newer");
    // Of equally old ones the first by name, on every replica.
    world.apply(peer("shop", "a-web", 9, "STRICT", Some("web"), Value::Null));
    assert_eq!(world.mode("shop", "web"), "STRICT by shop/a-web");
    // A selector in the root namespace is for pods of that namespace, as Istio has it.
    world.apply(peer("weir-system", "selecting", 1, "PERMISSIVE", Some("web"), Value::Null));
    assert_eq!(world.mode("other", "web"), "STRICT by weir-system/mesh");
}

#[test]
fn what_is_not_accepted_is_strict_where_it_may_be_meant() {
    let mut world = Fixture::new();
    world.apply(peer("shop", "older", 1, "PERMISSIVE", None, Value::Null));
    // At its level it is what it would be: not the oldest, not in force.
    world.apply(peer("shop", "bad", 2, "DISABLE", None, Value::Null));
    assert_eq!(world.mode("shop", "web"), "PERMISSIVE by shop/older");
    world.apply(peer("shop", "web", 3, "DISABLE", Some("web"), json!({"80": {"mode": "PERMISSIVE"}})));
    assert_eq!(world.mode("shop", "web"), "STRICT by shop/web");
    assert_eq!(world.mode("shop", "db"), "PERMISSIVE by shop/older");
    // Where its selector can not be read it may mean any pod of its namespace.
    let mut unreadable = peer("shop", "lost", 4, "STRICT", None, Value::Null);
    unreadable["spec"]["selector"] = json!({"matchExpressions": []});
    world.apply(unreadable);
    assert_eq!(world.mode("shop", "db"), "STRICT by shop/lost");
    assert_eq!(world.mode("other", "web"), "PERMISSIVE by -");
    let refused: Vec<String> = world.0.policies().refused().into_iter().map(|refused| refused.object).collect();
    assert_eq!(refused, ["bad", "lost", "web"].map(|name| format!("PeerAuthentication shop/{name}")));
}

#[test]
fn policies_of_the_root_namespace_are_for_all_and_a_change_concerns_only_those_it_is_for() {
    let mut world = Fixture::new();
    let all = ["other/web", "shop/db", "shop/web"];
    assert_eq!(world.apply(access("weir-system", "mesh", None)), all);
    assert_eq!(world.apply(access("weir-system", "webs", Some("web"))), ["other/web", "shop/web"]);
    assert_eq!(world.apply(access("shop", "all", None)), ["shop/db", "shop/web"]);
    assert_eq!(world.apply(access("shop", "web", Some("web"))), ["shop/web"]);
    assert_eq!(world.access("shop", "web"), ["shop/all", "shop/web", "weir-system/mesh", "weir-system/webs"]);
    assert_eq!(world.access("shop", "db"), ["shop/all", "weir-system/mesh"]);
    assert_eq!(world.access("other", "web"), ["weir-system/mesh", "weir-system/webs"]);
    // Both, whom it was for and whom it is for.
    assert_eq!(world.apply(access("shop", "web", Some("db"))), ["shop/db", "shop/web"]);
    assert_eq!(world.delete(access("shop", "web", Some("db"))), ["shop/db"]);
    assert_eq!(world.access("shop", "web"), ["shop/all", "weir-system/mesh", "weir-system/webs"]);
    assert_eq!(world.apply(peer("shop", "p", 1, "STRICT", Some("db"), Value::Null)), ["shop/db"]);
    assert_eq!(world.apply(peer("weir-system", "p", 1, "STRICT", None, Value::Null)), all);
}

#[test]
fn another_root_namespace() {
    let mut world = Fixture::new();
    world.0.policies_mut().set_root("other");
    world.apply(access("other", "mesh", None));
    world.apply(access("weir-system", "here", None));
    assert_eq!(world.access("shop", "web"), ["other/mesh"]);
    assert_eq!(world.access("other", "web"), ["other/mesh"], "once, though it is of the pod's namespace as well");
}

#[test]
fn stored_objects_of_an_api_server_are_rules_in_any_case() {
    let object = |spec: Value| {
        json!({"apiVersion": "security.istio.io/v1beta1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "a", "namespace": "shop", "uid": "x", "resourceVersion": "1", "generation": 2,
                "managedFields": [{"manager": "kubectl"}], "annotations": {"a": "b"}},
            "spec": spec, "status": {"conditions": []}})
    };
    let (item, problems) = stored(object(json!({"rules": [{}]})), "kubernetes").unwrap();
    assert!(matches!(item, Item::AuthorizationPolicy(policy) if policy.rules.len() == 1) && problems.is_empty());
    let (item, problems) =
        stored(object(json!({"rules": [{"to": [{"operation": {"hosts": ["a"]}}]}]})), "kubernetes").unwrap();
    assert!(matches!(item, Item::AuthorizationPolicy(policy) if policy.rules.is_empty() && !policy.refused.is_empty()));
    assert!(
        problems[0]
            .to_string()
            .starts_with("kubernetes: AuthorizationPolicy shop/a: spec.rules[0].to[0].operation.hosts")
    );
    assert!(
        stored(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}), "kubernetes").is_none()
    );
}
