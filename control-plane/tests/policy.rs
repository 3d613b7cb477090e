//! Access rules in, the pod's inbound listener out, as text that a person can check.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use prost::Message as _;
use weir_config::model::Name;
use weir_control::{
    source::Item,
    translate::{Key, Mesh, resource},
    world::World,
};
use weir_xds::{
    Kind, Resource,
    envoy::{
        NETWORK_RBAC, PEER_NAMESPACE,
        core::{CidrRange, Metadata},
        listener::{FilterChain, Listener, filter::ConfigType},
        matcher::{StringMatcher, filter_state_matcher, string_matcher::MatchPattern},
        network_rbac::Rbac,
        protobuf::value::Kind as ValueKind,
        rbac::{Permission, Principal, permission, principal, rbac::Action},
    },
};

const GOLDEN: &str = include_str!("data/policy.golden");
const OBJECTS: &str = include_str!("data/policy.yaml");

fn inbound(text: &str, trust_domain: &str) -> Resource {
    let mut world = World::default();
    let mut touched = HashSet::new();
    for manifest in weir_config::parse_stored("policy.yaml", text).manifests {
        if let Some(item) = Item::of(&manifest.object) {
            world.apply(item, &mut touched);
        }
    }
    let mesh = Mesh { trust_domain: trust_domain.parse().unwrap(), cluster_domain: "cluster.local".into() };
    let key = Key::new(Kind::Listener, Arc::from("weir/inbound"), &Name::new("shop", "web"));
    resource(&mesh, &world, &key, &Default::default()).unwrap()
}

fn ours(metadata: Option<&Metadata>) -> BTreeMap<String, String> {
    let fields = metadata.and_then(|metadata| metadata.filter_metadata.get("weir")).map(|ours| &ours.fields);
    let text = |value: &ValueKind| if let ValueKind::StringValue(text) = value { text.clone() } else { "?".into() };
    fields.into_iter().flatten().map(|(key, value)| (key.clone(), text(value.kind.as_ref().unwrap()))).collect()
}

fn show_text(matcher: &StringMatcher) -> String {
    match matcher.match_pattern.as_ref().unwrap() {
        MatchPattern::Exact(text) => text.clone(),
        MatchPattern::Prefix(text) => format!("{text}*"),
        MatchPattern::Suffix(text) => format!("*{text}"),
        other => panic!("{other:?}"),
    }
}

fn show_range(range: &CidrRange) -> String {
    format!("{}/{}", range.address_prefix, range.prefix_len.as_ref().unwrap().value)
}

fn list(word: &str, parts: Vec<String>) -> String {
    format!("{word}({})", parts.join(", "))
}

fn show_permission(permission: &Permission) -> String {
    use permission::Rule;
    match permission.rule.as_ref().unwrap() {
        Rule::Any(true) => "any".into(),
        Rule::AndRules(set) => list("and", set.rules.iter().map(show_permission).collect()),
        Rule::OrRules(set) => list("or", set.rules.iter().map(show_permission).collect()),
        Rule::NotRule(rule) => list("not", vec![show_permission(rule)]),
        Rule::DestinationIp(range) => format!("to {}", show_range(range)),
        Rule::DestinationPort(port) => format!("port {port}"),
        other => panic!("{other:?}"),
    }
}

fn show_principal(principal: &Principal) -> String {
    use principal::Identifier;
    match principal.identifier.as_ref().unwrap() {
        Identifier::Any(true) => "any".into(),
        Identifier::AndIds(set) => list("and", set.ids.iter().map(show_principal).collect()),
        Identifier::OrIds(set) => list("or", set.ids.iter().map(show_principal).collect()),
        Identifier::NotId(id) => list("not", vec![show_principal(id)]),
        Identifier::Authenticated(name) => name
            .principal_name
            .as_ref()
            .map_or_else(|| "authenticated".into(), |name| format!("id {}", show_text(name))),
        Identifier::DirectRemoteIp(range) => format!("from {}", show_range(range)),
        Identifier::FilterState(state) => {
            assert_eq!(state.key, PEER_NAMESPACE);
            let Some(filter_state_matcher::Matcher::StringMatch(text)) = &state.matcher else { panic!("{state:?}") };
            format!("namespace {}", show_text(text))
        }
        other => panic!("{other:?}"),
    }
}

fn show_guard(chain: &FilterChain) -> String {
    let mut text = String::new();
    for filter in chain.filters.iter().filter(|filter| filter.name == NETWORK_RBAC) {
        let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { panic!("no configuration") };
        let rules = Rbac::decode(config.value.as_slice()).unwrap().rules.unwrap();
        text.push_str(&format!("{}\n", Action::try_from(rules.action).unwrap().as_str_name()));
        let policies: BTreeMap<_, _> = rules.policies.iter().collect();
        for (name, policy) in policies {
            text.push_str(&format!("  {name}\n"));
            for principal in &policy.principals {
                text.push_str(&format!("    who  {}\n", show_principal(principal)));
            }
            for permission in &policy.permissions {
                text.push_str(&format!("    what {}\n", show_permission(permission)));
            }
        }
    }
    text
}

fn show(resource: &Resource) -> String {
    let listener = Listener::decode(resource.body.clone()).unwrap();
    let mut text = format!("all ports {:?}\n", ours(listener.metadata.as_ref()));
    let guard = show_guard(listener.default_filter_chain.as_ref().unwrap());
    for chain in &listener.filter_chains {
        assert_eq!(show_guard(chain), guard, "every chain has the same guard");
        assert!(chain.filters.last().unwrap().name != NETWORK_RBAC, "the guard stands before what it guards");
        let port = chain.filter_chain_match.as_ref().unwrap().destination_port.as_ref().unwrap().value;
        let ours = ours(chain.metadata.as_ref());
        let line = if ours.is_empty() { format!("port {port}\n") } else { format!("port {port} {ours:?}\n") };
        if !text.ends_with(&line) {
            text.push_str(&line);
        }
    }
    text + &guard
}

#[test]
fn as_the_golden_file_says() {
    let text = show(&inbound(OBJECTS, "cluster.local"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/policy.golden"), &text).unwrap();
        return;
    }
    assert_eq!(text, GOLDEN, "{text}");
}

#[test]
fn cluster_local_stands_for_the_meshs_own_trust_domain() {
    let text = show(&inbound(OBJECTS, "prod.example"));
    assert!(text.contains("id spiffe://prod.example/ns/shop/sa/cart"), "{text}");
    assert!(text.contains("id spiffe://prod.example/*"), "{text}");
    assert!(text.contains("id spiffe://other.example/ns/shop/sa/cart"), "{text}");
    assert!(!text.contains("cluster.local"), "{text}");
}

#[test]
fn equal_rules_have_equal_bytes_and_no_rules_add_none() {
    let versions: HashSet<String> = (0..16).map(|_| inbound(OBJECTS, "cluster.local").version).collect();
    assert_eq!(versions.len(), 1);
    let pod = OBJECTS.split("---").next().unwrap();
    let listener = Listener::decode(inbound(pod, "cluster.local").body).unwrap();
    assert!(listener.default_filter_chain.is_none());
    assert!(listener.filter_chains.iter().all(|chain| chain.filters.len() == 1 && chain.metadata.is_none()));
    let about_rules = ours(listener.metadata.as_ref()).into_iter().filter(|(key, _)| key.starts_with("mtls"));
    assert_eq!(about_rules.collect::<Vec<_>>(), [("mtls".into(), "PERMISSIVE".into())]);
}
