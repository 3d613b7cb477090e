//! Gateway API's routes: all that is accepted as the model has it, and all that is refused, by field.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use weir_config::{
    Object, Problem,
    model::{PathChange, PathMatcher, RouteSet, Rules, SessionBy},
    parse, validate,
};

fn http(rest: &str) -> String {
    route("HTTPRoute", rest)
}

fn route(kind: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: '', name: catalog, port: 80}}]\n{rest}"
    )
}

fn rule(rest: &str) -> String {
    http(&format!("  rules:\n  - {rest}\n"))
}

fn read(text: &str) -> RouteSet {
    let manifests = parse("r.yaml", text).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"));
    manifests[0].object.route().expect("a route").expect("a good one")
}

fn wrong(text: &str) -> Vec<String> {
    let Err(problems) = parse("r.yaml", text) else { panic!("accepted: {text}") };
    problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
}

#[test]
fn all_that_a_rule_of_http_can_say() {
    let set = read(&rule(
        "name: first
    matches: [{path: {value: /api/}, method: GET}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: in.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2/}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}, percent: 5}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}, fraction: {numerator: 1, denominator: 3}}}
    - {type: CORS, cors: {allowOrigins: ['https://*.a.example'], allowMethods: ['*'], allowHeaders: [X-A], exposeHeaders: [x-b],
        maxAge: 60, allowCredentials: true}}
    timeouts: {request: 1m30s, backendRequest: 500ms}
    retry: {codes: [503, 504], attempts: 3, backoff: 25ms}
    sessionPersistence: {sessionName: sid, cookieConfig: {lifetimeType: Permanent}, absoluteTimeout: 1h}
    backendRefs: [{name: v1, port: 80}]",
    ));
    let Rules::Requests(rules) = &set.rules else { panic!("{set:?}") };
    let rule = &rules[0];
    assert_eq!(rule.name.as_deref(), Some("first"));
    assert_eq!(rule.matches[0].path, PathMatcher::Prefix("/api".into()));
    assert_eq!(rule.rewrite_host.as_deref(), Some("in.example"));
    assert_eq!(rule.rewrite_path, Some(PathChange::Prefix("/v2".into())));
    assert_eq!(rule.mirrors.iter().map(|mirror| mirror.millionths).collect::<Vec<_>>(), [50_000, 333_333]);
    let cors = rule.cors.as_ref().unwrap();
    assert_eq!((cors.max_age, cors.credentials, cors.methods.as_slice()), (60, true, &["*".to_owned()][..]));
    assert_eq!((rule.timeout, rule.attempt_timeout), (Some(Duration::from_secs(90)), Some(Duration::from_millis(500))));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!(
        (retry.attempts, retry.statuses.as_slice(), retry.pause),
        (3, &[503, 504][..], Some(Duration::from_millis(25)))
    );
    assert_eq!(rule.session.as_ref().unwrap().by, SessionBy::Cookie(Some(Duration::from_secs(3600))));
}

#[test]
fn redirects() {
    let set = read(&rule(
        "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: a.example, port: 8443, statusCode: 308,
        path: {type: ReplaceFullPath, replaceFullPath: /there}}}]",
    ));
    let redirect = set.rules.requests()[0].redirect.as_ref().unwrap();
    assert_eq!((redirect.scheme, redirect.port, redirect.status), (Some("https"), Some(8443), 308));
    assert_eq!(redirect.path, Some(PathChange::Whole("/there".into())));
}

#[test]
fn calls_of_grpc() {
    let set = read(&route(
        "GRPCRoute",
        "  rules:\n  - matches: [{method: {service: a.B, method: C}}, {method: {type: RegularExpression, service: 'a\\..*'}}, {headers: [{name: X, value: z}]}]\n    backendRefs: [{name: v1, port: 80}]\n",
    ));
    let Rules::Calls(rules) = &set.rules else { panic!("{set:?}") };
    let call = |service: Option<&str>, method: Option<&str>, regex| PathMatcher::Call {
        service: service.map(str::to_owned),
        method: method.map(str::to_owned),
        regex,
    };
    let paths: Vec<&PathMatcher> = rules[0].matches.iter().map(|matcher| &matcher.path).collect();
    assert_eq!(paths, [&call(Some("a.B"), Some("C"), false), &call(Some("a\\..*"), None, true), &PathMatcher::any()]);
    assert_eq!(rules[0].matches[2].headers[0].name, "x");
}

