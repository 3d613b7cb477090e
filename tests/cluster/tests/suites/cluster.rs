//! The cluster itself, before any mesh is on it: what the tests of the mesh stand on.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a step that fails is a failed test

use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Endpoints, Node, Pod},
};
use kube::{
    Api,
    api::ListParams,
    runtime::watcher::{self, watcher},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weir_cluster::{Case, Options, Suite, cases, pods::SERVERS, suite::LIMIT, until};

async fn nodes_are_ready_within_a_minute(case: &Case<'_>) {
    let nodes: Api<Node> = Api::all(case.cluster.client());
    let nodes = nodes.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(nodes.len(), 2);
    let took = case.cluster.facts().took_ms;
    assert!(took < 60_000, "the cluster took {took} ms");
}

async fn pods_reach_each_other_across_nodes(case: &Case<'_>) {
    case.apply(SERVERS);
    let pods = case.ready_with("app=web", 2).await;
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
    let address = |pod: &Pod| pod.status.as_ref().unwrap().pod_ip.clone().unwrap();
    let node = |pod: &Pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    assert_ne!(node(&pods[0]), node(&pods[1]));
    let fetch = |from: &Pod, url: &str| case.exec(&name(from), &["/app", "fetch", url]);

    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        let said = fetch(from, &format!("http://{}:8080/", address(to)));
        assert!(said.contains(&name(to)), "{said}");
        // The address that the other side sees is the pod's own: nothing on the way hides it.
        assert!(said.contains(&format!("\"peer\":\"{}\"", address(from))), "{said}");
    }
    case.until("web", "has both pods", |endpoints: &Endpoints| {
        let subsets = endpoints.subsets.as_deref().unwrap_or_default();
        (subsets.iter().flat_map(|subset| subset.addresses.iter().flatten()).count() == 2).then_some(())
    })
    .await;
    let service = case.kubectl(&["get", "service", "web", "--output=jsonpath={.spec.clusterIP}"]);
    for url in [
        format!("http://{service}/"),
        "http://web/".into(),
        format!("http://web.{}.svc.cluster.local/", case.namespace),
    ] {
        // The node's kube-proxy learns of endpoints after everybody who asks the API server.
        let asked = ["--namespace", case.namespace, "exec", &name(&pods[0]), "--", "/app", "fetch", &url];
        until(&format!("{url} answers"), async || case.cluster.kubectl(&asked).is_ok()).await;
        let mut seen = std::collections::BTreeSet::new();
        // Each connection goes to either pod with the same probability: 60 miss one of them once in 10^18 times.
        for _ in 0..60 {
            let said = fetch(&pods[0], &url);
            seen.extend(pods.iter().map(&name).filter(|pod| said.contains(pod.as_str())));
            if seen.len() == 2 {
                break;
            }
        }
        assert_eq!(seen.len(), 2, "{url} answered from {seen:?} only");
    }
}

async fn jobs_complete(case: &Case<'_>) {
    case.apply(
        "{apiVersion: batch/v1, kind: Job, metadata: {name: once}, spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never,
          containers: [{name: app, image: 'weir.test/app:1', command: [/bin/busybox, echo, done]}]}}}}",
    );
    case.until("once", "completes", |job: &Job| job.status.as_ref()?.succeeded.filter(|&count| count == 1)).await;
    assert_eq!(case.kubectl(&["logs", "job/once"]), "done\n");
}

async fn exec_logs_and_port_forward_work(case: &Case<'_>) {
    case.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {terminationGracePeriodSeconds: 1,
          containers: [{name: app, image: 'weir.test/app:1', args: [serve, --version=v7]}]}}",
    );
    case.ready("web").await;
    assert_eq!(case.exec("web", &["/bin/busybox", "hostname"]), "web\n");
    let log = case.kubectl(&["logs", "web"]);
    assert!(log.contains("listening on"), "{log}");

    let mut forward = case.api::<Pod>().portforward("web", &[8080]).await.unwrap();
    let mut stream = forward.take_stream(8080).unwrap();
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("x-version: v7"), "{answer}");
}

async fn programs_stop_and_start_again(case: &Case<'_>) {
    case.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: stays}, spec: {terminationGracePeriodSeconds: 1, nodeName: node1,
          containers: [{name: app, image: 'weir.test/app:1', args: [serve]}]}}",
    );
    let before = case.ready("stays").await;
    let started = |pod: &Pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        Some((statuses.first()?.container_id.clone()?, statuses.first()?.restart_count))
    };
    for program in ["node1/containerd", "node1/kubelet", "apiserver"] {
        case.cluster.restart(program).unwrap();
    }
    // A container outlives all of them, and can be entered when they are back.
    let after = case.until("stays", "is ready", |pod: &Pod| weir_cluster::is_ready(pod).then(|| pod.clone())).await;
    assert_eq!(started(&before), started(&after));
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match case.cluster.kubectl(&["--namespace", case.namespace, "exec", "stays", "--", "/bin/busybox", "true"]) {
            Ok(_) => break,
            Err(error) => assert!(std::time::Instant::now() < end, "{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(case.cluster.restart("node9/kubelet").is_err());
}

async fn lists_are_streamed(case: &Case<'_>) {
    let config = watcher::Config::default().streaming_lists();
    let nodes = watcher(Api::<Node>::all(case.cluster.client()), config);
    let first = nodes.take_while(|event| {
        let goes_on = !matches!(event.as_ref().unwrap(), watcher::Event::InitDone);
        std::future::ready(goes_on)
    });
    let seen = tokio::time::timeout(Duration::from_secs(5), first.count()).await.expect("a list comes to its end");
    assert_eq!(seen, 3, "a start and two nodes");
}

async fn helm_works(case: &Case<'_>) {
    let chart = case.cluster.layout().root().join("chart");
    std::fs::create_dir_all(chart.join("templates")).unwrap();
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: tiny\nversion: 0.1.0\n").unwrap();
    let template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-made'}\n";
    std::fs::write(chart.join("templates/map.yaml"), template).unwrap();
    let chart = chart.to_str().unwrap();
    case.cluster.helm(&["install", "first", chart, "--namespace", case.namespace]).unwrap();
    assert_eq!(case.kubectl(&["get", "configmap", "first-made", "--output=name"]), "configmap/first-made\n");
    case.cluster.helm(&["uninstall", "first", "--namespace", case.namespace]).unwrap();
}

pub(crate) const SUITE: Suite = Suite {
    name: "cluster",
    title: "The cluster of the tests",
    prepare: || Ok(Options::default()),
    limit: LIMIT,
    alone: false,
    tests: cases![
        nodes_are_ready_within_a_minute,
        pods_reach_each_other_across_nodes,
        jobs_complete,
        exec_logs_and_port_forward_work,
        lists_are_streamed,
        helm_works,
        programs_stop_and_start_again,
    ],
};
