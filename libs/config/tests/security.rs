//! PeerAuthentication and AuthorizationPolicy as users write them: what is read, what is refused, and that nothing that is
//! refused opens a door.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_config::{
    Object, Problem, frontend,
    manifest::Source,
    model::{
        AccessAction, AccessRule, AuthorizationPolicy, MtlsMode, Name, PeerAuthentication, Selection, Term, Test,
        TextMatch,
    },
    parse_stored, parse_value, parse_value_stored,
};

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn stored(value: Value) -> (Object, Vec<String>) {
    let mut stored = parse_value_stored(value, Source::named("test"));
    assert!(stored.is_whole, "{:?}", stored.problems);
    (stored.manifests.pop().unwrap().object, stored.problems.iter().map(Problem::to_string).collect())
}

fn access(spec: Value) -> (AuthorizationPolicy, Vec<String>) {
    let (object, problems) = stored(object("AuthorizationPolicy", spec));
    let Object::AuthorizationPolicy(policy) = object else { panic!("another kind") };
    (frontend::security::authorization_policy(&policy), problems)
}

fn peer(spec: Value) -> (PeerAuthentication, Vec<String>) {
    let (object, problems) = stored(object("PeerAuthentication", spec));
    let Object::PeerAuthentication(policy) = object else { panic!("another kind") };
    (frontend::security::peer_authentication(&policy), problems)
}

/// A policy with one rule; it must be accepted.
fn rule(rule: Value) -> AccessRule {
    let (policy, problems) = access(json!({"rules": [rule]}));
    assert_eq!(problems, [""; 0]);
    policy.rules.into_iter().next().unwrap()
}

/// Both versions; everything that can be said.
#[test]
fn all_that_is_supported() {
    let text = "
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/web, 'cluster.local/*', '*/sa/x', '*']
        notPrincipals: [cluster.local/ns/shop/sa/bad]
        namespaces: [shop, 'team-*', '*-test']
        ipBlocks: [10.1.2.3/8, 192.0.2.1, 'fd00::/8']
        notIpBlocks: ['fd00::1']
    - source: {serviceAccounts: [web, other/job], notServiceAccounts: [x]}
    to:
    - operation: {ports: ['80', '443'], notPorts: ['443']}
    when:
    - {key: destination.ip, values: [192.0.2.0/24]}
    - {key: source.principal, notValues: ['*']}
  - {}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop, creationTimestamp: '2026-01-02T03:04:05Z'}
spec:
  selector: {matchLabels: {app: cart}}
  mtls: {mode: STRICT}
  portLevelMtls: {'8080': {mode: PERMISSIVE}, '9090': {mode: UNSET}, '9091': {}}
";
    let manifests = weir_config::parse("a.yaml", text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let Object::AuthorizationPolicy(policy) = &manifests[0].object else { panic!("another kind") };
    let policy = frontend::security::authorization_policy(policy);
    assert_eq!((policy.name.to_string().as_str(), policy.action), ("shop/all", AccessAction::Deny));
    assert_eq!(policy.selection, Selection::Labels([("app".into(), "cart".into())].into()));
    let exact = |text: &str| TextMatch::Exact(text.into());
    let net = |text: &str| Test::SourceIp(text.parse().unwrap());
    let first = &policy.rules[0];
    assert_eq!(
        first.sources[0],
        [
            Term {
                any: [
                    exact("cluster.local/ns/shop/sa/web"),
                    TextMatch::Prefix("cluster.local/".into()),
                    TextMatch::Suffix("/sa/x".into()),
                    TextMatch::Present
                ]
                .map(Test::Principal)
                .into(),
                none: vec![Test::Principal(exact("cluster.local/ns/shop/sa/bad"))],
            },
            Term {
                any: [exact("shop"), TextMatch::Prefix("team-".into()), TextMatch::Suffix("-test".into())]
                    .map(Test::Namespace)
                    .into(),
                none: vec![],
            },
            Term { any: vec![net("10.0.0.0/8"), net("192.0.2.1/32"), net("fd00::/8")], none: vec![net("fd00::1/128")] },
        ]
    );
    let accounts = |namespace: &str, name: &str| Test::ServiceAccount(Name::new(namespace, name));
    assert_eq!(
        first.sources[1],
        [Term { any: vec![accounts("shop", "web"), accounts("other", "job")], none: vec![accounts("shop", "x")] }]
    );
    assert_eq!(first.operations, [[Term { any: vec![Test::Port(80), Test::Port(443)], none: vec![Test::Port(443)] }]]);
    assert_eq!(
        first.conditions,
        [
            Term { any: vec![Test::DestinationIp("192.0.2.0/24".parse().unwrap())], none: vec![] },
            Term { any: vec![], none: vec![Test::Principal(TextMatch::Present)] },
        ]
    );
    assert_eq!(policy.rules[1], AccessRule::default());
    let Object::PeerAuthentication(policy) = &manifests[1].object else { panic!("another kind") };
    let policy = frontend::security::peer_authentication(policy);
    assert_eq!((policy.mode, policy.created.as_str()), (Some(MtlsMode::Strict), "2026-01-02T03:04:05Z"));
    let ports: Vec<_> = policy.ports.into_iter().collect();
    assert_eq!(ports, [(8080, Some(MtlsMode::Permissive)), (9090, None), (9091, None)]);
}