#[test]
fn streams() {
    let rules = "  rules: [{backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80}]}]\n";
    let Rules::Tcp(rule) = read(&route("TCPRoute", rules)).rules else { panic!() };
    assert_eq!(rule.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [9, 1]);
    let Rules::Tls(rule) = read(&route("TLSRoute", &format!("  hostnames: [a.example, '*.b.example']\n{rules}"))).rules
    else {
        panic!()
    };
    assert_eq!(rule.server_names, ["a.example", "*.b.example"]);
}

#[test]
fn what_is_wrong_is_refused_by_field() {
    let filter = |filter: &str| rule(&format!("filters: [{filter}]"));
    let redirect = |redirect: &str| filter(&format!("{{type: RequestRedirect, requestRedirect: {redirect}}}"));
    let rewrite = |rewrite: &str| filter(&format!("{{type: URLRewrite, urlRewrite: {rewrite}}}"));
    let cors = |cors: &str| filter(&format!("{{type: CORS, cors: {cors}}}"));
    let mirror = |share: &str| {
        filter(&format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: a, port: 80}}, {share}}}}}"))
    };
    let session = |session: &str| rule(&format!("sessionPersistence: {session}"));
    let grpc = |method: &str| route("GRPCRoute", &format!("  rules: [{{matches: [{{method: {method}}}]}}]\n"));
    let first = "spec.rules[0].filters[0]";
    for (text, want) in [
        (rule("timeouts: {request: 1}"), "spec.rules[0].timeouts.request: invalid type".to_owned()),
        (rule("timeouts: {request: 1.5s}"), "spec.rules[0].timeouts.request: \"1.5s\" is not a duration".into()),
        (
            rule("timeouts: {request: 1s, backendRequest: 2s}"),
            "spec.rules[0].timeouts.backendRequest: is longer".into(),
        ),
        (rule("retry: {codes: [200]}"), "spec.rules[0].retry.codes[0]: 200 is not a status of a failure".into()),
        (rule("retry: {codes: [503, 503]}"), "spec.rules[0].retry.codes[1]: 503 comes twice".into()),
        (rule("retry: {attempts: 0}"), "spec.rules[0].retry.attempts: 0 is not a number".into()),
        (rule("retry: {attempts: 99999999999999999999}"), "spec.rules[0].retry.attempts: ".into()),
        (redirect("{statusCode: 300}"), format!("{first}.requestRedirect.statusCode: 300 is not one of")),
        (redirect("{hostname: 'A.example'}"), format!("{first}.requestRedirect.hostname: ")),
        (redirect("{hostname: '*.example'}"), format!("{first}.requestRedirect.hostname: ")),
        (redirect("{port: 65536}"), format!("{first}.requestRedirect.port: 65536 is not a port")),
        (redirect("{scheme: ftp}"), format!("{first}.requestRedirect.scheme: unknown variant `ftp`")),
        (
            rule("filters: [{type: RequestRedirect, requestRedirect: {}}]\n    backendRefs: [{name: a, port: 80}]"),
            "spec.rules[0].backendRefs: is beside a RequestRedirect".into(),
        ),
        (
            filter("{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}"),
            "spec.rules[0].filters: has both RequestRedirect and URLRewrite".into(),
        ),
        (
            filter("{type: URLRewrite, urlRewrite: {}, cors: {}}"),
            format!("{first}.cors: does not belong to type URLRewrite"),
        ),
        (rewrite("{path: {type: ReplaceFullPath}}"), format!("{first}.urlRewrite.path.replaceFullPath: is missing")),
        (
            rewrite("{path: {type: ReplaceFullPath, replaceFullPath: a}}"),
            format!("{first}.urlRewrite.path.replaceFullPath: \"a\" must start with /"),
        ),
        (
            rewrite("{path: {type: ReplaceFullPath, replaceFullPath: '/a?b'}}"),
            format!("{first}.urlRewrite.path.replaceFullPath: has a character"),
        ),
        (
            rewrite("{path: {type: ReplaceFullPath, replaceFullPath: /a/../b}}"),
            format!("{first}.urlRewrite.path.replaceFullPath: \"/a/../b\" has a segment"),
        ),
        (
            rule(
                "matches: [{path: {type: Exact, value: /a}}]\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
            ),
            "spec.rules[0].filters: replacePrefixMatch needs a prefix".into(),
        ),
        (mirror("percent: 101"), format!("{first}.requestMirror.percent: 101 is not a share")),
        (mirror("percent: 1, fraction: {numerator: 1}"), format!("{first}.requestMirror: has both")),
        (
            mirror("fraction: {numerator: 2, denominator: 1}"),
            format!("{first}.requestMirror.fraction: 2/1 is not a share"),
        ),
        (
            mirror("fraction: {numerator: 1, denominator: 0}"),
            format!("{first}.requestMirror.fraction: 1/0 is not a share"),
        ),
        (cors("{allowOrigins: [a.example]}"), format!("{first}.cors.allowOrigins[0]: \"a.example\" is no origin")),
        (cors("{allowOrigins: ['*', 'https://a']}"), format!("{first}.cors.allowOrigins: has * beside others")),
        (cors("{maxAge: 0}"), format!("{first}.cors.maxAge: is not a number of seconds")),
        (cors("{maxAge: 4294967296}"), format!("{first}.cors.maxAge: is not a number of seconds")),
        (session("{type: Header, cookieConfig: {}}"), "spec.rules[0].sessionPersistence.cookieConfig: is for".into()),
        (session("{absoluteTimeout: 1h}"), "spec.rules[0].sessionPersistence.absoluteTimeout: is not supported".into()),
        (
            session("{cookieConfig: {lifetimeType: Permanent}}"),
            "spec.rules[0].sessionPersistence.absoluteTimeout: is missing".into(),
        ),
        (session("{sessionName: 'a b'}"), "spec.rules[0].sessionPersistence.sessionName: must be".into()),
        (
            rule("backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: b}}]}]"),
            "spec.rules[0].backendRefs[0].filters[0].type: URLRewrite is not supported for one backend".into(),
        ),
        (
            rule("backendRefs: [{name: a, port: 80, weight: 1000001}]"),
            "spec.rules[0].backendRefs[0].weight: 1000001 is not a weight".into(),
        ),
        (
            rule("backendRefs: [{name: a, port: 80, weight: 9223372036854775808}]"),
            "spec.rules[0].backendRefs[0].weight: ".into(),
        ),
        (
            rule(&format!("matches: [{{path: {{type: RegularExpression, value: '/{}'}}}}]", "a".repeat(1024))),
            "spec.rules[0].matches[0].path.value: ".into(),
        ),
        (grpc("{}"), "spec.rules[0].matches[0].method: has neither service nor method".into()),
        (grpc("{service: a/b}"), "spec.rules[0].matches[0].method.service: \"a/b\" is not a name".into()),
        (grpc("{method: a.b}"), "spec.rules[0].matches[0].method.method: \"a.b\" is not a name".into()),
        (
            grpc("{type: RegularExpression, method: '('}"),
            "spec.rules[0].matches[0].method.method: is no regular".into(),
        ),
        (route("TCPRoute", "  rules: []\n"), "spec.rules: has 0 entries; exactly one".into()),
        (route("TCPRoute", "  rules: [{backendRefs: []}]\n"), "spec.rules[0].backendRefs: is empty".into()),
        (route("TLSRoute", "  rules: [{backendRefs: [{name: a, port: 1}]}]\n"), "spec.hostnames: is empty".into()),
        (
            http("").replace("port: 80}]", "port: 80}, {kind: Service, group: '', name: catalog}]"),
            "spec.parentRefs[1]: names all ports of a Service beside one".into(),
        ),
    ] {
        let errors = wrong(&text);
        assert!(errors.iter().any(|error| error.starts_with(&want)), "{text}\n{errors:#?}\nwant {want}");
    }
}

