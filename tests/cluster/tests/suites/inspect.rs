//! `weir describe` and `weir proxy-config` on a real Kubernetes, by kubectl: what they say of rules, of what is refused, of a proxy, and
//! of what can not be asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;
use weir_cluster::{
    Case, Suite, cases,
    mesh::{self, SYSTEM},
    pods::{self, Wanted, container},
    suite::LIMIT,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// `weir` of this build, with kubectl in its search path.
fn weir(case: &Case<'_>, arguments: &[&str]) -> Output {
    weir_as(case, &case.cluster.kubeconfig(), arguments)
}

/// The same by another kubeconfig.
fn weir_as(case: &Case<'_>, kubeconfig: &Path, arguments: &[&str]) -> Output {
    // With the other results of the build: target/PROFILE/deps/TEST is this program.
    let program: PathBuf = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("weir");
    assert!(program.is_file(), "{} is not built: run `cargo build --workspace` first", program.display());
    let kubectl = case.cluster.tool("kubectl");
    let mut command = Command::new(program);
    command.args(arguments).args(["--namespace", case.namespace]).stdin(Stdio::null());
    command.env("KUBECONFIG", kubeconfig).env("HOME", case.cluster.layout().root());
    command.env("PATH", PathBuf::from(kubectl.get_program()).parent().unwrap());
    command.output().unwrap()
}

/// What it says where it succeeds.
fn says(case: &Case<'_>, arguments: &[&str]) -> String {
    let output = weir(case, arguments);
    assert!(output.status.success(), "weir {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Its line where it fails.
fn fails(case: &Case<'_>, arguments: &[&str]) -> String {
    failed(arguments, weir(case, arguments))
}

fn failed(arguments: &[&str], output: Output) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), said.lines().count(), output.stdout.len()),
        (Some(1), 1, 0),
        "{arguments:?}: {said}"
    );
    said
}

/// Waits until JSON of `weir` is as wanted; it.
async fn until(case: &Case<'_>, arguments: &[&str], what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    let end = Instant::now() + PATIENCE;
    loop {
        let output = weir(case, &arguments);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if is(&value) {
            return value;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(Instant::now() < end, "weir {arguments:?}: not {what}: {said}{value:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Two versions behind a Service, and a client.
async fn shop(case: &Case<'_>) {
    mesh::gateway_api(case.cluster).unwrap();
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
            Wanted::new("outside", "node1").outside().waiting(),
            service("shop", "v1"),
            service("v1", "v1"),
            service("v2", "v2"),
        ]
        .concat(),
    );
    for pod in ["v1", "v2", "client", "outside"] {
        case.ready(pod).await;
    }
    pods::known(case, "client", &[&format!("shop.{}.svc.cluster.local", case.namespace)]).await;
}

const ROUTES: &str = "
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: canary}, spec: {
  parentRefs: [{group: '', kind: Service, name: shop, port: 80}], rules: [
    {name: testers, matches: [{headers: [{name: x-canary, value: 'yes'}]}], backendRefs: [{name: v2, port: 80}]},
    {backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: late}, spec: {
  parentRefs: [{group: '', kind: Service, name: shop}], rules: [{backendRefs: [{name: gone, port: 80}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: limits}, spec: {
  host: v2, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}, outlierDetection: {consecutive5xxErrors: 3}}}}
---
{apiVersion: weir.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: testers}, spec: {
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: canary, sectionName: testers}],
  fault: {abort: {httpStatus: 418}}}}
";

async fn a_service_with_a_canary_a_shadowed_rule_and_a_refused_one(case: &Case<'_>) {
    shop(case).await;
    case.apply(ROUTES);
    // Nobody asks the webhook: the API server keeps it.
    case.cluster.kubectl(&["delete", "validatingwebhookconfiguration", "weir-rules", "--ignore-not-found"]).unwrap();
    case.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: refused}, spec: {
           parentRefs: [{group: '', kind: Service, name: shop}], hostnames: [a.example], rules: [{}]}}",
    );
    let object = |name: &str| format!("HTTPRoute/{}/{name}", case.namespace);
    let known = |value: &Value| {
        let idle = value["without_effect"].as_array().map_or(0, Vec::len);
        value["ports"][0]["callers"][0]["rules"].as_array().map_or(0, Vec::len) == 3 && idle == 1
    };
    let described = until(case, &["describe", "service/shop"], "three rules and a refused object", known).await;
    let rules = &described["ports"][0]["callers"][0]["rules"];
    assert_eq!(
        (&rules[0]["object"], &rules[0]["rule"], &rules[0]["name"]),
        (&json!(object("canary")), &json!(0), &json!("testers"))
    );
    assert_eq!(rules[0]["matches"], "header x-canary = yes");
    assert_eq!(rules[0]["settings"][0]["object"], format!("TrafficPolicy/{}/testers", case.namespace));
    let weights: Vec<u64> =
        rules[1]["backends"].as_array().unwrap().iter().map(|to| to["weight"].as_u64().unwrap()).collect();
    assert_eq!(weights, [90, 10]);
    let shadow = json!({"place": 2, "object": object("canary"), "rule": 1});
    assert_eq!((&rules[2]["object"], &rules[2]["shadowed_by"]), (&json!(object("late")), &shadow));
    assert_eq!(rules[0]["shadowed_by"], Value::Null);
    assert!(rules[2]["backends"][0]["trouble"].as_str().unwrap().contains("there is no Service"));
    assert_eq!(described["without_effect"][0]["object"], object("refused"));
    assert!(described["without_effect"][0]["reason"].as_str().unwrap().contains("spec.hostnames"));

    let text = says(case, &["describe", "svc/shop"]);
    println!("{text}");
    for part in [
        format!("{} rule 0 (any) never acts: {} rule 1", object("late"), object("canary")),
        format!("{} has no effect: refused: spec.hostnames", object("refused")),
    ] {
        assert!(text.contains(&part), "{part:?} is not in\n{text}");
    }
    let limits = until(case, &["describe", "service/v2"], "the policy", |value| {
        value["ports"][0]["callers"][0]["settings"].as_array().is_some_and(|settings| !settings.is_empty())
    })
    .await;
    let limit = json!({"field": "connectionPool.http.http2MaxRequests", "value": "7",
        "object": format!("DestinationRule/{}/limits", case.namespace)});
    assert_eq!(limits["ports"][0]["callers"][0]["settings"][0], limit);

    let text = says(case, &["describe", "httproute/late"]);
    println!("{text}");
    for part in ["! ResolvedRefs: no (BackendNotFound)", "Accepted: yes (Accepted)", "any: never, 2 takes it"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let text = says(case, &["describe", "httproute/refused"]);
    assert!(text.contains("! refused: spec.hostnames") && text.contains("no effect as a whole"), "{text}");
    assert!(fails(case, &["describe", "tcproute/none"]).contains("knows no tcproute"));
}

