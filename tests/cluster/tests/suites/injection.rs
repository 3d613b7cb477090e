//! Injection: which pods get a proxy, by every way that pods come to be, and what becomes of it among other people's webhooks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, Pod},
};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::{Value, json};
use weir_cluster::{
    Case, Suite, cases,
    mesh::{self, SYSTEM},
    others::Others,
    said,
    suite::LIMIT,
};

/// A server that the mesh has no other word about.
fn server(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{
         name: app, image: 'weir.test/app:1', args: [serve], readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}}}]}}}}"
    )
}

fn proxy(pod: &Pod) -> Option<&Container> {
    let first = pod.spec.as_ref().unwrap().init_containers.as_ref().and_then(|containers| containers.first());
    first.filter(|container| container.name == "weir-proxy")
}

fn has_proxy(pod: &Pod) -> bool {
    proxy(pod).is_some()
}

/// How many containers of the mesh a pod has.
fn proxies(pod: &Pod) -> usize {
    let spec = pod.spec.as_ref().unwrap();
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.filter(|container| container.name.starts_with("weir-")).count()
}

async fn every_kind_of_workload_is_injected(case: &Case<'_>) {
    mesh::installed(case).await;
    // Under the strictest Pod Security level; namespace, label and workloads come at once.
    let pod = |more: &str| {
        format!(
            "{{{more} terminationGracePeriodSeconds: 1, securityContext: {{runAsNonRoot: true, runAsUser: 1000,
             seccompProfile: {{type: RuntimeDefault}}}},
             containers: [{{name: app, image: 'weir.test/app:1', args: [serve], securityContext: {{
             allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}"
        )
    };
    let job = pod("restartPolicy: Never,").replace("args: [serve]", "command: [/bin/busybox, echo, done]");
    let long = pod("");
    let namespace = format!("{}-restricted", case.namespace);
    let manifests = format!(
        "
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: {{weir.dev/inject: enabled, pod-security.kubernetes.io/enforce: restricted}}
---
{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: deployment}}, spec: {{selector: {{matchLabels: {{app: deployment}}}},
  template: {{metadata: {{labels: {{app: deployment}}}}, spec: {long}}}}}}}
---
{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: stateful}}, spec: {{serviceName: stateful, selector: {{matchLabels:
  {{app: stateful}}}}, template: {{metadata: {{labels: {{app: stateful}}}}, spec: {long}}}}}}}
---
{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: daemon}}, spec: {{selector: {{matchLabels: {{app: daemon}}}},
  template: {{metadata: {{labels: {{app: daemon}}}}, spec: {long}}}}}}}
---
{{apiVersion: batch/v1, kind: Job, metadata: {{name: job}}, spec: {{backoffLimit: 0, template: {{metadata: {{labels: {{app: job}}}},
  spec: {job}}}}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: bare, labels: {{app: bare}}}}, spec: {long}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: out, labels: {{app: out, weir.dev/inject: 'false'}}}}, spec: {long}}}
"
    );
    // A bare pod is refused by Kubernetes itself until the namespace has its service account.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = case.cluster.apply(&namespace, &manifests) {
        assert!(std::time::Instant::now() < end && error.to_string().contains("serviceaccount"), "{error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let inner = Case { cluster: case.cluster, namespace: &namespace };
    for (app, count) in [("deployment", 1), ("stateful", 1), ("daemon", 2), ("bare", 1)] {
        let pods = inner.ready_with(&format!("app={app}"), count).await;
        assert!(pods.iter().all(has_proxy), "{app}");
    }
    assert!(!has_proxy(&inner.ready("out").await));
    inner.until("job", "completes", |job: &Job| job.status.as_ref()?.succeeded.filter(|&count| count == 1)).await;
    // A schedule's pods are a Job's.
    inner.apply(&format!(
        "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: cron}}, spec: {{schedule: '0 0 1 1 *', jobTemplate: {{spec:
         {{template: {{spec: {job}}}}}}}}}}}"
    ));
    inner.kubectl(&["create", "job", "now", "--from=cronjob/cron"]);
    inner.until("now", "completes", |job: &Job| job.status.as_ref()?.succeeded.filter(|&count| count == 1)).await;
    let pods = inner.api::<Pod>().list(&ListParams::default().labels("job-name in (job, now)")).await.unwrap();
    assert!(pods.items.len() == 2 && pods.iter().all(has_proxy));
    case.cluster.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).unwrap();
}