/// Every kind of wildcard, every case, and what is no name at all.
#[test]
fn names_of_servers() {
    for name in [
        "*",
        "*.",
        "*.*.a",
        "a.*",
        "a*.b",
        "A.example",
        "a..b",
        "-a.b",
        "198.18.0.1",
        "a.b:443",
        "a_b",
        "",
        "*.198.18.0.1",
    ] {
        let text = format!("  hostnames: ['{name}']\n  rules: [{{backendRefs: [{{name: a, port: 1}}]}}]\n");
        let errors = wrong(&route("TLSRoute", &text));
        assert!(errors[0].starts_with("spec.hostnames[0]: "), "{name}: {errors:?}");
    }
}

#[test]
fn many_matches_are_bounded() {
    let matches = |n: usize| vec!["{method: GET}"; n].join(", ");
    let text = http(&format!("  rules:\n{}", format!("  - matches: [{}]\n", matches(64)).repeat(3)));
    assert!(wrong(&text)[0].starts_with("spec.rules: has 192 entries; at most 128"), "{:?}", wrong(&text));
}

#[test]
fn another_namespace_has_to_allow_what_is_sent_to_it() {
    let world = |grant: &str| {
        let service = |name: &str, namespace: &str| {
            format!(
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: 198.19.0.1, ports: [{{name: http, port: 80}}]}}\n"
            )
        };
        let text = format!(
            "{}{}{}{grant}",
            http(
                "  rules: [{backendRefs: [{name: far, namespace: other, port: 80}, {name: b, kind: Bucket, group: x}]}]\n"
            ),
            service("catalog", "shop"),
            service("far", "other"),
        );
        let problems: Vec<String> = validate(&parse("r.yaml", &text).unwrap()).iter().map(Problem::to_string).collect();
        problems
    };
    let foreign =
        "r.yaml:6: HTTPRoute shop/r: spec.rules[0].backendRefs[1].kind: Bucket of x is nothing that can be called";
    let refused = world("");
    assert!(
        refused[0].contains("spec.rules[0].backendRefs[0].namespace: Service other/far is of another namespace"),
        "{refused:?}"
    );
    assert_eq!(refused.len(), 2, "{refused:?}");
    let grant = |version: &str, from: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: other}}\nspec:\n  from: [{{group: gateway.networking.k8s.io, kind: {from}, namespace: shop}}]\n  to: [{{group: '', kind: Service}}]\n"
        )
    };
    for (version, from, left) in [("v1", "HTTPRoute", 1), ("v1beta1", "HTTPRoute", 1), ("v1", "TCPRoute", 2)] {
        let problems = world(&grant(version, from));
        assert_eq!(problems.len(), left, "{problems:?}");
        assert!(problems.last().unwrap().starts_with(foreign), "{problems:?}");
    }
}

