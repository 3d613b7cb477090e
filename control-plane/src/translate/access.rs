//! Access rules to Envoy's network RBAC filters: one with all DENY policies, and where there is an ALLOW policy, one with these.
//!
//! A rule is a policy of the filter named `NAMESPACE/NAME/INDEX`; a policy without rules, or one that is not accepted, stands
//! as `NAMESPACE/NAME/none` and `NAMESPACE/NAME/refused`, so that whoever is refused by it finds its name.
//!
//! Names are compared as texts and never put into regular expressions. Envoy has no matcher for the namespace in an identity, so
//! it is a filter state of our own ([`envoy::PEER_NAMESPACE`]).

use std::collections::BTreeMap;

use ipnet::IpNet;
use prost::Message;
use weir_config::model::{
    AccessAction, AccessRule, AuthorizationPolicy, MtlsMode, Name, PEER_AUTHENTICATION_KIND, Term, Test, TextMatch,
    Workload,
};
use weir_mesh::bootstrap::DEFAULT_TRUST_DOMAIN;
use weir_xds::envoy::{
    self,
    core::CidrRange,
    listener::{Filter, filter},
    matcher::{
        FilterStateMatcher, StringMatcher, filter_state_matcher::Matcher as StateMatcher, string_matcher::MatchPattern,
    },
    protobuf::{Any, UInt32Value},
    rbac::{Permission, Policy, Principal, permission, principal},
};

use super::{
    Mesh,
    encode::{Metadata, string},
};
use crate::{policy::Mtls, world::World};

/// What a pod's connections must pass.
pub(super) struct Guard {
    /// Filters that stand before every other.
    pub filters: Vec<Filter>,
    mtls: Mtls,
}

impl Guard {
    /// The guard of a pod.
    pub(super) fn of(mesh: &Mesh, world: &World, pod: &Workload) -> Self {
        let policies: Vec<&AuthorizationPolicy> = world.policies().access(pod).collect();
        let having = |action| policies.iter().copied().filter(move |policy| policy.action == action);
        let mut filters = Vec::new();
        if having(AccessAction::Deny).next().is_some() {
            filters.push(rbac(mesh, AccessAction::Deny, having(AccessAction::Deny)));
        }
        if having(AccessAction::Allow).next().is_some() {
            filters.push(rbac(mesh, AccessAction::Allow, having(AccessAction::Allow)));
        }
        Self { filters, mtls: world.policies().mtls(pod) }
    }

    /// Ports that have a mode of their own.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.mtls.ports.keys().copied()
    }

    /// Metadata of the listener, for all ports but those with metadata of their own.
    pub(super) fn metadata(&self, others: Metadata) -> Metadata {
        mode(others, &self.mtls.all)
    }

    /// The same for one port; unchanged where that has no other mode.
    pub(super) fn port_metadata(&self, port: u16, metadata: Option<Metadata>) -> Option<Metadata> {
        match self.mtls.ports.get(&port) {
            Some(own) if *own != self.mtls.all => Some(mode(metadata.unwrap_or_default(), own)),
            _ => metadata,
        }
    }
}

