//! Point 4: an HTTPRoute, applied with kubectl: split, status, how soon a change is in force, and kinds that come and go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use weir_cluster::{
    Case, Suite, cases,
    mesh::{self, SYSTEM},
    pods::{self, Wanted, container},
    suite::LIMIT,
};

/// How soon kinds that come while Weir runs are noticed, on a busy machine: it looks every five seconds.
const NOTICED: Duration = Duration::from_secs(20);
/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);
const CRD: &str = "httproutes.gateway.networking.k8s.io";

/// Version 1 on one node, version 2 on the other, and a Service that leads to version 1 by itself.
async fn shop(case: &Case<'_>) {
    mesh::joined(case).await;
    let service = |name: &str, app: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {app}}},
  ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}\n"
        )
    };
    case.apply(
        &[
            Wanted::new("v1", "node1").with(&[container("web", "serve, --version=v1", 8080)]),
            Wanted::new("v2", "node2").with(&[container("web", "serve, --version=v2", 8080)]),
            Wanted::new("client", "node1").waiting(),
            service("shop", "v1"),
            service("v1", "v1"),
            service("v2", "v2"),
        ]
        .concat(),
    );
    for pod in ["v1", "v2", "client"] {
        case.ready(pod).await;
    }
    pods::known(case, "client", &[&format!("shop.{}.svc.cluster.local", case.namespace)]).await;
}

/// A route of the Service `shop` to backends, each with its weight.
fn route(backends: &[(&str, u32)]) -> String {
    let backend = |(name, weight): &(&str, u32)| format!("{{name: {name}, port: 80, weight: {weight}}}");
    let backends: Vec<String> = backends.iter().map(backend).collect();
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: shop}}, spec: {{
  parentRefs: [{{group: '', kind: Service, name: shop, port: 80}}], rules: [{{backendRefs: [{}]}}]}}}}\n",
        backends.join(", ")
    )
}