#[test]
fn what_no_rules_and_empty_rules_mean() {
    for spec in [json!({}), json!({"rules": []}), json!({"action": "ALLOW"}), json!(null)] {
        let (policy, problems) = access(spec);
        assert_eq!((policy.rules.len(), policy.action, policy.selection), (0, AccessAction::Allow, Selection::All));
        assert_eq!(problems, [""; 0]);
    }
    assert_eq!(rule(json!({})), AccessRule::default());
    let (policy, _) = peer(json!(null));
    assert_eq!((policy.mode, policy.selection, policy.refused.len()), (None, Selection::All, 0));
}

/// One wrong part, what is said of it; the rest of the policy is fine.
fn refused_sources() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"remoteIpBlocks": ["10.0.0.0/8"]}),
            "source.remoteIpBlocks: is not supported: it looks at x-forwarded-for",
        ),
        (json!({"requestPrincipals": ["*"]}), "source.requestPrincipals: is not supported: it looks at HTTP requests"),
        (json!({"trustDomains": ["a"]}), "source.trustDomains: is not supported: use principals"),
        (json!({"principal": ["a"]}), "source.principal: is not a field that this kind has"),
        (json!({"principals": []}), "source.principals: is empty"),
        (json!({"principals": null}), "source.principals: is null"),
        (json!({"principals": "*"}), "source.principals: is no list"),
        (json!({"principals": [""]}), "source.principals[0]: is empty"),
        (json!({"principals": [7]}), "source.principals[0]: is no text"),
        (json!({"principals": ["spiffe://a/ns/b/sa/c"]}), "source.principals[0]: is written without spiffe://"),
        (json!({"principals": ["admin"]}), "source.principals[0]: is no identity"),
        (json!({"principals": ["a*b*"]}), "source.principals[0]: has a * elsewhere"),
        (json!({"principals": ["**"]}), "source.principals[0]: has a * elsewhere"),
        (json!({"namespaces": ["a.b"]}), "source.namespaces[0]: is no namespace's name"),
        (json!({"namespaces": ["a*b"]}), "source.namespaces[0]: is no namespace's name"),
        (json!({"serviceAccounts": ["a*"]}), "source.serviceAccounts[0]: is no service account"),
        (json!({"serviceAccounts": ["a/b/c"]}), "source.serviceAccounts[0]: is no service account"),
        (json!({"serviceAccounts": ["a"], "namespaces": ["b"]}), "names service accounts besides"),
        (json!({"ipBlocks": ["10.0.0.0/33"]}), "source.ipBlocks[0]: is neither an IP address nor a range"),
        (json!({"ipBlocks": ["10.0.0"]}), "source.ipBlocks[0]: is neither"),
        (json!({"ipBlocks": ["::ffff:10.0.0.1"]}), "source.ipBlocks[0]: is neither"),
        (json!({}), "source: has no fields"),
        (json!([]), "source: is no map"),
    ]
}