/// What is generated is what the definitions say, and their version is the tests' cluster's.
#[test]
fn kinds_are_read_with_every_field_of_their_definition() {
    let manifests = parse("r.yaml", &rule("name: a")).unwrap();
    assert!(matches!(manifests[0].object, Object::HttpRoute(_)));
    let generated = include_str!("../src/gateway/generated.rs");
    let module = include_str!("../../../tests/cluster/gateway-api/go.mod");
    let version = module.rsplit(' ').next().unwrap().trim();
    assert!(generated.contains(&format!("of Gateway API {version},")), "run `make generate`");
}

/// The examples are what they say: nothing in them is refused, and all that they name is there.
#[test]
fn the_examples_are_accepted() {
    let files = [
        include_str!("../../../examples/traffic/service.yaml"),
        include_str!("../../../examples/traffic/routes.yaml"),
        include_str!("../../../examples/traffic/policies.yaml"),
    ];
    let mut manifests = Vec::new();
    for text in files {
        manifests.extend(parse("example.yaml", text).unwrap_or_else(|problems| panic!("{problems:#?}")));
    }
    assert_eq!(validate(&manifests), []);
    let kinds: std::collections::BTreeSet<&str> = manifests.iter().map(|manifest| manifest.object.kind()).collect();
    assert!(
        kinds.contains("TrafficPolicy") && kinds.contains("DestinationRule") && kinds.contains("TLSRoute"),
        "{kinds:?}"
    );
}
