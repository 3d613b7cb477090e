//! Nothing is lost: what a cluster's users and Weir's own upgrades do to it, under load, and no request fails.
//!
//! Each step is counted on its own by the clients, which never ask twice, and each is shown to have happened. Where the mesh is what
//! keeps the requests, the same steps are taken without it, and lose some.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use weir_cluster::{
    Case, Suite, cases, is_ready,
    load::{Load, Totals},
    mesh::{self, RELEASE, SYSTEM},
    until,
};

fn rollout(case: &Case<'_>, object: &str) {
    case.kubectl(&["rollout", "status", object, "--timeout=90s"]);
}

/// Pods of a part of Weir, by name.
async fn part(case: &Case<'_>, part: &str) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(case.cluster.client(), SYSTEM);
    let params = ListParams::default().labels(&format!("app.kubernetes.io/name={part}"));
    pods.list(&params).await.map(|pods| pods.items).unwrap_or_default()
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name_any()).collect()
}

/// New servers in the place of all old ones.
async fn renew(case: &Case<'_>, load: &Load<'_>, replicas: usize) {
    let before = load.servers().await;
    case.kubectl(&["rollout", "restart", "deployment/server"]);
    rollout(case, "deployment/server");
    let after = load.settled(replicas).await;
    assert!(before.is_disjoint(&after), "the same pods as before: {before:?}, {after:?}");
}