#[test]
fn what_can_not_be_enforced_is_refused_whole_and_by_name() {
    let good = json!({"from": [{"source": {"principals": ["*"]}}]});
    let sources = refused_sources().into_iter().map(|(source, said)| (json!({"from": [{"source": source}]}), said));
    let others = [
        (json!({"from": []}), "rules[1].from: is empty"),
        (json!({"from": [{}]}), "rules[1].from[0].source: is missing"),
        (json!({"from": [null]}), "rules[1].from[0]: is null"),
        (json!({"to": []}), "rules[1].to: is empty"),
        (json!({"when": []}), "rules[1].when: is empty"),
        (json!(null), "rules[1]: is null"),
        (json!("a"), "rules[1]: is no map"),
        (json!({"frm": []}), "rules[1].frm: is not a field"),
        (
            json!({"to": [{"operation": {"paths": ["/a"]}}]}),
            "operation.paths: is not supported: it looks at HTTP requests",
        ),
        (json!({"to": [{"operation": {"notHosts": ["a"]}}]}), "operation.notHosts: is not supported"),
        (json!({"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}), "operation.methods: is not supported"),
        (json!({"to": [{"operation": {"ports": [80]}}]}), "operation.ports[0]: is no text"),
        (json!({"to": [{"operation": {"ports": ["080"]}}]}), "operation.ports[0]: is not a port"),
        (json!({"to": [{"operation": {"ports": ["0"]}}]}), "operation.ports[0]: is not a port"),
        (json!({"to": [{"operation": {"ports": ["http"]}}]}), "operation.ports[0]: is not a port"),
        (json!({"when": [{"key": "request.headers[a]", "values": ["b"]}]}), "when[0].key: is not supported"),
        (json!({"when": [{"key": "connection.sni", "values": ["b"]}]}), "when[0].key: is not supported"),
        (json!({"when": [{"values": ["b"]}]}), "when[0].key: is not supported"),
        (json!({"when": [{"key": "source.ip"}]}), "when[0].values: is missing, and so is notValues"),
        (json!({"when": [{"key": "source.ip", "values": ["x"]}]}), "when[0].values[0]: is neither"),
    ];
    for action in ["ALLOW", "DENY"] {
        for (bad, said) in sources.clone().chain(others.iter().cloned()) {
            let (policy, problems) = access(json!({"action": action, "rules": [good, bad]}));
            assert!(problems.iter().any(|problem| problem.contains(said)), "{bad}: {problems:?}");
            assert!(problems.iter().all(|problem| problem.contains("AuthorizationPolicy shop/p")), "{problems:?}");
            assert!(policy.rules.is_empty() && !policy.refused.is_empty(), "{bad}: {policy:?}");
            assert_eq!(policy.action, if action == "DENY" { AccessAction::Deny } else { AccessAction::Allow });
            assert!(
                parse_value(object("AuthorizationPolicy", json!({"rules": [bad]})), Source::named("test")).is_err()
            );
        }
    }
}

#[test]
fn a_policy_of_which_less_is_known_is_closed_further() {
    let closed = |spec: Value| {
        let (policy, problems) = access(spec.clone());
        assert!(!problems.is_empty() && !policy.refused.is_empty() && policy.rules.is_empty(), "{spec}");
        (policy.action, policy.selection)
    };
    let all = json!([{}]);
    assert_eq!(closed(json!({"action": "CUSTOM", "rules": all})), (AccessAction::Deny, Selection::All));
    assert_eq!(closed(json!({"action": "allow", "rules": all})), (AccessAction::Deny, Selection::All));
    assert_eq!(closed(json!({"action": "AUDIT", "rules": all})), (AccessAction::Nothing, Selection::All));
    assert_eq!(closed(json!({"targetRefs": [], "rules": all})), (AccessAction::Allow, Selection::Unknown));
    assert_eq!(closed(json!({"provider": {"name": "x"}})), (AccessAction::Allow, Selection::All));
    for selector in [
        json!({"matchExpressions": []}),
        json!({"matchLabels": {"a": 1}}),
        json!([]),
        json!({"matchLabels": {"a": "*"}}),
    ] {
        assert_eq!(closed(json!({"selector": selector, "rules": all})), (AccessAction::Allow, Selection::Unknown));
    }
    assert_eq!(closed(json!("x")), (AccessAction::Allow, Selection::All));
    // A field beside `spec`, which a person may have meant inside it.
    let mut misplaced = object("AuthorizationPolicy", json!({"rules": all}));
    misplaced["rules"] = json!([]);
    let (Object::AuthorizationPolicy(policy), problems) = stored(misplaced) else { panic!("another kind") };
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(!frontend::security::authorization_policy(&policy).refused.is_empty());
}

#[test]
fn a_refused_peer_authentication_is_strict() {
    for (spec, said) in [
        (json!({"mtls": {"mode": "DISABLE"}}), "spec.mtls.mode: DISABLE is not supported"),
        (json!({"mtls": {"mode": "strict"}}), "spec.mtls.mode: is not one of"),
        (json!({"mtls": {"mod": "PERMISSIVE"}}), "spec.mtls.mod: is not a field"),
        (json!({"mtls": null}), "spec.mtls: is null"),
        (json!({"mtls": "PERMISSIVE"}), "spec.mtls: is no map"),
        (json!({"portLevelMtls": {"80": {"mode": "PERMISSIVE"}}}), "spec.portLevelMtls: needs a selector"),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {"mode": "PERMISSIVE"}}}),
            "spec.portLevelMtls.http: is not a port",
        ),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"80": {"mode": "DISABLE"}}}),
            "spec.portLevelMtls.80.mode: DISABLE is not supported",
        ),
    ] {
        let (policy, problems) = peer(spec.clone());
        assert!(problems.iter().any(|problem| problem.contains(said)), "{spec}: {problems:?}");
        assert_eq!((policy.mode, policy.ports.len()), (Some(MtlsMode::Strict), 0), "{spec}");
    }
}

