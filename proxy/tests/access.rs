//! Access rules as they arrive: what is understood is in force, what is not is refused, and nothing opens a door.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a step that fails is a failed test

use std::{collections::HashMap, sync::Arc};

use weir_mesh::Identity;
use weir_proxy::{
    config::{Store, Tables},
    policy::Facts,
};
use weir_xds::{
    Handler, Kind, Resource,
    envoy::{
        NETWORK_RBAC, NETWORK_RBAC_TYPE_URL, PEER_NAMESPACE, TCP_PROXY, TCP_PROXY_TYPE_URL,
        core::{CidrRange, Metadata},
        listener::{Filter, FilterChain, FilterChainMatch, Listener, filter::ConfigType},
        matcher::{
            FilterStateMatcher, RegexMatcher, StringMatcher, filter_state_matcher::Matcher,
            string_matcher::MatchPattern,
        },
        network_rbac::Rbac as RbacFilter,
        protobuf::{Any, Struct, UInt32Value, Value, value},
        rbac::{Permission, Policy, Principal, Rbac, permission, principal, rbac::Action},
        tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier},
    },
    names,
    prost::Message,
};

fn filter(name: &str, type_url: &str, message: &impl Message) -> Filter {
    let any = Any { type_url: type_url.to_owned(), value: message.encode_to_vec() };
    Filter { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(any)) }
}

fn rbac(action: Action, permission: permission::Rule, principal: principal::Identifier) -> Filter {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission) }],
        principals: vec![Principal { identifier: Some(principal) }],
        ..Policy::default()
    };
    let rules =
        Rbac { action: action.into(), policies: HashMap::from([("shop/p/0".into(), policy)]), ..Rbac::default() };
    filter(NETWORK_RBAC, NETWORK_RBAC_TYPE_URL, &RbacFilter { rules: Some(rules), ..RbacFilter::default() })
}

fn mode(fields: &[(&str, &str)]) -> Option<Metadata> {
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.into())) };
    let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    Some(Metadata { filter_metadata: HashMap::from([("weir".into(), Struct { fields })]), ..Metadata::default() })
}

fn chain(port: u32, guard: &[Filter], metadata: Option<Metadata>) -> FilterChain {
    let proxy = TcpProxy { cluster_specifier: Some(ClusterSpecifier::Cluster("x".into())), ..TcpProxy::default() };
    let last = filter(TCP_PROXY, TCP_PROXY_TYPE_URL, &proxy);
    let matching = FilterChainMatch { destination_port: Some(UInt32Value { value: port }), ..Default::default() };
    FilterChain {
        filter_chain_match: (port > 0).then_some(matching),
        filters: guard.iter().cloned().chain([last]).collect(),
        metadata,
        ..FilterChain::default()
    }
}

/// Port 80, and all others, behind these filters.
fn listener(guard: &[Filter], metadata: Option<Metadata>, port_metadata: Option<Metadata>) -> Listener {
    Listener {
        traffic_direction: 1,
        filter_chains: vec![chain(80, guard, port_metadata)],
        default_filter_chain: Some(chain(0, guard, None)),
        metadata,
        ..Listener::default()
    }
}

struct Plane {
    store: Arc<Store>,
    tables: Tables,
}

impl Plane {
    fn new() -> Self {
        let store = Arc::new(Store::default());
        Self { tables: Tables::new(store.clone()), store }
    }

    /// True where it was taken.
    fn take(&mut self, listener: &Listener) -> bool {
        let body = listener.encode_to_vec().into();
        let resource = Resource { name: names::INBOUND.to_owned(), version: String::new(), body };
        self.tables.apply(Kind::Listener, vec![resource], Vec::new()).is_empty()
    }

    fn word(&self, caller: Option<&str>, port: u16) -> &'static str {
        let identity: Option<Identity> = caller.map(|caller| caller.parse().unwrap());
        let facts = Facts {
            principal: identity.as_ref(),
            from: "10.1.2.3".parse().unwrap(),
            to: (std::net::Ipv4Addr::LOCALHOST, port).into(),
        };
        let inbound = self.store.inbound().unwrap();
        inbound.access(port).judge(&facts).map_or_else(|denied| denied.reason(), |()| "ok")
    }
}

const CART: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/cart");
const OTHER: Option<&str> = Some("spiffe://cluster.local/ns/other/sa/cart");

fn namespace(pattern: MatchPattern) -> principal::Identifier {
    let text = StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() };
    principal::Identifier::FilterState(FilterStateMatcher {
        key: PEER_NAMESPACE.into(),
        matcher: Some(Matcher::StringMatch(text)),
    })
}

