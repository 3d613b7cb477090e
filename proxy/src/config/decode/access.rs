//! Access rules: Envoy's network RBAC filters, and our metadata that says which ports refuse plaintext.
//!
//! What is not understood is an error. A rule that is left out, or a part of one, would let in whom nobody meant.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use weir_xds::{
    envoy::{
        NETWORK_RBAC_TYPE_URL, PEER_NAMESPACE,
        core::{CidrRange, Metadata},
        listener::{Filter, filter::ConfigType},
        matcher::{StringMatcher, filter_state_matcher, string_matcher::MatchPattern},
        network_rbac::Rbac as RbacFilter,
        rbac::{Permission, Policy, Principal, Rbac, permission, principal, rbac::Action},
    },
    prost::Message,
};

use super::{DecodeError, metadata, text};
use crate::policy::{Access, Condition, Rule, Rules, Text};

/// Decodes filters; ports that share filters share the rules.
#[derive(Default)]
pub(super) struct Guards<'a> {
    known: HashMap<Vec<&'a [u8]>, Arc<Rules>>,
}

impl<'a> Guards<'a> {
    /// Takes the RBAC filters off the front of a chain's filters.
    pub(super) fn split(&mut self, filters: &'a [Filter]) -> Result<(Arc<Rules>, &'a [Filter]), DecodeError> {
        let mut key = Vec::new();
        let mut rest = filters;
        while let [Filter { config_type: Some(ConfigType::TypedConfig(config)), .. }, others @ ..] = rest
            && config.type_url == NETWORK_RBAC_TYPE_URL
        {
            key.push(config.value.as_slice());
            rest = others;
        }
        if let Some(rules) = self.known.get(&key) {
            return Ok((rules.clone(), rest));
        }
        let mut rules = Rules::default();
        for body in &key {
            add(&mut rules, body)?;
        }
        let rules = Arc::new(rules);
        self.known.insert(key, rules.clone());
        Ok((rules, rest))
    }
}

/// Whether plaintext is refused; `None` where nothing is said.
pub(super) fn strict(of: Option<&Metadata>) -> Result<Option<Option<Arc<str>>>, DecodeError> {
    let Some(ours) = metadata(of, "weir") else { return Ok(None) };
    match text(ours, "mtls") {
        None => Ok(None),
        Some("PERMISSIVE") => Ok(Some(None)),
        Some("STRICT") => Ok(Some(Some(text(ours, "mtls_by").unwrap_or("the control plane").into()))),
        Some(other) => Err(DecodeError::new(format!("mutual TLS mode {other:?} is not understood"))),
    }
}

/// What a port asks: its own mode, or that of all ports.
pub(super) fn access(all: &Option<Arc<str>>, own: Option<Option<Arc<str>>>, rules: Arc<Rules>) -> Access {
    Access { strict: own.unwrap_or_else(|| all.clone()), rules }
}

fn add(rules: &mut Rules, body: &[u8]) -> Result<(), DecodeError> {
    let filter = RbacFilter::decode(body)?;
    if filter.matcher.is_some() || filter.shadow_rules.is_some() || filter.shadow_matcher.is_some() {
        return Err(DecodeError::new("an access filter with matchers or shadow rules"));
    }
    let Some(Rbac { action, policies, .. }) = filter.rules else {
        return Err(DecodeError::new("an access filter without rules"));
    };
    let mut list = policies.into_iter().map(|(name, policy)| rule(&name, policy)).collect::<Result<Vec<_>, _>>()?;
    list.sort_by(|a, b| (&a.policy, a.index.len(), &a.index).cmp(&(&b.policy, b.index.len(), &b.index)));
    match Action::try_from(action) {
        Ok(Action::Deny) => rules.deny.append(&mut list),
        Ok(Action::Allow) if rules.allow.is_none() => rules.allow = Some(list),
        // Each of two filters would have to allow, which these rules can not say.
        Ok(Action::Allow) => return Err(DecodeError::new("two access filters that allow")),
        Ok(Action::Log) | Err(_) => return Err(DecodeError::new("an access filter that neither allows nor denies")),
    }
    Ok(())
}