/// Requests to the Service `shop` from a pod, beside everything else, until a version answers so many one after the other.
struct Running {
    kubectl: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Returns when a first request was answered.
    fn start(case: &Case<'_>, pod: &str, until: &str) -> Self {
        let mut kubectl = case.cluster.tool("kubectl");
        kubectl.args(["--namespace", case.namespace, "exec", pod, "--quiet", "--", "/app", "fetch", "http://shop/"]);
        kubectl.args(["--count=100000", "--concurrency=2", "--pause-ms=2", "--until", until]);
        let mut kubectl = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut running = Self { output: BufReader::new(kubectl.stdout.take().unwrap()), kubectl };
        assert_eq!(running.line(), "answered\n", "{pod}");
        running
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// Who answered. Every request was answered with 200.
    fn end(mut self) -> Value {
        let said: Value = serde_json::from_str(&self.line()).unwrap();
        assert!(self.kubectl.wait().unwrap().success() && said["failures"] == json!([]), "{said}");
        let statuses = said["statuses"].as_object().unwrap();
        assert!(statuses.len() == 1 && statuses.contains_key("200"), "{said}");
        said
    }
}

/// Requests to the Service `shop`, and who answered them.
fn requests(case: &Case<'_>, more: &[&str]) -> Value {
    let said = case.exec("client", &[&["/app", "fetch", "http://shop/"], more].concat());
    serde_json::from_str(&said).unwrap()
}

fn answers(said: &Value, version: &str) -> u64 {
    said["versions"][version]["count"].as_u64().unwrap_or(0)
}

/// The route's status.
fn object(case: &Case<'_>) -> Value {
    serde_json::from_str(&case.kubectl(&["get", "httproute", "shop", "--output=json"])).unwrap()
}

/// Waits until the status of the route is of what it is now, and has one parent with these conditions.
async fn status(case: &Case<'_>, accepted: (&str, &str), resolved: (&str, &str)) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let object = object(case);
        let parents = object["status"]["parents"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str, (status, reason): (&str, &str)| {
            parents.len() == 1
                && parents[0]["conditions"].as_array().unwrap().iter().any(|condition| {
                    condition["type"] == kind
                        && condition["status"] == status
                        && condition["reason"] == reason
                        && condition["observedGeneration"] == object["metadata"]["generation"]
                })
        };
        if is("Accepted", accepted) && is("ResolvedRefs", resolved) {
            assert_eq!(parents[0]["controllerName"], "weir.dev/mesh");
            assert_eq!(parents[0]["parentRef"], object["spec"]["parentRefs"][0]);
            return object;
        }
        assert!(Instant::now() < end, "not {accepted:?} and {resolved:?}: {object:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const ACCEPTED: (&str, &str) = ("True", "Accepted");
const RESOLVED: (&str, &str) = ("True", "ResolvedRefs");

/// Waits until all of some requests are answered so.
async fn until_all(case: &Case<'_>, version: &str, statuses: &Value, limit: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        let said = requests(case, &["--count=20"]);
        if said["statuses"] == *statuses && answers(&said, version) == 20 {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "not all by {version:?}: {said}");
    }
}

async fn kinds_that_come_after_weir_are_noticed_within_seconds(case: &Case<'_>) {
    shop(case).await;
    assert!(case.cluster.kubectl(&["get", "crd", CRD]).is_err(), "the first test of the file");
    until_all(case, "v1", &json!({"200": 20}), PATIENCE).await;
    mesh::gateway_api(case.cluster).unwrap();
    let begun = Instant::now();
    case.apply(&route(&[("v2", 1)]));
    until_all(case, "v2", &json!({"200": 20}), NOTICED).await;
    println!("  kinds that come later are in force after {:?}", begun.elapsed());
    status(case, ACCEPTED, RESOLVED).await;
}

async fn a_split_is_kept_and_the_status_says_that_it_is_in_force(case: &Case<'_>) {
    mesh::gateway_api(case.cluster).unwrap();
    shop(case).await;
    for (generation, weight) in [(1, 10), (2, 50), (3, 1)] {
        // The status comes from one replica, the configuration maybe from the other: answers say which rule they are by.
        let mark = format!(
            "filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-rule, value: '{weight}'}}]}}}}], backendRefs"
        );
        case.apply(&route(&[("v1", 100 - weight), ("v2", weight)]).replace("backendRefs", &mark));
        let object = status(case, ACCEPTED, RESOLVED).await;
        assert_eq!(object["metadata"]["generation"], generation);
        let end = Instant::now() + PATIENCE;
        while !case
            .exec("client", &["/app", "fetch", "--head", "http://shop/"])
            .contains(&format!("x-rule: {weight}\n"))
        {
            assert!(Instant::now() < end, "the rule is accepted, and not in force");
        }
        let said = requests(case, &["--count=2000", "--concurrency=8"]);
        assert_eq!(said["statuses"], json!({"200": 2000}), "{said}");
        let share = answers(&said, "v2") as f64 / 20.0;
        println!("  {weight} % asked: {share} % of 2,000 requests");
        assert!((share - f64::from(weight)).abs() <= 2.0, "{weight} % asked: {said}");
        assert_eq!(said["versions"]["v2"]["pods"], json!({"v2": answers(&said, "v2")}));
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

async fn a_change_is_in_force_within_a_second_and_loses_nothing(case: &Case<'_>) {
    mesh::gateway_api(case.cluster).unwrap();
    shop(case).await;
    case.apply(&route(&[("v1", 1), ("v2", 0)]));
    until_all(case, "v1", &json!({"200": 20}), NOTICED).await;
    let (mut from_return, mut from_start) = (Vec::new(), Vec::new());
    for (old, new) in [("v1", "v2"), ("v2", "v1"), ("v1", "v2"), ("v2", "v1"), ("v1", "v2")] {
        let until = format!("{new}:200");
        // On both nodes: each proxy has its own stream, from whichever replica of the control plane.
        let requests = ["client", "v2"].map(|pod| Running::start(case, pod, &until));
        let started = now_ms();
        case.apply(&route(&[(old, 0), (new, 1)]));
        let returned = now_ms();
        let mut last = 0;
        for requests in requests {
            let said = requests.end();
            assert!(answers(&said, old) > 0, "{said}");
            assert!(said["versions"][new]["first_ms"].as_u64().unwrap() >= started, "{said}");
            last = last.max(said["versions"][old]["last_ms"].as_u64().unwrap());
        }
        from_return.push(last as i64 - returned as i64);
        from_start.push(last as i64 - started as i64);
    }
    println!(
        "  the last request by the old rule was sent {from_return:?} ms after kubectl had ended, {from_start:?} ms after it was started"
    );
    assert!(from_return.iter().all(|&ms| ms < 1000), "{from_return:?}");
}

async fn bad_backends_are_answered_with_500_and_named_by_the_status(case: &Case<'_>) {
    mesh::gateway_api(case.cluster).unwrap();
    shop(case).await;
    case.apply(&route(&[("nobody", 1)]));
    let object = status(case, ACCEPTED, ("False", "BackendNotFound")).await;
    assert!(object["status"].to_string().contains(&format!("{}/nobody", case.namespace)), "{object:#}");
    until_all(case, "", &json!({"500": 20}), NOTICED).await;
    // Its share, and no more.
    case.apply(&route(&[("nobody", 50), ("v2", 50)]));
    until_some(case, "v2").await;
    let said = requests(case, &["--count=400", "--concurrency=4"]);
    let failed = said["statuses"]["500"].as_u64().unwrap();
    assert!((192..=208).contains(&failed) && answers(&said, "v2") == 400 - failed, "{said}");
    // It comes later.
    case.apply("{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {selector: {app: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}}");
    status(case, ACCEPTED, RESOLVED).await;
    until_some(case, "v1").await;
    assert_eq!(requests(case, &["--count=100"])["statuses"], json!({"200": 100}));
}

/// Waits until a version answers some requests.
async fn until_some(case: &Case<'_>, version: &str) {
    let end = Instant::now() + PATIENCE;
    while answers(&requests(case, &["--count=20"]), version) == 0 {
        assert!(Instant::now() < end, "{version} never answers");
    }
}

async fn a_route_without_its_parent_loses_its_status_and_its_effect(case: &Case<'_>) {
    mesh::gateway_api(case.cluster).unwrap();
    shop(case).await;
    case.apply(&route(&[("v2", 1)]));
    until_all(case, "v2", &json!({"200": 20}), NOTICED).await;
    status(case, ACCEPTED, RESOLVED).await;
    // Another parent: that one's status, and the first one's calls as without a route.
    case.apply(&route(&[("v2", 1)]).replace("kind: Service, name: shop", "kind: Service, name: v1"));
    status(case, ACCEPTED, RESOLVED).await;
    until_all(case, "v1", &json!({"200": 20}), PATIENCE).await;
    // A Service that is not there.
    case.apply(&route(&[("v2", 1)]).replace("kind: Service, name: shop", "kind: Service, name: missing"));
    status(case, ("False", "NoMatchingParent"), RESOLVED).await;
    // None of ours: nothing is left of us.
    let gateway = r#"{"spec": {"parentRefs": [{"name": "edge"}]}}"#;
    case.kubectl(&["patch", "httproute", "shop", "--type=merge", "--patch", gateway]);
    let end = Instant::now() + PATIENCE;
    while object(case)["status"]["parents"].as_array().is_some_and(|parents| !parents.is_empty()) {
        assert!(Instant::now() < end, "{:#}", object(case));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Back, and then gone as a whole.
    case.apply(&route(&[("v2", 1)]));
    status(case, ACCEPTED, RESOLVED).await;
    until_all(case, "v2", &json!({"200": 20}), PATIENCE).await;
    case.kubectl(&["delete", "httproute", "shop"]);
    until_all(case, "v1", &json!({"200": 20}), PATIENCE).await;
}

/// How often containers of the control plane were started again.
fn restarts(case: &Case<'_>) -> String {
    let path = "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let selector = "--selector=app.kubernetes.io/name=weir-control";
    case.cluster.kubectl(&["--namespace", SYSTEM, "get", "pods", selector, path]).unwrap()
}

async fn kinds_that_go_while_weir_runs_do_no_harm(case: &Case<'_>) {
    mesh::gateway_api(case.cluster).unwrap();
    shop(case).await;
    case.apply(&route(&[("v2", 1)]));
    until_all(case, "v2", &json!({"200": 20}), NOTICED).await;
    let before = restarts(case);
    // Every route of the cluster goes with its kind: calls go on, to the Service's own pods.
    let requests = Running::start(case, "client", "v1:500");
    case.cluster.kubectl(&["delete", "crd", CRD]).unwrap();
    assert!(answers(&requests.end(), "v2") > 0);
    // What else changes is heard while the kind is missing.
    case.kubectl(&["patch", "service", "shop", "--type=merge", "--patch", r#"{"spec": {"selector": {"app": "v2"}}}"#]);
    until_all(case, "v2", &json!({"200": 20}), PATIENCE).await;
    assert_eq!(restarts(case), before);
    // And back.
    mesh::gateway_api(case.cluster).unwrap();
    case.apply(&route(&[("v1", 1)]));
    until_all(case, "v1", &json!({"200": 20}), NOTICED).await;
    status(case, ACCEPTED, RESOLVED).await;
    assert_eq!(restarts(case), before);
}

pub(crate) const SUITE: Suite = Suite {
    name: "canary",
    title: "Canary by HTTPRoute",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        kinds_that_come_after_weir_are_noticed_within_seconds,
        a_split_is_kept_and_the_status_says_that_it_is_in_force,
        a_change_is_in_force_within_a_second_and_loses_nothing,
        bad_backends_are_answered_with_500_and_named_by_the_status,
        a_route_without_its_parent_loses_its_status_and_its_effect,
        kinds_that_go_while_weir_runs_do_no_harm,
    ],
};
