//! What the mesh costs a pod until it is ready, and the API server for each pod. Best measured where nothing else runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use weir_cluster::{
    Case, Suite, cases, is_ready,
    mesh::{self, SYSTEM},
};

/// Pods of each kind, and how often so many of them at most.
const ROUNDS: u32 = 20;
const SERIES: usize = 3;
/// Later than a pod with a sidecar that does nothing.
const BAR: Duration = Duration::from_millis(150);

/// How often a kubelet looks at its containers, and so far a pod became ready with such a look. Each round begins at another point between
/// two of them, or all of a kind would be a whole second late for a few milliseconds.
const LOOK: Duration = Duration::from_secs(1);

/// The kinds that are compared.
const KINDS: [&str; 3] = ["plain", "sidecar", "weir"];

fn pod(kind: &str, name: &str) -> Pod {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "app", "image": "weir.test/app:1", "args": ["serve"]}],
    });
    if kind == "sidecar" {
        spec["initContainers"] =
            json!([{"name": "nothing", "image": "weir.test/app:1", "args": ["pause"], "restartPolicy": "Always"}]);
    }
    let inject = if kind == "weir" { "true" } else { "false" };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"weir.dev/inject": inject}}, "spec": spec,
    });
    serde_json::from_value(pod).unwrap()
}

/// From the request that makes the pod to the event that it is ready.
async fn time_to_ready(pods: &Api<Pod>, kind: &str, name: &str) -> Duration {
    let of_it = WatchParams::default().fields(&format!("metadata.name={name}"));
    let begun = Instant::now();
    let made = pods.create(&PostParams::default(), &pod(kind, name)).await.unwrap();
    let mut events = pods.watch(&of_it, &made.resource_version().unwrap()).await.unwrap().boxed();
    loop {
        match tokio::time::timeout(Duration::from_secs(60), events.try_next())
            .await
            .expect("ready in a minute")
            .unwrap()
        {
            Some(WatchEvent::Modified(pod)) if is_ready(&pod) => return begun.elapsed(),
            Some(WatchEvent::Error(error)) => panic!("{error:?}"),
            Some(_) => {}
            None => panic!("the watch of {name} ended"),
        }
    }
}

fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

async fn a_pod_is_ready_as_soon_as_with_a_sidecar_that_does_nothing(case: &Case<'_>) {
    mesh::installed(case).await;
    let pods = case.api::<Pod>();
    // What is only slow the first time is not what is compared.
    for kind in KINDS {
        time_to_ready(&pods, kind, &format!("{kind}-first")).await;
    }
    let mut took: [Vec<Duration>; 3] = Default::default();
    let mut medians = [Duration::ZERO; 3];
    // Where something else had the processors for a while, more rounds tell what the mesh costs and what that did.
    for series in 1..=SERIES {
        for round in 0..ROUNDS {
            for (kind, took) in KINDS.iter().zip(&mut took) {
                let name = format!("{kind}-{series}-{round}");
                tokio::time::sleep(LOOK * round / ROUNDS).await;
                took.push(time_to_ready(&pods, kind, &name).await);
                pods.delete(&name, &DeleteParams::default()).await.unwrap();
            }
        }
        for ((kind, took), median) in KINDS.iter().zip(&mut took).zip(&mut medians) {
            took.sort();
            *median = quantile(took, 50);
            let all: Vec<_> = took.iter().map(Duration::as_millis).collect();
            println!(
                "  ready after: {kind:8} median {} ms, p90 {} ms, all {all:?}",
                median.as_millis(),
                quantile(took, 90).as_millis()
            );
        }
        if medians[2] <= medians[1] + BAR {
            break;
        }
    }
    let [_, nothing, weir] = medians;
    assert!(weir <= nothing + BAR, "Weir {weir:?}, a sidecar that does nothing {nothing:?}");
}

/// Reviews, and how many of them took up to 10 ms of the webhook's own, over all its replicas.
async fn reviews(case: &Case<'_>) -> (u64, u64) {
    let webhooks: Api<Pod> = Api::namespaced(case.cluster.client(), SYSTEM);
    let of_webhook = ListParams::default().labels("app.kubernetes.io/name=weir-webhook");
    let mut sum = (0, 0);
    for pod in webhooks.list(&of_webhook).await.unwrap() {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/https:{}:8443/proxy/metrics", pod.name_any());
        let text = case.cluster.kubectl(&["get", "--raw", &path]).unwrap();
        let count = |le: &str| -> u64 {
            let name = format!("weir_webhook_review_duration_seconds_bucket{{le=\"{le}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{text}")).parse().unwrap()
        };
        sum = (sum.0 + count("+Inf"), sum.1 + count("0.01"));
    }
    sum
}

async fn the_webhook_keeps_up_with_a_hundred_pods_a_second(case: &Case<'_>) {
    const RATE: u32 = 100;
    const SECONDS: u32 = 10;
    mesh::installed(case).await;
    let before = reviews(case).await;
    let pods = case.api::<Pod>();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let begun = tokio::time::Instant::now();
    let mut made = tokio::task::JoinSet::new();
    for number in 0..RATE * SECONDS {
        tokio::time::sleep_until(begun + Duration::from_secs(1) * number / RATE).await;
        let (pods, dry) = (pods.clone(), dry.clone());
        made.spawn(async move {
            let begun = Instant::now();
            let pod = pods.create(&dry, &pod("weir", &format!("pod-{number}"))).await.unwrap();
            let spec: Value = serde_json::to_value(pod.spec).unwrap();
            assert_eq!(spec["initContainers"][0]["name"], "weir-proxy");
            begun.elapsed()
        });
    }
    let mut took = made.join_all().await;
    let rate = f64::from(RATE * SECONDS) / begun.elapsed().as_secs_f64();
    took.sort();
    let after = reviews(case).await;
    let (all, quick) = (after.0 - before.0, after.1 - before.1);
    println!(
        "  {rate:.0} pods/s: whole request p50 {:?}, p99 {:?}; reviews of at most 10 ms: {quick} of {all}",
        quantile(&took, 50),
        quantile(&took, 99)
    );
    assert!(rate > 90.0, "the API server kept up with only {rate:.0}/s");
    // Twice for each: what the API server itself adds to our container is a change after us.
    assert!(all >= u64::from(RATE * SECONDS), "{all} reviews");
    assert!(quick * 100 >= all * 99, "{quick} of {all}");
}

pub(crate) const SUITE: Suite = Suite {
    name: "ready",
    title: "Time to Ready",
    prepare: mesh::options,
    limit: Duration::from_secs(600),
    alone: true,
    tests: cases![
        a_pod_is_ready_as_soon_as_with_a_sidecar_that_does_nothing,
        the_webhook_keeps_up_with_a_hundred_pods_a_second
    ],
};