fn rule(name: &str, policy: Policy) -> Result<Rule, DecodeError> {
    if policy.condition.is_some() || policy.checked_condition.is_some() {
        return Err(DecodeError::new(format!("access rule {name}: conditions in CEL")));
    }
    let wrap = |error: DecodeError| DecodeError::new(format!("access rule {name}: {error}"));
    let permissions: Result<Vec<_>, _> = policy.permissions.into_iter().map(permission_of).collect();
    let principals: Result<Vec<_>, _> = policy.principals.into_iter().map(principal_of).collect();
    let when = all(vec![one(permissions.map_err(wrap)?), one(principals.map_err(wrap)?)]);
    let (policy, index) = name.rsplit_once('/').unwrap_or((name, ""));
    Ok(Rule { policy: policy.into(), index: index.into(), when })
}

fn all(mut list: Vec<Condition>) -> Condition {
    list.retain(|one| *one != Condition::Always);
    match list.len() {
        0 => Condition::Always,
        1 => list.pop().unwrap_or(Condition::Always),
        _ => Condition::All(list.into()),
    }
}

fn one(mut list: Vec<Condition>) -> Condition {
    if list.len() == 1 { list.pop().unwrap_or(Condition::Always) } else { Condition::One(list.into()) }
}

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

fn permission_of(permission: Permission) -> Result<Condition, DecodeError> {
    use permission::Rule;
    match permission.rule {
        Some(Rule::Any(true)) => Ok(Condition::Always),
        Some(Rule::AndRules(set)) => Ok(all(set.rules.into_iter().map(permission_of).collect::<Result<_, _>>()?)),
        Some(Rule::OrRules(set)) => Ok(one(set.rules.into_iter().map(permission_of).collect::<Result<_, _>>()?)),
        Some(Rule::NotRule(rule)) => Ok(not(permission_of(*rule)?)),
        Some(Rule::DestinationIp(range)) => Ok(Condition::To(net(&range)?)),
        Some(Rule::DestinationPort(port)) => {
            let port = u16::try_from(port).map_err(|_| DecodeError::new("a port above 65535"))?;
            Ok(Condition::Port(port))
        }
        _ => Err(DecodeError::new("a permission that is not understood")),
    }
}

fn principal_of(principal: Principal) -> Result<Condition, DecodeError> {
    use principal::Identifier;
    match principal.identifier {
        Some(Identifier::Any(true)) => Ok(Condition::Always),
        Some(Identifier::AndIds(set)) => Ok(all(set.ids.into_iter().map(principal_of).collect::<Result<_, _>>()?)),
        Some(Identifier::OrIds(set)) => Ok(one(set.ids.into_iter().map(principal_of).collect::<Result<_, _>>()?)),
        Some(Identifier::NotId(id)) => Ok(not(principal_of(*id)?)),
        Some(Identifier::Authenticated(principal)) => Ok(Condition::Principal(match principal.principal_name {
            Some(matcher) => text_of(matcher)?,
            None => Text::Any,
        })),
        Some(Identifier::DirectRemoteIp(range)) => Ok(Condition::From(net(&range)?)),
        Some(Identifier::FilterState(state)) if state.key == PEER_NAMESPACE => match state.matcher {
            Some(filter_state_matcher::Matcher::StringMatch(matcher)) => Ok(Condition::Namespace(text_of(matcher)?)),
            _ => Err(DecodeError::new("a namespace that is not compared as text")),
        },
        _ => Err(DecodeError::new("a principal that is not understood")),
    }
}

fn text_of(matcher: StringMatcher) -> Result<Text, DecodeError> {
    match matcher.match_pattern {
        _ if matcher.ignore_case => Err(DecodeError::new("a text that is compared without regard to case")),
        Some(MatchPattern::Exact(text)) => Ok(Text::Exact(text.into())),
        Some(MatchPattern::Prefix(text)) => Ok(Text::Prefix(text.into())),
        Some(MatchPattern::Suffix(text)) => Ok(Text::Suffix(text.into())),
        _ => Err(DecodeError::new("a text that is not compared as a whole, by its beginning or by its end")),
    }
}

fn net(range: &CidrRange) -> Result<IpNet, DecodeError> {
    let wrong = || DecodeError::new(format!("{:?} is no range of addresses", range.address_prefix));
    let address: IpAddr = range.address_prefix.parse().map_err(|_| wrong())?;
    // Left out, the length is 0 (Envoy's CidrRange).
    let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
    IpNet::new(address, u8::try_from(length).map_err(|_| wrong())?).map(|net| net.trunc()).map_err(|_| wrong())
}