async fn single_pods_opt_in_and_bad_labels_are_refused(case: &Case<'_>) {
    mesh::installed(case).await;
    let pod = |name: &str, value: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{weir.dev/inject: '{value}'}}}}, spec: {{
             terminationGracePeriodSeconds: 1, containers: [{{name: app, image: 'weir.test/app:1', args: [serve]}}]}}}}"
        )
    };
    case.apply(&pod("in", "true"));
    assert!(has_proxy(&case.ready("in").await), "the namespace has no label");
    let error = case.cluster.apply(case.namespace, &pod("typo", "ture")).unwrap_err().to_string();
    assert!(error.contains("weir.dev/inject"), "{error}");
    // The namespace joins later: its next pods have a proxy, its running ones stay as they are.
    case.apply(&pod("before", "x").replace("weir.dev/inject", "app"));
    assert!(!has_proxy(&case.ready("before").await));
    mesh::joined(case).await;
    case.apply(&pod("after", "x").replace("weir.dev/inject", "app"));
    assert!(has_proxy(&case.ready("after").await));
    assert!(!has_proxy(&case.ready("before").await));
    // And it leaves.
    case.cluster.kubectl(&["label", "namespace", case.namespace, "weir.dev/inject-"]).unwrap();
    case.apply(&pod("left", "x").replace("weir.dev/inject", "app"));
    assert!(!has_proxy(&case.ready("left").await));
    assert!(has_proxy(&case.ready("after").await));
    case.exec("after", &["/app", "fetch", &format!("http://{}:8080/", address(&case.ready("in").await))]);
}

fn address(pod: &Pod) -> String {
    pod.status.as_ref().unwrap().pod_ip.clone().unwrap()
}

/// What a person gets who copies a running pod, or renders manifests with `weir inject` and applies them as well.
async fn what_is_injected_already_is_taken_as_it_is(case: &Case<'_>) {
    mesh::joined(case).await;
    case.apply(&server("first"));
    let first = serde_json::to_value(case.ready("first").await).unwrap();
    let mut template = json!({"metadata": {"annotations": first["metadata"]["annotations"]}, "spec": first["spec"]});
    template["metadata"]["annotations"]
        .as_object_mut()
        .unwrap()
        .remove("kubectl.kubernetes.io/last-applied-configuration");
    template["metadata"]["labels"] = json!({"app": "copies"});
    template["spec"].as_object_mut().unwrap().remove("nodeName");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "copies"},
        "spec": {"selector": {"matchLabels": {"app": "copies"}}, "template": template}});
    case.apply(&deployment.to_string());
    let copies = case.ready_with("app=copies", 1).await;
    assert_eq!(proxies(&copies[0]), 1);
    assert_eq!(json!(proxy(&copies[0])), first["spec"]["initContainers"][0], "as the webhook made it the first time");
    // The copy is a pod of the mesh like the first.
    case.exec("first", &["/app", "fetch", &format!("http://{}:8080/", address(&copies[0]))]);

    // Without the container, what the probe was can not be known: refused, not guessed.
    let mut lost = template;
    lost["spec"]["initContainers"] = json!([]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost"}, "spec": lost["spec"]});
    let said = said::create(case, &pod.to_string(), &[]);
    assert!(!said.ok && said.text.contains("readinessProbe of container app"), "{}", said.text);
}

/// A webhook that knows Kubernetes before 1.29 reads a pod into its types and writes it back: `restartPolicy` of the proxy is gone.
/// Left so, the pod would wait for ever for an init container that never ends.
async fn a_webhook_with_old_types_is_noticed_and_named(case: &Case<'_>) {
    mesh::joined(case).await;
    let others = Others::start(case).await;
    const LOST: &str = "container weir-proxy had lost restartPolicy: Always";
    // Behind ours; and before ours, which is asked again because of it.
    for (name, again) in [("zz-others", "Never"), ("aa-others", "IfNeeded")] {
        let other = others.register(name, "old", again).await;
        let said = said::create(case, &server(name), &[]);
        assert!(said.ok && said.text.contains(LOST), "{name}: {}", said.text);
        let pod = case.ready(name).await;
        assert!(pod.labels().contains_key("seen-by-old"), "{name} was asked");
        assert_eq!(proxy(&pod).and_then(|proxy| proxy.restart_policy.clone()).as_deref(), Some("Always"), "{name}");
        drop(other);
    }
    let (name, other) = ("zz-others", others.register("zz-others", "old", "Never").await);
    // Nobody sees the warning about a workload's pod: the webhook's log has it, with the pod's name.
    let pod = server("x").replace("metadata: {name: x}", "metadata: {labels: {app: web}}");
    let pod = pod.replace("apiVersion: v1, kind: Pod, ", "");
    case.apply(&format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web}}, spec: {{selector: {{matchLabels: {{app: web}}}},
         template: {pod}}}}}"
    ));
    assert!(case.ready_with("app=web", 1).await.iter().all(has_proxy));
    let selector = "--selector=app.kubernetes.io/name=weir-webhook";
    let log = case.cluster.kubectl(&["--namespace", SYSTEM, "logs", selector, "--tail=-1"]).unwrap();
    let of_pod = format!("{}/web-", case.namespace);
    assert!(log.lines().any(|line| line.contains(&of_pod) && line.contains(LOST)), "{log}");
    drop(other);

    // Asked again after ours was asked again, it has the last word, and the API server refuses the pod: it never hangs.
    let other = others.register(name, "old", "IfNeeded").await;
    let said = said::create(case, &server("refused"), &[]);
    assert!(!said.ok && said.text.contains(LOST), "{}", said.text);
    assert!(said.text.contains("may not be set for init containers without restartPolicy=Always"), "{}", said.text);
    drop(other);
}