#[test]
fn listed_ports_and_all_others_are_guarded() {
    let mut plane = Plane::new();
    let any = || (permission::Rule::Any(true), principal::Identifier::Any(true));
    assert!(plane.take(&listener(&[], None, None)));
    assert_eq!([plane.word(None, 80), plane.word(None, 81), plane.word(CART, 80)], ["ok"; 3]);
    let allow = rbac(Action::Allow, any().0, namespace(MatchPattern::Exact("shop".into())));
    assert!(plane.take(&listener(std::slice::from_ref(&allow), None, None)));
    for port in [80, 81] {
        assert_eq!(
            [plane.word(CART, port), plane.word(OTHER, port), plane.word(None, port)],
            ["ok", "allowed_by_no_rule", "allowed_by_no_rule"]
        );
    }
    let deny = rbac(Action::Deny, permission::Rule::DestinationPort(80), any().1);
    assert!(plane.take(&listener(&[deny, allow.clone()], None, None)));
    assert_eq!([plane.word(CART, 80), plane.word(CART, 81)], ["denied_by_rule", "ok"]);
    let strict = || mode(&[("mtls", "STRICT"), ("mtls_by", "PeerAuthentication shop/a")]);
    let permissive = || mode(&[("mtls", "PERMISSIVE")]);
    assert!(plane.take(&listener(&[], strict(), permissive())));
    assert_eq!([plane.word(None, 80), plane.word(None, 81), plane.word(CART, 81)], ["ok", "plaintext_refused", "ok"]);
    assert!(plane.take(&listener(&[], permissive(), strict())));
    assert_eq!([plane.word(None, 80), plane.word(None, 81)], ["plaintext_refused", "ok"]);
    assert!(plane.tables.dump().to_string().contains("PeerAuthentication shop/a"));
}

#[test]
fn what_is_not_understood_is_refused_and_the_rules_before_it_stay() {
    let mut plane = Plane::new();
    let any = || (permission::Rule::Any(true), principal::Identifier::Any(true));
    let good = rbac(Action::Deny, any().0, any().1);
    assert!(plane.take(&listener(std::slice::from_ref(&good), None, None)));
    let range = |prefix: &str, length| CidrRange {
        address_prefix: prefix.into(),
        prefix_len: Some(UInt32Value { value: length }),
    };
    let regex = MatchPattern::SafeRegex(RegexMatcher { regex: ".*".into(), ..RegexMatcher::default() });
    let unnamed = principal::Identifier::FilterState(FilterStateMatcher { key: "other".into(), matcher: None });
    let allow = rbac(Action::Allow, any().0, any().1);
    let empty = filter(NETWORK_RBAC, NETWORK_RBAC_TYPE_URL, &RbacFilter::default());
    let strange = filter("x", "type.googleapis.com/strange", &RbacFilter::default());
    let guards: Vec<Vec<Filter>> = vec![
        vec![rbac(Action::Log, any().0, any().1)],
        vec![rbac(Action::Allow, permission::Rule::Any(false), any().1)],
        vec![rbac(Action::Allow, permission::Rule::DestinationPort(65_536), any().1)],
        vec![rbac(Action::Allow, permission::Rule::DestinationIp(range("10.0.0.0", 33)), any().1)],
        vec![rbac(Action::Allow, any().0, principal::Identifier::DirectRemoteIp(range("x", 8)))],
        vec![rbac(Action::Allow, any().0, principal::Identifier::RemoteIp(range("10.0.0.0", 8)))],
        vec![rbac(Action::Allow, any().0, namespace(regex))],
        vec![rbac(Action::Allow, any().0, unnamed)],
        vec![allow.clone(), allow.clone()],
        vec![empty],
        vec![strange],
    ];
    for guard in guards {
        assert!(!plane.take(&listener(&guard, None, None)), "{guard:?}");
        assert_eq!([plane.word(CART, 80), plane.word(None, 81)], ["denied_by_rule"; 2], "{guard:?}");
    }
    assert!(!plane.take(&listener(&[], mode(&[("mtls", "DISABLE")]), None)));
    let mut two = listener(std::slice::from_ref(&good), None, None);
    two.filter_chains.push(chain(80, &[], None));
    assert!(!plane.take(&two), "two chains of one port that differ in what they ask");
    assert_eq!(plane.word(CART, 80), "denied_by_rule");
}

/// A pod that the control plane does not know, yet or any more, must not be open for that.
#[test]
fn a_pod_that_is_not_known_keeps_its_rules() {
    let mut plane = Plane::new();
    plane.tables.apply(Kind::Listener, Vec::new(), vec![names::INBOUND.to_owned()]);
    assert!(plane.store.inbound().is_none(), "nothing is served before the rules are known");
    let deny = rbac(Action::Deny, permission::Rule::Any(true), principal::Identifier::Any(true));
    assert!(plane.take(&listener(&[deny], None, None)));
    plane.tables.apply(Kind::Listener, Vec::new(), vec![names::INBOUND.to_owned()]);
    assert_eq!(plane.word(CART, 80), "denied_by_rule");
}
