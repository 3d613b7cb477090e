//! The routes of Gateway API's conformance suite, read more strictly than the suite does: it looks at status, some headers and the name
//! of the pod. Here: the path and every header that reached the backend, where a redirect leads, what no rule is for, the route's status.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use weir_cluster::{
    Case, Suite, cases, conformance, mesh,
    pods::{self, Wanted, container},
    suite::LIMIT,
};

/// How long the suite gives a rule to take effect.
const PATIENCE: Duration = Duration::from_secs(30);

/// What has to come of a request.
#[derive(Debug, PartialEq)]
enum Comes {
    /// This pod gets it, with this path and query, and these headers beside `host` and `x-request-id`.
    Reaches(String, String, BTreeMap<String, String>),
    /// A redirect by this status to this `Location`.
    Leads(u16, String),
    /// The proxy says no.
    Ends(u16),
}

fn reaches(pod: &str, path: &str, headers: &[(&str, &str)]) -> Comes {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Comes::Reaches(pod.to_owned(), path.to_owned(), headers.collect())
}

fn leads(status: u16, location: &str) -> Comes {
    Comes::Leads(status, location.to_owned())
}

/// The suite's Services and pods, as far as its routes name them, and a pod to call from.
async fn echo(case: &Case<'_>) {
    mesh::joined(case).await;
    mesh::gateway_api(case.cluster).unwrap();
    let service = |name: &str, pod: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {pod}}},
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: http-alt, port: 8080}}]}}}}\n"
        )
    };
    case.apply(
        &[
            Wanted::new("echo-v1", "node1").with(&[container("echo", "serve", 8080)]),
            Wanted::new("echo-v2", "node2").with(&[container("echo", "serve", 8080)]),
            Wanted::new("client", "node2").waiting(),
            service("echo", "echo-v2"),
            service("echo-v1", "echo-v1"),
            service("echo-v2", "echo-v2"),
        ]
        .concat(),
    );
    for pod in ["echo-v1", "echo-v2", "client"] {
        case.ready(pod).await;
    }
    pods::known(case, "client", &[&format!("echo.{}.svc.cluster.local", case.namespace)]).await;
}