async fn a_proxy_and_its_own_answers(case: &Case<'_>) {
    shop(case).await;
    case.apply(ROUTES);
    let ask = || case.exec("client", &["/app", "fetch", "http://shop/", "--count=1", "--header=x-canary: yes"]);
    // The rule's fault, once the client's proxy has it.
    let end = Instant::now() + PATIENCE;
    while !ask().contains("418") {
        assert!(Instant::now() < end, "the fault is not in force");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let route = format!("HTTPRoute/{}/canary/0/0", case.namespace);
    let text = says(case, &["proxy-config", "client"]);
    assert!(text.contains("control plane  connected"), "{text}");
    let text = says(case, &["proxy-config", "client", "routes", "--port", "80"]);
    println!("{text}");
    assert!(text.contains(&route) && text.contains("header x-canary = yes") && text.contains("abort fault"), "{text}");
    let clusters = until(case, &["proxy-config", "client", "clusters", "--service", "v2."], "the limit", |value| {
        value[0]["limits"]
            .as_array()
            .is_some_and(|all| all.contains(&json!({"name": "max_requests", "most": 7, "now": 0})))
    })
    .await;
    assert_eq!(clusters[0]["outlier_detection"]["consecutive_5xx"], 3);
    let text = says(case, &["proxy-config", "client", "endpoints", "--service", "v2."]);
    println!("{text}");
    assert!(text.contains("in use") && text.contains(&format!("/ns/{}/sa/default", case.namespace)), "{text}");
    let text = says(case, &["proxy-config", "v2", "listeners"]);
    assert!(text.contains("8080") && text.contains(&format!("v2.{}.svc", case.namespace)), "{text}");

    let described = until(case, &["describe", "pod/client"], "the fault's answer", |value| {
        value["proxy"]["counts"]["by_rule"][0]["flags"] == "FI"
    })
    .await;
    assert_eq!(described["proxy"]["counts"]["by_rule"][0]["rule"], route);
    let text = says(case, &["describe", "pod", "client"]);
    println!("{text}");
    for part in [
        "In the mesh as spiffe://cluster.local/",
        "Its proxy is ready",
        &route,
        "FI     a TrafficPolicy let the request fail",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    mesh::strict(case);
    until(case, &["describe", "pod/v1"], "the rule", |value| {
        value["pod"]["others"]["object"] == format!("PeerAuthentication/{}/default", case.namespace)
    })
    .await;
}

async fn what_can_not_be_asked_is_said_with_its_remedy(case: &Case<'_>) {
    shop(case).await;
    let said = fails(case, &["proxy-config", "nobody"]);
    assert!(said.contains("there is no pod") && said.contains("kubectl get pods"), "{said}");
    let said = fails(case, &["proxy-config", "outside"]);
    assert!(said.contains("is not in the mesh") && said.contains("weir.dev/inject=enabled"), "{said}");
    let text = says(case, &["describe", "pod/outside"]);
    assert!(text.contains("! Not in the mesh, though its namespace is"), "{text}");
    let said = fails(case, &["describe", "service/nobody"]);
    assert!(said.contains("the control plane knows no service"), "{said}");
    let said = fails(case, &["describe", "service/shop", "--system-namespace", "elsewhere"]);
    assert!(said.contains("there is no Deployment weir-control in namespace elsewhere"), "{said}");
    // One who may read pods and start nothing in them.
    case.cluster.kubectl(&["create", "clusterrolebinding", "reader", "--clusterrole=view", "--user=reader"]).unwrap();
    let own = fs::read_to_string(case.cluster.kubeconfig()).unwrap();
    let kubeconfig = case.cluster.layout().root().join("reader.kubeconfig");
    fs::write(&kubeconfig, own.replacen("user: {client-certificate", "user: {as: reader, client-certificate", 1))
        .unwrap();
    for (arguments, namespace) in [(["proxy-config", "client"], case.namespace), (["describe", "service/shop"], SYSTEM)]
    {
        let said = failed(&arguments, weir_as(case, &kubeconfig, &arguments));
        let wanted = format!("you may not start programs in pods of namespace {namespace}");
        assert!(said.contains(&wanted) && said.contains("ask for the right to create pods/exec"), "{said}");
    }
}

pub(crate) const SUITE: Suite = Suite {
    name: "inspect",
    title: "weir describe and weir proxy-config",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        a_service_with_a_canary_a_shadowed_rule_and_a_refused_one,
        a_proxy_and_its_own_answers,
        what_can_not_be_asked_is_said_with_its_remedy,
    ],
};
