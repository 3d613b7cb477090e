//! Fails closed: whatever happens to the plugin on a node, no pod of the mesh serves or calls around its proxy, pods outside the mesh
//! start, and everything heals without a person.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use weir_cluster::{
    Case, Suite, cases, is_ready,
    mesh::{self, SYSTEM},
    suite::LIMIT,
    until,
};
use weir_mesh::names::PROXY_CONTAINER;

const CONFLIST: &str = "/etc/cni/net.d/00-weir.conflist";
const PLUGIN: &str = "/opt/cni/bin/weir-cni";
/// How long a part of the cluster may take to come back.
const PATIENCE: Duration = Duration::from_secs(90);
/// Damage is repaired within this time.
const REPAIR: Duration = Duration::from_secs(1);

/// A server on a node, in the mesh or outside of it.
fn server(name: &str, node: &str, mesh: bool) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, weir.dev/inject: '{mesh}'}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: weir.test/app:1
    args: [serve]
    ports: [{{name: http, containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"
    )
}

async fn agents(case: &Case<'_>) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(case.cluster.client(), SYSTEM);
    let params = ListParams::default().labels("app.kubernetes.io/name=weir-cni");
    pods.list(&params).await.unwrap().items
}

async fn agents_are_gone(case: &Case<'_>) {
    until("the agents have ended", async || agents(case).await.is_empty()).await;
}

async fn agents_are_back(case: &Case<'_>) {
    until("the agents are back", async || {
        let agents = agents(case).await;
        agents.len() == 2 && agents.iter().all(is_ready)
    })
    .await;
}

/// Keeps the agents off all nodes, or lets them come back.
fn agents_held_off(case: &Case<'_>, held: bool) {
    let wanted = if held { r#""there-is-none""# } else { "null" };
    let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"weir.test/node":{wanted}}}}}}}}}}}"#);
    let patch = ["--namespace", SYSTEM, "patch", "daemonset", "weir-cni", "--type=merge", "--patch", &patch];
    case.cluster.kubectl(&patch).unwrap();
}

fn address(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap()
}

/// Files of the plugin are where they were: nothing has come, nothing has gone.
fn files_are_whole(case: &Case<'_>) {
    for node in case.cluster.nodes() {
        node.shell(&format!("grep -q weir-cni {CONFLIST} && test -x {PLUGIN}")).unwrap();
    }
}

/// Point (a): the pods of the DaemonSet and the DaemonSet itself are gone, what they had installed is there.
async fn without_the_agents_new_pods_start_and_are_in_the_mesh(case: &Case<'_>) {
    mesh::installed(case).await;
    mesh::strict(case);
    case.cluster.kubectl(&["--namespace", SYSTEM, "delete", "daemonset", "weir-cni"]).unwrap();
    agents_are_gone(case).await;
    files_are_whole(case);
    for (name, node, in_mesh) in [
        ("mesh-one", "node1", true),
        ("mesh-two", "node2", true),
        ("plain-one", "node1", false),
        ("plain-two", "node2", false),
    ] {
        case.apply(&server(name, node, in_mesh));
    }
    for name in ["mesh-one", "mesh-two", "plain-one", "plain-two"] {
        case.ready(name).await;
    }
    // Under STRICT: by mutual TLS from the mesh, and not otherwise.
    answers(case, "mesh-one", "mesh-two").await;
    answers(case, "plain-one", "plain-two").await;
    assert_refused(case, "plain-one", "http://mesh-two/");

    // Half of it gone, and nobody there to repair it: the runtime starts nothing, and says what is missing.
    case.cluster.node(1).shell(&format!("rm {PLUGIN}")).unwrap();
    case.apply(&server("mesh-late", "node1", true));
    case.apply(&server("plain-late", "node1", false));
    for name in ["mesh-late", "plain-late"] {
        until(&format!("the runtime says what {name} lacks"), async || {
            events(case, name)
                .await
                .iter()
                .any(|event| event.contains("weir-cni") && event.contains("FailedCreatePodSandBox"))
        })
        .await;
    }
    // As an operator would have it back.
    mesh::install(case.cluster, &[]).unwrap();
    agents_are_back(case).await;
    for name in ["mesh-late", "plain-late"] {
        case.ready(name).await;
    }
    answers(case, "mesh-late", "mesh-two").await;
}