/// Applies a route of the suite, waits until its status says that it is in force, and then for each request until its answer is right.
async fn holds(case: &Case<'_>, manifest: &str, exchanges: &[(&str, &[&str], Comes)]) {
    let file = conformance::suite().unwrap().join("tests/mesh").join(manifest);
    let route = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    case.apply(&route.replace("namespace: gateway-conformance-mesh", &format!("namespace: {}", case.namespace)));
    let end = Instant::now() + PATIENCE;
    while let Err(said) = in_force(case) {
        assert!(Instant::now() < end, "{manifest}: {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (target, headers, wanted) in exchanges {
        let end = Instant::now() + PATIENCE;
        loop {
            let got = ask(case, target, headers);
            if got == *wanted {
                break;
            }
            assert!(Instant::now() < end, "{manifest}: {target} {headers:?}\n wanted {wanted:?}\n but got {got:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    case.kubectl(&["delete", "httproutes", "--all"]);
}

/// The conditions of the only route, which have to be of what it is now.
fn in_force(case: &Case<'_>) -> Result<(), String> {
    let list: Value = serde_json::from_str(&case.kubectl(&["get", "httproutes", "--output=json"])).unwrap();
    let [route] = list["items"].as_array().unwrap().as_slice() else { return Err(format!("not one route: {list}")) };
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let conditions = |parent: &Value| {
        let said = parent["conditions"].as_array().into_iter().flatten();
        let mut said: Vec<String> = said
            .filter(|condition| condition["observedGeneration"] == route["metadata"]["generation"])
            .map(|condition| format!("{}={}", condition["type"], condition["reason"]).replace('"', ""))
            .collect();
        said.sort();
        said.join(" ")
    };
    let right = |parent: &Value| {
        parent["parentRef"] == route["spec"]["parentRefs"][0]
            && parent["controllerName"] == "weir.dev/mesh"
            && conditions(parent) == "Accepted=Accepted ResolvedRefs=ResolvedRefs"
    };
    if parents.len() == 1 && right(&parents[0]) { Ok(()) } else { Err(format!("{:#}", route["status"])) }
}

/// One request from the client, and what came of it.
fn ask(case: &Case<'_>, target: &str, headers: &[&str]) -> Comes {
    // An answer of 400 and more is one too.
    let script = r#"/app fetch --head "$@" || true"#;
    let url = format!("http://echo{target}");
    let mut command = vec!["/bin/busybox", "sh", "-c", script, "ask", &url];
    command.extend(headers.iter().flat_map(|header| ["--header", header]));
    let said = case.exec("client", &command);
    let status = said.split(' ').next().and_then(|status| status.parse().ok()).unwrap_or(0);
    if let Some(location) = said.lines().find_map(|line| line.strip_prefix("location: ")) {
        return leads(status, location);
    }
    let Some(body) = said.lines().find(|line| line.starts_with('{')) else { return Comes::Ends(status) };
    let body: Value = serde_json::from_str(body).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_eq!(body["headers"]["host"][0], "echo", "the caller's Host stays");
    let headers = body["headers"].as_object().unwrap().iter().map(|(name, values)| {
        let values: Vec<String> = values.as_array().unwrap().iter().map(text).collect();
        (name.clone(), values.join(","))
    });
    let headers = headers.filter(|(name, _)| name != "host" && name != "x-request-id").collect();
    Comes::Reaches(text(&body["pod"]), text(&body["path"]), headers)
}

async fn a_rewritten_path_reaches_the_backend(case: &Case<'_>) {
    echo(case).await;
    let sent = ["X-Header-Remove:remove-val", "X-Header-Add-Append:append-val-1", "X-Header-Set:set-val"];
    let changed = [
        ("x-header-add", "header-val-1"),
        ("x-header-add-append", "append-val-1,header-val-2"),
        ("x-header-set", "set-overwrites-values"),
    ];
    holds(
        case,
        "httproute-rewrite-path.yaml",
        &[
            ("/prefix/one/two", &[], reaches("echo-v1", "/one/two", &[])),
            ("/prefix/one/two?a=b%20c&d", &[], reaches("echo-v1", "/one/two?a=b%20c&d", &[])),
            ("/strip-prefix/three", &[], reaches("echo-v1", "/three", &[])),
            ("/strip-prefix", &[], reaches("echo-v1", "/", &[])),
            ("/strip-prefix/", &[], reaches("echo-v1", "/", &[])),
            ("/full/one/two", &[], reaches("echo-v1", "/one", &[])),
            ("/full/one?a=b", &[], reaches("echo-v1", "/one?a=b", &[])),
            ("/full/rewrite-path-and-modify-headers/test", &sent, reaches("echo-v1", "/test", &changed)),
            ("/prefix/rewrite-path-and-modify-headers/one", &sent, reaches("echo-v1", "/prefix/one", &changed)),
            ("/full/onetwo", &[], Comes::Ends(404)),
        ],
    )
    .await;
}

async fn a_redirect_leads_to_the_right_place(case: &Case<'_>) {
    echo(case).await;
    holds(
        case,
        "httproute-redirect-path.yaml",
        &[
            ("/original-prefix/lemon", &[], leads(302, "http://echo/replacement-prefix/lemon")),
            ("/original-prefix?a=b%20c", &[], leads(302, "http://echo/replacement-prefix?a=b%20c")),
            ("/full/path/original", &[], leads(302, "http://echo/full-path-replacement")),
            ("/path-and-host", &[], leads(302, "http://example.org/replacement-prefix")),
            ("/path-and-status", &[], leads(301, "http://echo/replacement-prefix")),
            ("/full-path-and-host", &[], leads(302, "http://example.org/replacement-full")),
            ("/full-path-and-status", &[], leads(301, "http://echo/replacement-full")),
            ("/original", &[], Comes::Ends(404)),
        ],
    )
    .await;
    holds(
        case,
        "httproute-redirect-port.yaml",
        &[
            ("/port", &[], leads(302, "http://echo:8083/port")),
            ("/port-and-host", &[], leads(302, "http://example.org:8083/port-and-host")),
            ("/port-and-status", &[], leads(301, "http://echo:8083/port-and-status")),
            ("/port-and-host-and-status", &[], leads(302, "http://example.org:8083/port-and-host-and-status")),
        ],
    )
    .await;
    // A scheme's own port is not named.
    holds(
        case,
        "httproute-redirect-scheme.yaml",
        &[
            ("/scheme", &[], leads(302, "https://echo/scheme")),
            ("/scheme-and-host", &[], leads(302, "https://example.org/scheme-and-host")),
            ("/scheme-and-status", &[], leads(301, "https://echo/scheme-and-status")),
            ("/scheme-and-host-and-status", &[], leads(302, "https://example.org/scheme-and-host-and-status")),
        ],
    )
    .await;
    holds(
        case,
        "httproute-redirect-host-and-status.yaml",
        &[
            ("/hostname-redirect", &[], leads(302, "http://example.org/hostname-redirect")),
            ("/host-and-status?a=b", &[], leads(301, "http://example.org/host-and-status?a=b")),
        ],
    )
    .await;
    for (status, path) in [(303, "/redirect"), (307, "/temporary"), (308, "/permanent")] {
        let manifest = format!("httproute-{status}-redirect.yaml");
        holds(case, &manifest, &[(path, &[], leads(status, &format!("http://echo{path}")))]).await;
    }
}

async fn headers_are_changed_and_no_others(case: &Case<'_>) {
    echo(case).await;
    let many = ["X-Header-Set-2:set-2", "X-Header-Add-2:add-2", "X-Header-Remove-2:remove-2", "Another-Header:another"];
    let many_changed = [
        ("another-header", "another"),
        ("x-header-add-1", "header-add-1"),
        ("x-header-add-2", "add-2,header-add-2"),
        ("x-header-add-3", "header-add-3"),
        ("x-header-set-1", "header-set-1"),
        ("x-header-set-2", "header-set-2"),
    ];
    let lower = ["x-header-set:original", "x-header-add:original", "x-header-remove:original"];
    let lower_changed = [("x-header-add", "original,header-add"), ("x-header-set", "header-set")];
    let set = [("x-header-set", "set-overwrites-values")];
    // The same filters on the rule, and on its backend.
    for manifest in ["httproute-request-header-modifier.yaml", "httproute-request-header-modifier-backend.yaml"] {
        holds(
            case,
            manifest,
            &[
                ("/set", &[], reaches("echo-v1", "/set", &set)),
                ("/set", &["X-Header-Set:other"], reaches("echo-v1", "/set", &set)),
                ("/add", &[], reaches("echo-v1", "/add", &[("x-header-add", "add-appends-values")])),
                ("/add", &["X-Header-Add:a"], reaches("echo-v1", "/add", &[("x-header-add", "a,add-appends-values")])),
                ("/remove", &["X-Header-Remove:val"], reaches("echo-v1", "/remove", &[])),
                ("/multiple", &many, reaches("echo-v1", "/multiple", &many_changed)),
                ("/case-insensitivity", &lower, reaches("echo-v1", "/case-insensitivity", &lower_changed)),
            ],
        )
        .await;
    }
}

/// The suite's own test of this names a path for the second rule that its manifest never makes.
async fn rules_with_and_without_a_name_leave_the_path_alone(case: &Case<'_>) {
    echo(case).await;
    holds(
        case,
        "httproute-named-rule.yaml",
        &[
            ("/named/a%2Db?c", &[], reaches("echo-v1", "/named/a-b?c", &[])),
            ("/unnamed", &[], reaches("echo-v2", "/unnamed", &[])),
            ("/unnamedother", &[], Comes::Ends(404)),
        ],
    )
    .await;
}

pub(crate) const SUITE: Suite = Suite {
    name: "routes",
    title: "The conformance suite's routes, read strictly",
    prepare: mesh::options,
    limit: LIMIT,
    alone: false,
    tests: cases![
        a_rewritten_path_reaches_the_backend,
        a_redirect_leads_to_the_right_place,
        headers_are_changed_and_no_others,
        rules_with_and_without_a_name_leave_the_path_alone,
    ],
};
