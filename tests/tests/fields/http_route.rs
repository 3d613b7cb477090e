//! HTTPRoute.

use serde_json::{Value, json};
use weir_tests::is_root;

use crate::{
    ask::{Ask, get},
    document,
    mesh::{HTTP, MORE_HTTP, Mesh, SERVICE},
    objects::{and, backend, http},
    references::{self, Kind},
    requests::{self, Requests},
    table::Table,
};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

#[test]
fn http_route() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("HTTPRoute") else { return };
    let mesh = Mesh::new("fields-http");
    let kind = Kind {
        kind: "HTTPRoute",
        port: HTTP,
        other_port: MORE_HTTP,
        spec: json!({}),
        pods: || get("/").pods(),
        shares: || get("/").shares(8),
        bad: "500",
    };
    references::show(&mut table, &mesh, &kind);
    let one = || backend("one", HTTP);
    let requests = Requests { kind: "HTTPRoute", port: HTTP, ask: || get("/"), other_filters: other_filters() };
    requests::show(&mut table, &mesh, &requests);
    matches(&mut table, &mesh, &requests);
    redirects(&mut table, &mesh);
    rewrites(&mut table, &mesh);
    origins(&mut table, &mesh);
    times(&mut table, &mesh);
    let plain = http(json!({"backendRefs": [one()]}));
    let mut hosts = plain.clone();
    hosts["spec"]["hostnames"] = json!(["shop.example"]);
    table.refused(&["spec.hostnames[]"], &hosts, &plain);
    table.finish();
}

/// Filters that a rule can have and a backend can not; of ExternalAuth neither.
fn other_filters() -> Vec<(&'static str, Value)> {
    let auth = json!({"protocol": "HTTP", "http": {}, "backendRef": backend("one", HTTP)});
    vec![
        ("ExternalAuth", json!({"type": "ExternalAuth", "externalAuth": auth})),
        ("CORS", json!({"type": "CORS", "cors": {"allowOrigins": ["*"]}})),
        ("RequestMirror", json!({"type": "RequestMirror", "requestMirror": {"backendRef": backend("two", HTTP)}})),
        ("RequestRedirect", json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "a.example"}})),
        ("URLRewrite", json!({"type": "URLRewrite", "urlRewrite": {"hostname": "a.example"}})),
    ]
}

fn matches(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    let path = |of: &str, value: &str| kind.matched(json!({"path": {"type": of, "value": value}}));
    let (exact, prefix, regex) = (path("Exact", "/a."), path("PathPrefix", "/a."), path("RegularExpression", "/a."));
    let other = path("Exact", "/b");
    table.acts(mesh, &get("/a./b").pod(), (&exact, "two"), (&prefix, "one"));
    table.acts(mesh, &get("/a./b").pod(), (&prefix, "one"), (&exact, "two"));
    table.acts(mesh, &get("/ab").pod(), (&regex, "one"), (&exact, "two"));
    table.acts(mesh, &get("/a.").pod(), (&exact, "one"), (&other, "two"));
    for method in METHODS {
        let of = |method: &str| kind.matched(json!({"method": method}));
        let path = if method == "CONNECT" { "shop.example:443" } else { "/" };
        let other = if method == "GET" { "POST" } else { "GET" };
        let (with, without) = (of(method), of(other));
        table.acts(mesh, &get(path).method(method).header("x-pod"), (&with, "one"), (&without, "two"));
    }
    requests::values_matched(table, mesh, kind, "queryParams", &|value| get(&format!("/?x-a={value}")));
}

