//! `weir describe` and `weir proxy-config` of a sandbox: the whole way to the admin pages of the real control plane and of real proxies.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::support::{Sandbox, root, text};

fn manifest() -> String {
    let server = |version: &str| {
        format!(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {version}, namespace: shop}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {version}}}}}
  template:
    metadata: {{labels: {{app: {version}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: weir.dev/echo
          args: [--version, {version}]
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {version}, namespace: shop}}
spec:
  selector: {{app: {version}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---"#
        )
    };
    let namespaces = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {weir.dev/inject: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: web, labels: {weir.dev/inject: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: outside}}
---";
    let pod = |namespace: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: client, image: host, command: [sleep, infinity]}}
---"
        )
    };
    let rules = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  selector: {app: v1}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog, port: 80}]
  rules:
  - matches: [{headers: [{name: x-canary, value: 'yes'}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /admin}}]
  - backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: late, namespace: shop, creationTimestamp: '2026-01-02T00:00:00Z'}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules: [{matches: [{path: {value: /admin/users}, method: GET}, {path: {value: /}}], backendRefs: [{name: v1, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own, namespace: web}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog, namespace: shop}]
  rules: [{backendRefs: [{name: v2, namespace: shop, port: 80}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {host: catalog, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: newer, namespace: shop, creationTimestamp: '2026-01-02T00:00:00Z'}
spec: {host: catalog, trafficPolicy: {connectionPool: {tcp: {maxConnections: 9, connectTimeout: 3s}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
";
    [namespaces.to_owned(), server("v1"), server("v2"), pod("shop"), pod("web"), pod("outside"), rules.to_owned()]
        .concat()
}

/// `weir COMMAND` for the sandbox.
fn weir(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
    weir.env("WEIR_SANDBOX_DIR", sandbox.base()).args(arguments).arg(format!("--sandbox={}", sandbox.name));
    weir.output().unwrap()
}

fn says(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let output = weir(sandbox, arguments);
    assert!(output.status.success(), "{arguments:?}: {}\n{}", text(&output), sandbox.story());
    String::from_utf8(output.stdout).unwrap()
}

fn fails(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let output = weir(sandbox, arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}: {}", text(&output));
    String::from_utf8(output.stderr).unwrap()
}

fn json(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    serde_json::from_str(&says(sandbox, &[arguments, &["--output", "json"]].concat())).unwrap()
}

fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn what_is_in_force_is_told_with_the_objects_that_say_so() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new("inspect");
    sandbox.write("all.yaml", &manifest());
    let output = sandbox.run("up", &[sandbox.folder.to_str().unwrap(), "--timeout", "60"]);
    assert!(output.status.success(), "{}", text(&output));

    let service = says(&sandbox, &["describe", "service/catalog", "-n", "shop"]);
    holds(
        &service,
        &[
            "Service shop/catalog: 198.19.",
            "1      prefix /admin/users, GET",
            "2      prefix /admin",
            "3      header x-canary = yes",
            "4      any ",
            "90 shop/v1:80, 10 shop/v2:80",
            "5      any: never, 4 takes it",
            "! HTTPRoute/shop/late rule 0 (any) never acts: HTTPRoute/shop/canary rule 2, which is 4 in the order",
            "connectionPool.tcp.maxConnections  5      DestinationRule/shop/catalog",
            "connectionPool.tcp.connectTimeout  3s     DestinationRule/shop/newer",
            "! none of these rules sends to shop/catalog:80",
            "Port 80 http, for callers of namespace web",
            "1      any      shop/v2:80  HTTPRoute/web/own rule 0",
            "! HTTPRoute/shop/canary has no effect: callers of namespace web follow HTTPRoute/web/own",
        ],
    );
    let route = json(&sandbox, &["describe", "httproute", "own", "-n", "web"]);
    assert_eq!(
        (&route["parents"][0]["callers"], &route["parents"][0]["accepted"]["holds"]),
        (&json!("web"), &json!(true))
    );
    assert_eq!(route["parents"][0]["ports"][0]["rules"][0]["backends"][0]["service"], "shop/v2:80");

    // The rule without backends answers by itself.
    let begun = Instant::now();
    while sandbox.says("shop/client", &["curl", "-so", "/dev/null", "-w", "%{http_code}", "http://catalog/admin"])
        != "500"
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", sandbox.story());
    }
    let pod = says(&sandbox, &["describe", "pod/client.shop"]);
    holds(
        &pod,
        &[
            "In the mesh as spiffe://cluster.local/ns/shop/sa/default",
            "Its proxy is ready",
            "HTTPRoute/shop/canary/1/0",
            "\n-      no flag",
        ],
    );
    let server = sandbox.pods(Some("v1")).remove(0);
    let pod = says(&sandbox, &["describe", "pod", server.trim_start_matches("shop/"), "-n", "shop"]);
    holds(
        &pod,
        &[
            "Services: shop/catalog, shop/v1",
            "8080    http      shop/catalog  refused by PeerAuthentication/shop/default",
        ],
    );

    let summary = says(&sandbox, &["proxy-config", "client.shop"]);
    holds(&summary, &["control plane  connected", "destinations   1: 1 known"]);
    let routes = says(&sandbox, &["proxy-config", "client", "routes", "-n", "shop", "--fqdn", "catalog.shop"]);
    holds(
        &routes,
        &[
            "catalog.shop.svc.cluster.local:80  4      any",
            "90 v1.shop.svc.cluster.local:80, 10 v2.shop.svc.cluster.local:80",
            "answers 500",
        ],
    );
    let endpoints = json(&sandbox, &["proxy-config", "client.shop", "endpoints", "--service", "v2."]);
    assert_eq!(endpoints[0]["endpoints"][0]["well"], true, "{endpoints}");
    holds(
        &says(&sandbox, &["proxy-config", "deploy/v2.shop", "listeners"]),
        &["8080      http      v2.shop.svc.cluster.local"],
    );

    holds(
        &fails(&sandbox, &["proxy-config", "client.outside"]),
        &["pod outside/client is not in the mesh", "weir.dev/inject=enabled"],
    );
    holds(&fails(&sandbox, &["proxy-config", "nobody.shop"]), &["there is no pod shop/nobody"]);
    holds(&fails(&sandbox, &["describe", "service/nobody"]), &["the control plane knows no service default/nobody"]);
    holds(&says(&sandbox, &["describe", "pod/client.outside"]), &["! Not in the mesh: label its namespace"]);
    sandbox.down();
    holds(&fails(&sandbox, &["proxy-config", "client.shop"]), &["is not running", "weir sandbox up"]);
}
