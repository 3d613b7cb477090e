//! What a person can write wrongly: the answer names file, object and field, and nothing is left.

use std::collections::BTreeSet;

use super::support::{Sandbox, root, text};

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";

fn pod(container: &str) -> String {
    format!(
        "{NAMESPACE}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: a}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - {container}\n"
    )
}

/// `up` must fail and say all of `wanted`.
fn fails(what: &str, manifest: &str, wanted: &[&str]) {
    let sandbox = Sandbox::new("bad");
    sandbox.write("all.yaml", manifest);
    let output = sandbox.up("4");
    let said = text(&output);
    assert!(!output.status.success(), "{what}: {said}");
    for part in wanted {
        assert!(said.contains(part), "{what}: {part:?} is not in: {said}");
    }
    sandbox.nothing_is_left(&BTreeSet::new());
}

#[test]
fn manifests() {
    if !root() {
        return;
    }
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: absent, port: 80}]\n  rules: [{backendRefs: [{name: absent, port: 80}]}]\n";
    for (what, manifest, wanted) in [
        (
            "an unknown field",
            pod("{name: c, image: host, comand: [sleep]}"),
            vec!["all.yaml", "Pod a/p", "spec.containers[0].comand"],
        ),
        (
            "a rule to a Service that is not there",
            format!("{NAMESPACE}{route}"),
            vec!["all.yaml", "HTTPRoute a/r", "absent"],
        ),
        (
            "a namespace that is not there",
            pod("{name: c, image: host, command: [sleep]}").replace("namespace: a", "namespace: b"),
            vec!["all.yaml", "Pod b/p"],
        ),
        (
            "a kind that is not run",
            format!(
                "{NAMESPACE}---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: s, namespace: a}}\nspec:\n  serviceName: s\n  selector: {{matchLabels: {{a: b}}}}\n  template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: host, command: [sleep]}}]}}}}\n"
            ),
            vec!["StatefulSet a/s", "use a Deployment"],
        ),
        ("no YAML", "a: [".to_owned(), vec!["all.yaml:1"]),
    ] {
        fails(what, &manifest, &wanted);
    }
    let empty = Sandbox::new("bad");
    let said = text(&empty.up("4"));
    assert!(said.contains("has no .yaml"), "{said}");
}

#[test]
fn pods_that_can_not_run() {
    if !root() {
        return;
    }
    for (what, container, wanted) in [
        (
            "an image of a registry",
            "{name: c, image: \"nginx:1.27\"}",
            vec!["pod a/p", "nginx:1.27", "weir.dev/echo", "`host`"],
        ),
        ("host without a command", "{name: c, image: host}", vec!["say which one by `command`"]),
        (
            "a program that is not installed",
            "{name: c, image: host, command: [no-such-program]}",
            vec!["container c", "exit code 127", "\"no-such-program\" is not found"],
        ),
        (
            "privileged",
            "{name: c, image: host, command: [sleep, infinity], securityContext: {privileged: true}}",
            vec!["privileged"],
        ),
        (
            "root where it must not be",
            "{name: c, image: host, command: [sleep, infinity], securityContext: {runAsNonRoot: true}}",
            vec!["runAsNonRoot"],
        ),
        (
            "a mount point in a shared folder",
            "{name: c, image: host, command: [sleep, infinity], volumeMounts: [{name: v, mountPath: /usr/no-such-folder}]}\n  volumes: [{name: v, emptyDir: {}}]",
            vec!["/usr/no-such-folder", "read-only"],
        ),
        (
            "never ready",
            "{name: c, image: host, command: [sh, -c, \"echo waiting for nothing; sleep infinity\"], readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 1}}",
            vec!["did not become ready within 4 s", "readiness probe failed", "waiting for nothing"],
        ),
        (
            "ends again and again",
            "{name: c, image: host, command: [sh, -c, \"echo no database; exit 3\"]}",
            vec!["exit code 3", "no database", "starts again"],
        ),
    ] {
        fails(what, &pod(container), &wanted);
    }
}

#[test]
fn names_of_sandboxes() {
    let mut sandbox = Sandbox::new("bad");
    sandbox.name = "../x".into();
    let output = sandbox.run("status", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("is not a name for a sandbox"));
}