/// What the events of a pod say.
async fn events(case: &Case<'_>, pod: &str) -> Vec<String> {
    let params = ListParams::default().fields(&format!("involvedObject.name={pod}"));
    let events = case.api::<Event>().list(&params).await.unwrap();
    let text = |event: &Event| {
        format!("{}: {}", event.reason.as_deref().unwrap_or("?"), event.message.as_deref().unwrap_or("?"))
    };
    events.iter().map(text).collect()
}

/// A Service answers; it may be news to the node that it has an endpoint.
async fn answers(case: &Case<'_>, from: &str, service: &str) {
    let url = format!("http://{service}/");
    let fetch = ["--namespace", case.namespace, "exec", from, "--", "/app", "fetch", "--seconds=3", &url];
    until(&format!("{service} answers {from}"), async || {
        case.cluster.kubectl(&fetch).is_ok_and(|said| said.contains(&format!(r#""pod":"{service}""#)))
    })
    .await;
}

fn assert_refused(case: &Case<'_>, from: &str, url: &str) {
    let called =
        case.cluster.kubectl(&["--namespace", case.namespace, "exec", from, "--", "/app", "fetch", "--seconds=3", url]);
    assert!(called.is_err(), "{url} answers to plaintext: {called:?}");
}

/// What can be done to a file, as a script for `$f`.
const DAMAGE: [(&str, &str); 6] = [
    ("emptied", ": > $f"),
    ("cut in half", "truncate -s $(( $(stat -c %s $f) / 2 )) $f"),
    ("overwritten in place", "printf x | dd of=$f bs=1 seek=100 conv=notrunc 2>/dev/null"),
    ("deleted", "rm $f"),
    ("replaced by another", "printf '#!/bin/sh\\nexit 0\\n' > $f.other; chmod 755 $f.other; mv $f.other $f"),
    ("made unreadable", "chmod 000 $f"),
];

/// Point (b).
async fn damaged_files_are_repaired_within_a_second(case: &Case<'_>) {
    mesh::installed(case).await;
    agents_are_back(case).await;
    let node = case.cluster.node(1);
    for file in [CONFLIST, PLUGIN] {
        for (damage, script) in DAMAGE {
            // Measured beside the file: neither this process nor an API is on the way. Prints milliseconds.
            let measured = node
                .shell(&format!(
                    "f={file}; cp -p $f /run/whole; before=$(stat -c %i $f); state() {{ stat -c '%a %s %u' $1 2>/dev/null; }}
                     {script}
                     begun=$(date +%s%N)
                     while ! cmp -s $f /run/whole || [ \"$(state $f)\" != \"$(state /run/whole)\" ]; do
                       test $(( $(date +%s%N) - begun )) -lt 15000000000 || {{ ls -l $f; echo never; exit 1; }}
                     done
                     echo $(( ($(date +%s%N) - begun) / 1000000 ))
                     test $(stat -c %i $f) != $before || {{ echo 'not another file: it was not damaged'; exit 1; }}"
                ))
                .unwrap_or_else(|error| panic!("{file} {damage}: {error:#}"));
            let took = Duration::from_millis(measured.trim().parse().unwrap());
            println!("  {file} {damage}: repaired after {} ms", took.as_millis());
            assert!(took < REPAIR, "{file} {damage}: {took:?}");
        }
    }
    // Both as good as before.
    mesh::strict(case);
    case.apply(&server("one", "node1", true));
    case.apply(&server("two", "node2", true));
    case.ready("one").await;
    case.ready("two").await;
    answers(case, "one", "two").await;
}

/// A node's power goes and comes back: its pods' processes, networks and /run are gone, and so are, as on nodes whose system is an
/// image, the files of the plugin.
async fn reboot_without_the_plugin(case: &Case<'_>, number: usize) {
    let node = case.cluster.node(number);
    case.cluster.stop(&format!("node{number}/kubelet")).unwrap();
    node.shell(
        "ctr='ctr --namespace k8s.io'
         for id in $($ctr tasks ls --quiet); do $ctr tasks kill --all --signal SIGKILL $id || true; done
         for i in $(seq 100); do $ctr tasks ls | grep -q RUNNING || break; sleep 0.1; done
         ! $ctr tasks ls | grep RUNNING",
    )
    .unwrap();
    case.cluster.stop(&format!("node{number}/containerd")).unwrap();
    node.shell(&format!(
        "for netns in /run/netns/*; do umount $netns 2>/dev/null || true; rm -f $netns; done
         rm -rf /run/weir-cni {CONFLIST} {PLUGIN}"
    ))
    .unwrap();
    case.cluster.start_again(&format!("node{number}/containerd")).unwrap();
    case.cluster.start_again(&format!("node{number}/kubelet")).unwrap();
}

fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
        .find(|status| status.name == container)
}

/// Why the proxy of a pod has ended, as `kubectl describe pod` shows it.
fn termination_message(pod: &Pod) -> Option<String> {
    let status = status(pod, PROXY_CONTAINER)?;
    let ended =
        |state: &Option<k8s_openapi::api::core::v1::ContainerState>| state.as_ref()?.terminated.clone()?.message;
    ended(&status.state).or_else(|| ended(&status.last_state))
}

/// Network namespace and address of a pod whose proxy runs, as its node's runtime has them: the API does not say while the kubelet
/// waits for the proxy.
async fn network_of(case: &Case<'_>, number: usize, pod: &str) -> (String, String) {
    let of = |kind: &str| {
        let pod = format!(
            r#"labels."io.kubernetes.pod.namespace"=={},labels."io.kubernetes.pod.name"=={pod}"#,
            case.namespace
        );
        format!(r#"$ctr containers ls --quiet '{pod},labels."io.cri-containerd.kind"=={kind}'"#)
    };
    let script = format!(
        "ctr='ctr --namespace k8s.io'; running=$($ctr tasks ls)
         up() {{ echo \"$running\" | grep \"^$1 \" | grep -q RUNNING; }}
         for sandbox in $({}); do
           up $sandbox || continue
           for container in $({}); do
             up $container || continue
             netns=$($ctr containers info $sandbox | grep -o '/[a-z/]*/netns/[^\"]*' | head -n 1)
             nsenter --net=$netns ip -oneline -4 address show eth0 | sed \"s|.*inet \\([0-9.]*\\)/.*|$netns \\1|\"
           done
         done",
        of("sandbox"),
        of("container"),
    );
    let mut found = None;
    until(&format!("the proxy of {pod} runs"), async || {
        let said = case.cluster.node(number).shell(&script).unwrap_or_default();
        found = said.lines().next().and_then(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned()));
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Runs a program of the node in a pod's network, as a user whom no rule exempts.
fn within(case: &Case<'_>, number: usize, netns: &str, command: &str) -> anyhow::Result<String> {
    case.cluster.node(number).shell(&format!("nsenter --net={netns} {command}"))
}

/// Point (c).
async fn pods_that_started_without_the_plugin_stay_closed_until_healed(case: &Case<'_>) {
    mesh::installed(case).await;
    mesh::strict(case);
    case.apply(&server("target", "node1", true));
    case.apply(&server("plain-target", "node1", false));
    case.apply(&server("old", "node2", true));
    case.apply(&server("plain-old", "node2", false));
    for name in ["target", "plain-target", "old", "plain-old"] {
        case.ready(name).await;
    }
    let (strict, plain) = (address(&case.ready("target").await), address(&case.ready("plain-target").await));

    agents_held_off(case, true);
    agents_are_gone(case).await;
    reboot_without_the_plugin(case, 2).await;
    case.apply(&server("fresh", "node2", true));
    case.apply(&server("plain-fresh", "node2", false));

    // Outside the mesh nobody notices.
    let restarted = |pod: &Pod| status(pod, "app").is_some_and(|app| app.restart_count > 0) && is_ready(pod);
    case.until("plain-old", "is ready again", |pod: &Pod| restarted(pod).then_some(())).await;
    case.ready("plain-fresh").await;
    answers(case, "plain-fresh", "plain-old").await;

    let pods: Api<Pod> = case.api();
    let mut told = Vec::new();
    for name in ["old", "fresh"] {
        let (netns, address) = network_of(case, 2, name).await;
        // Were there an application, nothing would keep it inside: its calls would go out as they are, around access rules ...
        let out = within(case, 2, &netns, &format!("curl --silent --fail http://{plain}:8080/"));
        let said = out.unwrap();
        assert!(said.contains(&format!(r#""peer":"{address}""#)), "it is not redirected: {said}");
        let strict = format!("curl --silent --show-error --fail --max-time 3 http://{strict}:8080/");
        assert!(within(case, 2, &netns, &strict).is_err(), "no mutual TLS from here");
        // ... and so would be calls to it.
        let rules = within(case, 2, &netns, "nft list ruleset").unwrap();
        assert!(!rules.contains("weir"), "{rules}");
        told.push((name, address));
    }
    let end = Instant::now() + PATIENCE;
    let mut why: Vec<Option<String>> = vec![None; told.len()];
    while why.iter().any(Option::is_none) {
        for (index, (name, address)) in told.iter().enumerate() {
            let pod = pods.get(name).await.unwrap();
            assert!(!is_ready(&pod), "{name} gets traffic");
            let app = status(&pod, "app").and_then(|app| app.state.as_ref()?.running.clone());
            assert!(app.is_none(), "the application of {name} runs without a redirect");
            assert_refused(case, "plain-fresh", &format!("http://{address}:8080/"));
            why[index] =
                why[index].take().or_else(|| termination_message(&pod).filter(|text| text.contains("redirect")));
        }
        assert!(Instant::now() < end, "nobody says why: {why:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for ((name, _), why) in told.iter().zip(why.iter().flatten()) {
        println!("  {name} says: {why}");
        assert!(why.contains("weir-cni"), "what to do: {why}");
    }
    for (name, _) in &told {
        until(&format!("the events of {name} say why"), async || {
            events(case, name).await.iter().any(|event| event.starts_with("ProxyEnded") && event.contains("weir-cni"))
        })
        .await;
    }

    // The agent comes, and that is all.
    let before: Vec<Option<String>> =
        vec![pods.get("old").await.unwrap().uid(), pods.get("fresh").await.unwrap().uid()];
    agents_held_off(case, false);
    agents_are_back(case).await;
    let healed = Instant::now();
    for (name, _) in &told {
        case.ready(name).await;
    }
    println!("  ready {:.0} s after the agent", healed.elapsed().as_secs_f64());
    assert_eq!(before, [pods.get("old").await.unwrap().uid(), pods.get("fresh").await.unwrap().uid()], "the same pods");
    for name in ["old", "fresh"] {
        answers(case, name, "target").await;
        assert_refused(case, "plain-fresh", &format!("http://{name}/"));
    }
}

pub(crate) const SUITE: Suite = Suite {
    name: "closed",
    title: "No pod of the mesh serves or calls in plaintext unnoticed, whatever happens to the plugin",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        without_the_agents_new_pods_start_and_are_in_the_mesh,
        damaged_files_are_repaired_within_a_second,
        pods_that_started_without_the_plugin_stay_closed_until_healed,
    ],
};