async fn what_others_add_is_in_the_mesh_as_well(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let others = Others::start(case).await;
    case.apply(&server("peer"));
    for (name, again) in [("zz-others", "Never"), ("aa-others", "IfNeeded")] {
        let other = others.register(name, "adds", again).await;
        case.apply(&server(name));
        // Ready says already that the probe of the added container goes by the proxy: the kubelet's own would be refused.
        let pod = case.ready(name).await;
        let spec = pod.spec.as_ref().unwrap();
        let late = spec.containers.iter().find(|container| container.name == "late").unwrap();
        let probe = late.readiness_probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(probe.path.as_deref(), Some("/app/late/readyz"), "{name}");
        // Environment for everybody stays, a mount does not.
        let ours = json!(proxy(&pod).unwrap());
        assert!(ours["env"].as_array().unwrap().contains(&json!({"name": "LATE", "value": "yes"})), "{name}: {ours}");
        assert!(!ours["volumeMounts"].to_string().contains("/late"), "{name}: {ours}");
        assert!(late.volume_mounts.iter().flatten().any(|mount| mount.mount_path == "/late"), "{name}");
        // What it sends is captured: its peer takes no plaintext.
        let peer = address(&case.ready("peer").await);
        case.kubectl(&["exec", name, "--container=late", "--", "/app", "fetch", &format!("http://{peer}:8080/")]);
        case.exec("peer", &["/app", "fetch", &format!("http://{}:7070/", address(&pod))]);
        let outside = case.cluster.outside().shell(&format!("curl --fail --max-time 5 http://{}:7070/", address(&pod)));
        assert!(outside.is_err(), "{name}: {outside:?}");
        drop(other);
    }
}

/// The proxy has what an application must not have: others can neither take its place nor change what it is.
async fn a_webhook_that_changes_the_proxy_is_undone_or_refused(case: &Case<'_>) {
    mesh::joined(case).await;
    let others = Others::start(case).await;
    case.apply(&server("good"));
    // The mount of the account's token is the API server's, which names it anew each time.
    let written = |pod: &Pod| {
        let mut container: Value = json!(proxy(pod).unwrap());
        let mounts = container["volumeMounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["name"].as_str().unwrap().starts_with("kube-api-access-"));
        container
    };
    let good = written(&case.ready("good").await);
    let other = others.register("zz-others", "tampers", "Never").await;
    case.apply(&server("changed"));
    let pod = case.ready("changed").await;
    assert!(pod.labels().contains_key("seen-by-tampers"), "it was asked");
    assert_eq!(written(&pod), good);
    drop(other);
    let other = others.register("zz-others", "replaces", "Never").await;
    let said = said::create(case, &server("replaced"), &[]);
    let named = "weir-proxy (name of spec.initContainers[0]) is a name of the mesh";
    assert!(!said.ok && said.text.contains(named) && said.text.contains("find the webhook"), "{}", said.text);
    drop(other);
}

pub(crate) const SUITE: Suite = Suite {
    name: "injection",
    title: "Injection, by every way that pods come to be and among other people's webhooks",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        every_kind_of_workload_is_injected,
        single_pods_opt_in_and_bad_labels_are_refused,
        what_is_injected_already_is_taken_as_it_is,
        a_webhook_with_old_types_is_noticed_and_named,
        what_others_add_is_in_the_mesh_as_well,
        a_webhook_that_changes_the_proxy_is_undone_or_refused,
    ],
};