/// A rolling update; and 1 to 5 and back.
async fn update_and_scale(case: &Case<'_>, load: &mut Load<'_>) -> [(&'static str, Totals); 2] {
    let before = load.servers().await;
    renew(case, load, 2).await;
    let update = load.window();
    assert!(update.by_pod.len() >= 4, "old and new pods have served: {:?}", update.by_pod);
    assert!(before.iter().all(|pod| update.by_pod.contains_key(pod)));
    for replicas in [1, 5, 1] {
        case.kubectl(&["scale", "deployment/server", &format!("--replicas={replicas}")]);
        load.settled(replicas).await;
    }
    let scale = load.window();
    assert!(scale.by_pod.len() >= 6, "{:?}", scale.by_pod);
    [("rolling update", update), ("scale 1 -> 5 -> 1", scale)]
}

async fn updates_scaling_and_a_drained_node_lose_nothing(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let mut load = Load::start(case, 2).await;
    for (what, totals) in update_and_scale(case, &mut load).await {
        totals.assert_nothing_lost(what);
    }
    case.kubectl(&["scale", "deployment/server", "--replicas=2"]);
    let before = load.settled(2).await;
    load.window().assert_nothing_lost("scale 1 -> 2");
    let drained = case.kubectl(&["drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s"]);
    assert!(drained.contains("pod/server-") && drained.contains("node/node2 drained"), "{drained}");
    let after = load.settled(2).await;
    case.kubectl(&["uncordon", "node2"]);
    assert!(!before.is_subset(&after), "{before:?}, {after:?}");
    load.window().assert_nothing_lost("node drain");
    load.stop().assert_none_failed("the rest");
    load.assert_posted_once();
}

/// What the mesh is good for: the same pods, the same steps, by kube-proxy.
async fn the_same_without_the_mesh_loses_requests(case: &Case<'_>) {
    let mut load = Load::start(case, 2).await;
    for (what, totals) in update_and_scale(case, &mut load).await {
        let what = format!("{what} without the mesh");
        totals.say(&what);
        totals.assert_ran(&what);
        assert!(totals.failed > 0, "{what}: nothing was lost either, so the test shows nothing");
        println!("    for example: {}", totals.reasons.first().map_or("?", |told| told["why"].as_str().unwrap_or("?")));
    }
}

/// Deletes a part's pods, all at once, and waits for the next ones.
async fn replace(case: &Case<'_>, name: &str) {
    let before = part(case, name).await;
    let label = format!("app.kubernetes.io/name={name}");
    case.cluster.kubectl(&["--namespace", SYSTEM, "delete", "pods", "--selector", &label, "--wait=false"]).unwrap();
    let gone = names(&before);
    until(&format!("other pods of {name}"), async || {
        let now = part(case, name).await;
        now.len() == before.len() && names(&now).is_disjoint(&gone) && now.iter().all(is_ready)
    })
    .await;
}

async fn weirs_own_pods_are_deleted_and_nothing_is_lost(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let mut load = Load::start(case, 2).await;
    for name in ["weir-control", "weir-webhook", "weir-cni"] {
        // In the middle of an update, whose pods need every part of Weir to start.
        let before = load.servers().await;
        case.kubectl(&["rollout", "restart", "deployment/server"]);
        replace(case, name).await;
        rollout(case, "deployment/server");
        let after = load.settled(2).await;
        assert!(before.is_disjoint(&after));
        load.window().assert_nothing_lost(&format!("pods of {name} deleted during an update"));
    }
    load.stop().assert_none_failed("the rest");
    load.assert_posted_once();
}

async fn a_restarted_container_runtime_loses_nothing(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let mut load = Load::start(case, 2).await;
    let containerd = || case.cluster.node(1).shell("ctr version >/dev/null 2>&1 && echo up || echo down").unwrap();
    case.cluster.stop("node1/containerd").unwrap();
    assert_eq!(containerd().trim(), "down");
    case.cluster.start_again("node1/containerd").unwrap();
    until("containerd is back", async || containerd().trim() == "up").await;
    nodes_are_ready(case).await;
    renew(case, &load, 2).await;
    load.window().assert_nothing_lost("containerd restarted, and an update behind it");
    load.stop().assert_none_failed("the rest");
    load.assert_posted_once();
}

async fn nodes_are_ready(case: &Case<'_>) {
    let nodes: Api<Node> = Api::all(case.cluster.client());
    until("the nodes are ready", async || {
        nodes.list(&ListParams::default()).await.is_ok_and(|nodes| nodes.iter().all(ready_node))
    })
    .await;
}

async fn an_api_server_that_is_away_for_30_s_loses_nothing(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let mut load = Load::start(case, 2).await;
    case.cluster.stop("apiserver").unwrap();
    let stopped = Instant::now();
    // How long it is away is what the test is about.
    while stopped.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(case.cluster.kubectl(&["get", "--raw=/readyz", "--request-timeout=1s"]).is_err(), "it answers");
    }
    case.cluster.start_again("apiserver").unwrap();
    until("the API server is back", async || case.cluster.kubectl(&["get", "--raw=/readyz"]).is_ok()).await;
    let absent = load.window();
    assert!(absent.seconds >= 30.0, "{absent:?}");
    absent.assert_nothing_lost("API server stopped for 30 s");
    // The control plane has found back: it tells proxies of a Service that is new. Its endpoints are made by hand, because
    // Kubernetes' own programs take up to half a minute each until they ask again.
    let back = Instant::now();
    let server = case.ready_with("app=server", 2).await.remove(0);
    println!("  servers are known as ready after {:.1} s", back.elapsed().as_secs_f64());
    let address = server.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap();
    case.apply(&format!(
        "
{{apiVersion: v1, kind: Service, metadata: {{name: later}}, spec: {{ports: [{{name: http, port: 80}}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: later, labels: {{kubernetes.io/service-name: later}}}},
  addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{{addresses: [{address}], conditions: {{ready: true}},
  targetRef: {{kind: Pod, name: {name}, namespace: {namespace}}}}}]}}
",
        name = server.name_any(),
        namespace = case.namespace,
    ));
    let later = case.kubectl(&["get", "service", "later", "--output=jsonpath={.spec.clusterIP}"]);
    let (client, url) = (load.clients()[0].clone(), format!("http://{later}/"));
    let fetch = ["--namespace", case.namespace, "exec", &client, "--", "/app", "fetch", "--seconds=3", &url];
    let asked = Instant::now();
    until("proxies know of a new Service", async || {
        case.cluster.kubectl(&fetch).is_ok_and(|said| said.contains(&server.name_any()))
    })
    .await;
    println!("  a new Service is known after {:.1} s", asked.elapsed().as_secs_f64());
    load.stop().assert_none_failed("after it");
    load.assert_posted_once();
    // For the tests to come; a kubelet that starts may call its pods unready for a moment, which nobody asks for here.
    for program in
        ["controller-manager", "scheduler", "node1/kubelet", "node2/kubelet", "node1/kube-proxy", "node2/kube-proxy"]
    {
        case.cluster.restart(program).unwrap();
    }
    nodes_are_ready(case).await;
    let dns = ["--namespace=kube-system", "delete", "pods", "--selector=k8s-app=kube-dns", "--wait=false"];
    case.cluster.kubectl(&dns).unwrap();
    let fetch = ["--namespace", case.namespace, "exec", &client, "--", "/app", "fetch", "--seconds=3", "http://later/"];
    until("the cluster's DNS has found back as well", async || case.cluster.kubectl(&fetch).is_ok()).await;
}

