//! The webhook's own work for one review: the goal is 10 ms for the slowest of a hundred.
//!
//! `cargo test -p weir-webhook --release --test work -- --ignored --nocapture`

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, which clippy does not take for tests

mod common;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_webhook::review::{Judgement, review};

const REVIEWS: usize = 20_000;
const GOAL: Duration = Duration::from_millis(10);

/// A pod as a busy cluster has them: some containers with environment, probes, and what controllers leave behind.
fn pod(containers: usize) -> Value {
    let containers: Vec<Value> = (0..containers)
        .map(|number| {
            let env: Vec<Value> =
                (0..30).map(|n| json!({"name": format!("SETTING_{n}"), "value": "v".repeat(40)})).collect();
            json!({
                "name": format!("app-{number}"), "image": "registry.example/team/app@sha256:0123456789abcdef",
                "env": env,
                "ports": [{"name": "http", "containerPort": 8080 + number, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"port": "http", "path": "/live"}, "periodSeconds": 10},
                "readinessProbe": {"httpGet": {"port": "http", "path": "/ready"}, "periodSeconds": 5},
                "lifecycle": {"preStop": {"httpGet": {"port": "http", "path": "/stop"}}},
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "app-7d4b9c-", "labels": {"app": "app", "pod-template-hash": "7d4b9c"},
            "annotations": {"weir.dev/exclude-outbound-cidrs": "198.18.9.0/24,fd00::/64", "weir.dev/opaque-ports": "6379"},
            "managedFields": [{"manager": "kube-controller-manager", "fieldsV1": {"f:spec": {"f:containers": {}}}}],
        },
        "spec": {"containers": containers, "volumes": [{"name": "config", "configMap": {"name": "app"}}]},
    })
}

#[test]
#[ignore = "a benchmark"]
fn own_work_for_one_review() {
    let settings = common::settings();
    for containers in [1, 3, 20] {
        let body = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "1", "operation": "CREATE", "namespace": "shop",
                "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": pod(containers)},
        })
        .to_string();
        let mut took: Vec<Duration> = (0..REVIEWS)
            .map(|_| {
                let start = Instant::now();
                let answer = review(&settings, body.as_bytes()).unwrap();
                let elapsed = start.elapsed();
                assert_eq!(answer.result, Judgement::Injected);
                elapsed
            })
            .collect();
        took.sort();
        let at = |share: usize| took[REVIEWS * share / 1000];
        let (p50, p99, p999, max) = (at(500), at(990), at(999), took[REVIEWS - 1]);
        println!(
            "{containers:>2} containers, {:>6} bytes: p50 {p50:?} p99 {p99:?} p99.9 {p999:?} max {max:?}",
            body.len()
        );
        assert!(p99 < GOAL, "p99 is {p99:?}");
    }
}