fn mode(metadata: Metadata, (mode, by): &(MtlsMode, Option<Name>)) -> Metadata {
    let by = by.as_ref().map(|name| ("mtls_by", string(format!("{PEER_AUTHENTICATION_KIND} {name}"))));
    metadata.with("weir", [("mtls", string(mode.as_str()))].into_iter().chain(by))
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`, ordered.
#[derive(Clone, PartialEq, Message)]
struct OrderedFilter {
    #[prost(message, optional, tag = "1")]
    rules: Option<OrderedRules>,
    #[prost(string, tag = "3")]
    stat_prefix: String,
}

/// `envoy.config.rbac.v3.RBAC`, ordered.
#[derive(Clone, PartialEq, Message)]
struct OrderedRules {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    policies: BTreeMap<String, Policy>,
}

fn rbac<'a>(mesh: &Mesh, action: AccessAction, policies: impl Iterator<Item = &'a AuthorizationPolicy>) -> Filter {
    let mut named = BTreeMap::new();
    for policy in policies {
        let name = &policy.name;
        // Closed: who is refused by it shall find its name, also where it allows nobody.
        if !policy.refused.is_empty() {
            named.insert(format!("{name}/refused"), constant(action == AccessAction::Deny));
        } else if policy.rules.is_empty() {
            named.insert(format!("{name}/none"), constant(false));
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            named.insert(format!("{name}/{i}"), translate(mesh, rule));
        }
    }
    let (action, stat_prefix) = match action {
        AccessAction::Deny => (envoy::rbac::rbac::Action::Deny, "deny."),
        AccessAction::Allow | AccessAction::Nothing => (envoy::rbac::rbac::Action::Allow, "allow."),
    };
    let rules = Some(OrderedRules { action: action.into(), policies: named });
    let value = OrderedFilter { rules, stat_prefix: stat_prefix.to_owned() }.encode_to_vec();
    Filter {
        name: envoy::NETWORK_RBAC.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(Any {
            type_url: envoy::NETWORK_RBAC_TYPE_URL.to_owned(),
            value,
        })),
    }
}

/// A rule that matches everything, or nothing.
fn constant(matches: bool) -> Policy {
    let (permission, principal) = (Permission::any(), Principal::any());
    Policy {
        permissions: vec![if matches { permission } else { Permission::not(permission) }],
        principals: vec![if matches { principal } else { Principal::not(principal) }],
        ..Default::default()
    }
}

fn translate(mesh: &Mesh, rule: &AccessRule) -> Policy {
    let of_caller = |term: &&Term| term.any.iter().chain(&term.none).any(Test::is_of_caller);
    let conditions: Vec<&Term> = rule.conditions.iter().collect();
    let (callers, called): (Vec<&Term>, Vec<&Term>) = conditions.into_iter().partition(of_caller);
    Policy {
        permissions: alternatives(&rule.operations, &called, Permission::any, permission_of),
        principals: alternatives(&rule.sources, &callers, Principal::any, |test| principal_of(mesh, test)),
        ..Default::default()
    }
}

/// One expression for each alternative, each with the conditions that all of them share.
fn alternatives<E: Expression>(
    alternatives: &[Vec<Term>],
    shared: &[&Term],
    any: impl Fn() -> E,
    test: impl Fn(&Test) -> Option<E>,
) -> Vec<E> {
    let none = [Vec::new()];
    let alternatives = if alternatives.is_empty() { &none[..] } else { alternatives };
    let one = |terms: &Vec<Term>| {
        let mut parts = Vec::new();
        for term in terms.iter().chain(shared.iter().copied()) {
            // A test that has no form here must not widen a rule: it never holds.
            let all = |tests: &[Test]| -> Vec<E> {
                tests.iter().map(|one| test(one).unwrap_or_else(|| E::not(any()))).collect()
            };
            if !term.any.is_empty() {
                parts.push(E::or(all(&term.any)));
            }
            if !term.none.is_empty() {
                parts.push(E::not(E::or(all(&term.none))));
            }
        }
        if parts.is_empty() { any() } else { E::and(parts) }
    };
    alternatives.iter().map(one).collect()
}

/// What permissions and principals have in common.
trait Expression: Sized {
    fn any() -> Self;
    fn not(one: Self) -> Self;
    fn set_and(all: Vec<Self>) -> Self;
    fn set_or(all: Vec<Self>) -> Self;

    fn and(mut all: Vec<Self>) -> Self {
        match (all.len(), all.pop()) {
            (1, Some(one)) => one,
            (_, Some(last)) => {
                all.push(last);
                Self::set_and(all)
            }
            (_, None) => Self::any(),
        }
    }

    fn or(mut all: Vec<Self>) -> Self {
        match (all.len(), all.pop()) {
            (1, Some(one)) => one,
            (_, Some(last)) => {
                all.push(last);
                Self::set_or(all)
            }
            (_, None) => Self::not(Self::any()),
        }
    }
}

impl Expression for Permission {
    fn any() -> Self {
        permission::Rule::Any(true).into_message()
    }

    fn not(one: Self) -> Self {
        permission::Rule::NotRule(Box::new(one)).into_message()
    }

    fn set_and(rules: Vec<Self>) -> Self {
        permission::Rule::AndRules(permission::Set { rules }).into_message()
    }

    fn set_or(rules: Vec<Self>) -> Self {
        permission::Rule::OrRules(permission::Set { rules }).into_message()
    }
}

impl Expression for Principal {
    fn any() -> Self {
        principal::Identifier::Any(true).into_message()
    }

    fn not(one: Self) -> Self {
        principal::Identifier::NotId(Box::new(one)).into_message()
    }

    fn set_and(ids: Vec<Self>) -> Self {
        principal::Identifier::AndIds(principal::Set { ids }).into_message()
    }

    fn set_or(ids: Vec<Self>) -> Self {
        principal::Identifier::OrIds(principal::Set { ids }).into_message()
    }
}

/// The message around a choice.
trait IntoMessage<M> {
    fn into_message(self) -> M;
}

impl IntoMessage<Permission> for permission::Rule {
    fn into_message(self) -> Permission {
        Permission { rule: Some(self) }
    }
}

impl IntoMessage<Principal> for principal::Identifier {
    fn into_message(self) -> Principal {
        Principal { identifier: Some(self) }
    }
}

fn permission_of(test: &Test) -> Option<Permission> {
    Some(
        match test {
            Test::DestinationIp(net) => permission::Rule::DestinationIp(range(net)),
            Test::Port(port) => permission::Rule::DestinationPort((*port).into()),
            Test::Principal(_) | Test::Namespace(_) | Test::ServiceAccount(_) | Test::SourceIp(_) => return None,
        }
        .into_message(),
    )
}

fn principal_of(mesh: &Mesh, test: &Test) -> Option<Principal> {
    Some(
        match test {
            Test::Principal(TextMatch::Present) | Test::Namespace(TextMatch::Present) => authenticated(None),
            Test::Principal(TextMatch::Exact(name)) => {
                authenticated(Some(MatchPattern::Exact(format!("spiffe://{}", in_trust_domain(mesh, name)))))
            }
            Test::Principal(TextMatch::Prefix(start)) => {
                authenticated(Some(MatchPattern::Prefix(format!("spiffe://{}", in_trust_domain(mesh, start)))))
            }
            Test::Principal(TextMatch::Suffix(end)) => authenticated(Some(MatchPattern::Suffix(end.clone()))),
            // Neither part of an identity can have a slash, so that four of them fix where the text stands.
            Test::ServiceAccount(name) => {
                authenticated(Some(MatchPattern::Suffix(format!("/ns/{}/sa/{}", name.namespace, name.name))))
            }
            Test::Namespace(text) => {
                let pattern = match text {
                    TextMatch::Exact(name) => MatchPattern::Exact(name.clone()),
                    TextMatch::Prefix(start) => MatchPattern::Prefix(start.clone()),
                    TextMatch::Suffix(end) => MatchPattern::Suffix(end.clone()),
                    TextMatch::Present => return None, // above
                };
                principal::Identifier::FilterState(FilterStateMatcher {
                    key: envoy::PEER_NAMESPACE.to_owned(),
                    matcher: Some(StateMatcher::StringMatch(text_matcher(pattern))),
                })
            }
            Test::SourceIp(net) => principal::Identifier::DirectRemoteIp(range(net)),
            Test::DestinationIp(_) | Test::Port(_) => return None,
        }
        .into_message(),
    )
}

/// In Istio's rules `cluster.local` stands for the mesh's trust domain, whatever that is called.
fn in_trust_domain(mesh: &Mesh, principal: &str) -> String {
    match principal.split_once('/') {
        Some((DEFAULT_TRUST_DOMAIN, rest)) => format!("{}/{rest}", mesh.trust_domain),
        _ => principal.to_owned(),
    }
}

fn authenticated(pattern: Option<MatchPattern>) -> principal::Identifier {
    principal::Identifier::Authenticated(principal::Authenticated { principal_name: pattern.map(text_matcher) })
}

fn text_matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn range(net: &IpNet) -> CidrRange {
    CidrRange {
        address_prefix: net.network().to_string(),
        prefix_len: Some(UInt32Value { value: net.prefix_len().into() }),
    }
}