#[test]
fn in_a_file_only_other_objects_keep_their_last_good_form() {
    let bad_rule = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec: {rules: x}\n";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {clusterIP: 1.2.3.4, ports: [{port: 80}]}\n";
    let read = parse_stored("a.yaml", &format!("{bad_rule}{service}"));
    assert_eq!((read.is_whole, read.manifests.len(), read.problems.len()), (true, 2, 1));
    assert_eq!(
        read.problems[0].to_string(),
        "a.yaml:4: AuthorizationPolicy b/a: spec.rules: is no list",
        "the file's line is said"
    );
    for broken in [service.replace("80", "0"), "---\na: [\n".to_owned(), bad_rule.replacen("api", "---\napi", 1)] {
        assert!(!parse_stored("a.yaml", &format!("{bad_rule}{broken}")).is_whole, "{broken}");
    }
}

#[test]
fn texts_are_compared_as_istio_does() {
    for (pattern, yes, no) in [
        ("a.b", &["a.b"][..], &["axb", "a.bc", "xa.b", ""][..]),
        ("a*", &["a", "ab", "a.b"], &["ba", ""]),
        ("*a", &["a", "ba"], &["ab", ""]),
        ("*", &["a", "*"], &[""]),
        ("A", &["A"], &["a"]),
    ] {
        let pattern = TextMatch::read(pattern);
        assert!(yes.iter().all(|text| pattern.matches(text)), "{pattern}");
        assert!(!no.iter().any(|text| pattern.matches(text)), "{pattern}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = [
        "selector",
        "matchLabels",
        "action",
        "rules",
        "from",
        "to",
        "when",
        "source",
        "operation",
        "principals",
        "ports",
        "notPorts",
        "ipBlocks",
        "key",
        "values",
        "mtls",
        "mode",
        "portLevelMtls",
        "paths",
    ];
    let texts = ["*", "ALLOW", "DENY", "80", "10.0.0.0/8", "source.ip", "STRICT", "PERMISSIVE", "cluster.local/*", ""];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        proptest::sample::select(texts.to_vec()).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 4, move |inner| {
        let key = prop_oneof![proptest::sample::select(words.to_vec()).prop_map(String::from), "[a-z0-9]{1,6}"];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is stored: a rule, no panic, and where anything is wrong a closed one.
    #[test]
    fn any_spec_gives_a_rule(spec in any_json()) {
        let (policy, problems) = access(spec.clone());
        prop_assert_eq!(problems.is_empty(), policy.refused.is_empty());
        prop_assert!(policy.refused.is_empty() || policy.rules.is_empty());
        let (policy, problems) = peer(spec);
        prop_assert_eq!(problems.is_empty(), policy.refused.is_empty());
        prop_assert!(policy.refused.is_empty() || (policy.mode == Some(MtlsMode::Strict) && policy.ports.is_empty()));
    }

    /// A good policy with one field of any rule replaced is either what was written or closed.
    #[test]
    fn one_field_replaced(at in 0_usize..6, with in any_json()) {
        let mut spec = json!({"action": "ALLOW", "rules": [{
            "from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}],
            "to": [{"operation": {"ports": ["80"]}}],
            "when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}]}]});
        let pointer = ["/rules", "/rules/0", "/rules/0/from", "/rules/0/to", "/rules/0/when", "/rules/0/from/0/source/principals"][at];
        *spec.pointer_mut(pointer).unwrap() = with.clone();
        let (policy, problems) = access(spec);
        if problems.is_empty() {
            // Accepted: it has as many rules, sources, operations and conditions as were written; nothing was left out.
            let count = |value: Option<&Value>| value.and_then(Value::as_array).map_or(0, Vec::len);
            if at == 1 {
                prop_assert_eq!(policy.rules[0].sources.len(), count(with.get("from")));
                prop_assert_eq!(policy.rules[0].operations.len(), count(with.get("to")));
                prop_assert_eq!(policy.rules[0].conditions.len(), count(with.get("when")));
            }
            if at == 5 {
                prop_assert_eq!(policy.rules[0].sources[0][0].any.len(), count(Some(&with)));
            }
        } else {
            prop_assert!(policy.rules.is_empty());
        }
    }
}