fn ready_node(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Every part of Weir is another version then, as after an upgrade.
const OTHER: [&str; 5] = [
    "proxy.log=debug",
    "controlPlane.log=debug",
    "webhook.log=debug",
    "cni.podAnnotations.version=other",
    "proxy.drainSeconds=20",
];

async fn weir_is_upgraded_and_rolled_back_and_nothing_is_lost(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    let mut load = Load::start(case, 2).await;
    let parts = async || {
        let mut all = BTreeMap::new();
        for name in ["weir-control", "weir-webhook", "weir-cni"] {
            all.insert(name, names(&part(case, name).await));
        }
        all
    };
    let mut before = parts().await;
    for step in ["upgrade", "rollback"] {
        match step {
            "upgrade" => mesh::install(case.cluster, &OTHER),
            _ => case.cluster.helm(&["rollback", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "150s"]),
        }
        .unwrap();
        until("the pods of the version before have ended", async || {
            parts().await.iter().all(|(name, pods)| pods.len() == 2 && pods.is_disjoint(&before[name]))
        })
        .await;
        before = parts().await;
        renew(case, &load, 2).await;
        load.window().assert_nothing_lost(&format!("helm {step} of Weir, and an update behind it"));
    }
    load.stop().assert_none_failed("the rest");
    load.assert_posted_once();
}

/// A CA's key and certificate, PEM, as an operator brings them.
struct Ca {
    key: String,
    certificate: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn secrets(case: &Case<'_>) -> Api<Secret> {
    Api::namespaced(case.cluster.client(), SYSTEM)
}

async fn ca_in_use(case: &Case<'_>) -> Ca {
    let data = secrets(case).get("weir-ca").await.unwrap().data.unwrap();
    let text = |name: &str| String::from_utf8(data[name].0.clone()).unwrap();
    Ca { key: text("ca-key.pem"), certificate: text("ca-cert.pem") }
}

/// Signs with this CA's key; all pods are to trust these.
async fn put_ca(case: &Case<'_>, signs: &Ca, trusted: &[&Ca]) {
    let bundle: String = trusted.iter().map(|ca| ca.certificate.as_str()).collect();
    let new = serde_json::json!({"stringData": {"ca-key.pem": signs.key, "ca-cert.pem": bundle}});
    secrets(case).patch("weir-ca", &PatchParams::default(), &Patch::Merge(&new)).await.unwrap();
    let maps: Api<ConfigMap> = case.api();
    until("the control plane has written the roots into the namespace", async || {
        let map = maps.get("weir-root").await.unwrap();
        let roots = map.data.and_then(|data| data.get("root-cert.pem").cloned()).unwrap_or_default();
        let same = |ca: &&Ca| roots.contains(ca.certificate.trim());
        roots.matches("BEGIN CERTIFICATE").count() == trusted.len() && trusted.iter().all(same)
    })
    .await;
    // A kubelet looks at a pod's ConfigMaps every minute or so, and whenever the pod changes.
    let changed = format!("test/roots={}", trusted.len());
    case.kubectl(&["annotate", "pods", "--all", "--overwrite", &changed]);
    webhooks_see(case, &changed);
}

/// The webhook's pods have a certificate of the new CA too, and new pods wait for their kubelets to bring it.
fn webhooks_see(case: &Case<'_>, changed: &str) {
    let webhook = ["--namespace", SYSTEM, "annotate", "pods", "--overwrite", "--selector"];
    let webhook = [&webhook[..], &["app.kubernetes.io/name=weir-webhook", changed]].concat();
    case.cluster.kubectl(&webhook).unwrap();
}

/// What the proxies of all pods say of their certificates: serial number of their own, number of roots.
async fn certificates(case: &Case<'_>) -> BTreeMap<String, (String, usize)> {
    let pods = case.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    let ready: BTreeSet<String> = pods.iter().filter(|pod| is_ready(pod)).map(|pod| pod.name_any()).collect();
    ready
        .into_iter()
        .map(|pod| {
            let said = case.exec(&pod, &["/app", "fetch", "http://127.0.0.1:15000/certs"]);
            let said: serde_json::Value = serde_json::from_str(&said).unwrap();
            let serial = said["certificate"]["serial"].as_str().unwrap_or_default().to_owned();
            (pod, (serial, said["roots"].as_array().map_or(0, Vec::len)))
        })
        .collect()
}

async fn trusts(case: &Case<'_>, roots: usize) {
    until(&format!("all pods trust {roots} roots"), async || {
        certificates(case).await.values().all(|(_, trusted)| *trusted == roots)
    })
    .await;
}

/// Certificates that live for 30 s instead of a day: a rotation waits for them.
async fn short_lives(case: &Case<'_>) {
    let patch =
        r#"[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--certificate-ttl=30"}]"#;
    let system = ["--namespace", SYSTEM];
    let patch = ["patch", "deployment", "weir-control", "--type=json", "--patch", patch];
    case.cluster.kubectl(&[&system[..], &patch].concat()).unwrap();
    let status = ["rollout", "status", "deployment/weir-control", "--timeout=90s"];
    case.cluster.kubectl(&[&system[..], &status].concat()).unwrap();
}

/// As docs/operate.md has it.
async fn the_root_is_rotated_and_nothing_is_lost(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::strict(case);
    short_lives(case).await;
    let mut load = Load::start(case, 2).await;
    let (old, new) = (ca_in_use(case).await, Ca::new("the next one"));

    put_ca(case, &old, &[&old, &new]).await;
    trusts(case, 2).await;
    load.window().assert_nothing_lost("both roots are trusted, the old one signs");

    put_ca(case, &new, &[&new, &old]).await;
    let before = certificates(case).await;
    // In the middle of it pods of both kinds meet.
    renew(case, &load, 2).await;
    until("all pods have certificates of the new root", async || {
        certificates(case).await.iter().all(|(pod, (serial, _))| before.get(pod).is_none_or(|(old, _)| old != serial))
    })
    .await;
    load.window().assert_nothing_lost("the new root signs, and an update");

    put_ca(case, &new, &[&new]).await;
    trusts(case, 1).await;
    renew(case, &load, 2).await;
    load.window().assert_nothing_lost("the old root is gone, and an update");
    load.stop().assert_none_failed("the rest");
    load.assert_posted_once();
}

pub(crate) const SUITE: Suite = Suite {
    name: "continuity",
    title: "Nothing lost under 200 requests a second, whatever is updated, deleted, drained or restarted",
    prepare: mesh::options,
    limit: Duration::from_secs(600),
    alone: false,
    tests: cases![
        updates_scaling_and_a_drained_node_lose_nothing,
        the_same_without_the_mesh_loses_requests,
        weirs_own_pods_are_deleted_and_nothing_is_lost,
        a_restarted_container_runtime_loses_nothing,
        an_api_server_that_is_away_for_30_s_loses_nothing,
        weir_is_upgraded_and_rolled_back_and_nothing_is_lost,
        // It leaves a CA that pods of other tests would not trust: last.
        the_root_is_rotated_and_nothing_is_lost,
    ],
};