fn redirects(table: &mut Table, mesh: &Mesh) {
    let rule = |redirect: Value| {
        let filter = json!({"type": "RequestRedirect", "requestRedirect": redirect});
        [http(json!({"matches": [{"path": {"type": "PathPrefix", "value": "/a"}}], "filters": [filter]}))]
    };
    let plain = [http(json!({"matches": [{"path": {"type": "PathPrefix", "value": "/a"}}]}))];
    let (ask, location) = (|| get("/a/b"), || get("/a/b").header("location"));
    let host = || json!({"hostname": "a.example"});
    let whole = rule(host());
    table.acts(mesh, &location(), (&whole, "http://a.example/a/b"), (&plain, "none"));
    for status in [301, 302, 303, 307, 308] {
        let other = if status == 301 { 302 } else { 301 };
        let of = |status: u16| rule(and(host(), json!({"statusCode": status})));
        let seen = [status.to_string(), other.to_string()];
        table.acts(mesh, &ask().status(), (&of(status), &seen[0]), (&of(other), &seen[1]));
    }
    let with = |more: Value| rule(and(host(), more));
    let (plain, secure) = (with(json!({"scheme": "http"})), with(json!({"scheme": "https"})));
    table.acts(mesh, &location(), (&plain, "http://a.example/a/b"), (&secure, "https://a.example/a/b"));
    table.acts(mesh, &location(), (&secure, "https://a.example/a/b"), (&whole, "http://a.example/a/b"));
    let port = with(json!({"port": 8083}));
    table.acts(mesh, &location(), (&port, "http://a.example:8083/a/b"), (&whole, "http://a.example/a/b"));
    let full = with(json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/c"}}));
    table.acts(mesh, &location(), (&full, "http://a.example/c"), (&whole, "http://a.example/a/b"));
    let prefix = with(json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/c"}}));
    table.acts(mesh, &location(), (&prefix, "http://a.example/c/b"), (&whole, "http://a.example/a/b"));
}

fn rewrites(table: &mut Table, mesh: &Mesh) {
    let rule = |filters: Value| {
        let matches = json!([{"path": {"type": "PathPrefix", "value": "/a"}}]);
        [http(json!({"matches": matches, "backendRefs": [backend("one", HTTP)], "filters": filters}))]
    };
    let rewrite = |rewrite: Value| rule(json!([{"type": "URLRewrite", "urlRewrite": rewrite}]));
    let plain = rule(json!([]));
    table.acts(
        mesh,
        &get("/a/b").got("host"),
        (&rewrite(json!({"hostname": "a.example"})), "a.example"),
        (&plain, SERVICE),
    );
    let full = rewrite(json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/c"}}));
    table.acts(mesh, &get("/a/b").got_path(), (&full, "/c"), (&plain, "/a/b"));
    let prefix = rewrite(json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/c"}}));
    table.acts(mesh, &get("/a/b").got_path(), (&prefix, "/c/b"), (&plain, "/a/b"));
}

/// What a browser asks before a page's request, and what the answer to that says.
fn origins(table: &mut Table, mesh: &Mesh) {
    let page = || get("/").with("origin", "https://page.example");
    let preflight = |method: &str| page().method("OPTIONS").with("access-control-request-method", method);
    let rule = |filters: Value| [http(json!({"backendRefs": [backend("one", HTTP)], "filters": filters}))];
    let cors = |more: Value| {
        rule(json!([{"type": "CORS", "cors": and(json!({"allowOrigins": ["https://page.example"]}), more)}]))
    };
    let plain = cors(json!({}));
    let allowed = |ask: Ask| ask.header("access-control-allow-origin");
    table.acts(mesh, &allowed(page()), (&plain, "https://page.example"), (&rule(json!([])), "none"));
    let other = cors(json!({"allowOrigins": ["https://other.example"]}));
    table.acts(mesh, &allowed(page()), (&plain, "https://page.example"), (&other, "none"));
    for method in METHODS.into_iter().chain(["*"]) {
        let other = if method == "GET" { "PUT" } else { "GET" };
        let of = |method: &str| cors(json!({"allowMethods": [method]}));
        let probe = preflight("PUT").header("access-control-allow-methods");
        table.acts(mesh, &probe, (&of(method), method), (&of(other), other));
    }
    let headers = cors(json!({"allowHeaders": ["x-a"]}));
    table.acts(mesh, &preflight("GET").header("access-control-allow-headers"), (&headers, "x-a"), (&plain, "none"));
    let exposed = cors(json!({"exposeHeaders": ["x-a"]}));
    table.acts(mesh, &page().header("access-control-expose-headers"), (&exposed, "x-a"), (&plain, "none"));
    let age = cors(json!({"maxAge": 60}));
    table.acts(mesh, &preflight("GET").header("access-control-max-age"), (&age, "60"), (&plain, "5"));
    let credentials = cors(json!({"allowCredentials": true}));
    table.acts(mesh, &page().header("access-control-allow-credentials"), (&credentials, "true"), (&plain, "none"));
}

/// Time-outs, and what is sent again.
fn times(table: &mut Table, mesh: &Mesh) {
    let rule = |more: Value| [http(and(json!({"backendRefs": [backend("one", HTTP)]}), more))];
    let plain = rule(json!({}));
    let slow = || get("/").with("x-wait", "600").status();
    table.acts(mesh, &slow(), (&rule(json!({"timeouts": {"request": "200ms"}})), "504"), (&plain, "200"));
    table.acts(mesh, &slow(), (&rule(json!({"timeouts": {"backendRequest": "200ms"}})), "504"), (&plain, "200"));
    let fails = || get("/").with("x-status", "503");
    let retry = |retry: Value| rule(json!({"retry": retry}));
    let codes = retry(json!({"codes": [503]}));
    table.acts(mesh, &requests::attempts(fails()), (&codes, "3"), (&retry(json!({"codes": [500]})), "1"));
    let once = retry(json!({"codes": [503], "attempts": 1}));
    table.acts(mesh, &requests::attempts(fails()), (&once, "2"), (&codes, "3"));
    let late = retry(json!({"codes": [503], "attempts": 1, "backoff": "500ms"}));
    table.acts(mesh, &fails().takes(400), (&late, "503 after more than 400 ms"), (&once, "503 after less than 400 ms"));
}
