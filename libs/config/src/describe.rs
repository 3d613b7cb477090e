//! What the control plane says of a Service, a route or a pod: what `weir describe` shows, and its JSON.
//!
//! Objects are named as everywhere else: `HTTPRoute/shop/catalog`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A Service: which rules and policies its callers follow, port by port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its own addresses; rules are for these, so that a headless Service has none.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<Port>,
    /// Objects that are for it, or might be, and have no effect at all.
    pub without_effect: Vec<WithoutEffect>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Number.
    pub number: u16,
    /// Name; empty where it has none.
    pub name: String,
    /// `http`, `opaque` or `detect`.
    pub protocol: String,
    /// Endpoints that requests can go to.
    pub endpoints: usize,
    /// What callers get: those of all namespaces first, then those that differ.
    pub callers: Vec<Callers>,
}

/// What callers of a namespace get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// Their namespace; none for all that are not named.
    pub namespace: Option<String>,
    /// Rules, in the order in which a request is compared with them. None: everything goes to the Service's own endpoints.
    pub rules: Vec<Rule>,
    /// How the Service's own endpoints are called. A rule's backends have settings of their own.
    pub settings: Vec<Setting>,
    /// What is done to requests that no rule is for, since there is none.
    pub request_settings: Vec<Setting>,
    /// Rules for this port that have no effect on it.
    pub without_effect: Vec<WithoutEffect>,
}

/// One match of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its place in the order, from 1.
    pub place: usize,
    /// The object.
    pub object: String,
    /// Number of the rule in the object, from 0 as in field paths.
    pub rule: usize,
    /// The rule's name, where it has one.
    pub name: Option<String>,
    /// Number of the match in the rule.
    #[serde(rename = "match")]
    pub match_index: usize,
    /// Which requests or streams it takes, such as `prefix /v2, header x-canary = yes`, or `any`.
    pub matches: String,
    /// What is done besides, a few words each.
    pub does: Vec<String>,
    /// Where requests go.
    pub backends: Vec<Backend>,
    /// What policies do to its requests.
    pub settings: Vec<Setting>,
    /// The first rule before it that takes all that it would take: it never acts.
    pub shadowed_by: Option<Shadow>,
}

/// A rule that stands before another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// Its place in the order.
    pub place: usize,
    /// The object.
    pub object: String,
    /// Number of the rule in the object.
    pub rule: usize,
}

/// Where a share of the requests goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `NAMESPACE/NAME:PORT`
    pub service: String,
    /// Its weight.
    pub weight: u32,
    /// Endpoints that it has now.
    pub endpoints: usize,
    /// Why nothing can be sent there.
    pub trouble: Option<String>,
}

/// A field of a policy that is in force, and the object that it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The field's path.
    pub field: String,
    /// Its value.
    pub value: String,
    /// The object.
    pub object: String,
}

/// An object that does nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WithoutEffect {
    /// The object.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The object.
    pub object: String,
    /// Why it is refused; then it has no effect as a whole.
    pub refused: Vec<String>,
    /// Whether everything is there that its rules name; none where it is refused.
    pub resolved: Option<Condition>,
    /// The Services that it is for.
    pub parents: Vec<Parent>,
}

/// A Service that a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// `NAMESPACE/NAME`
    pub service: String,
    /// Only this port of it.
    pub port: Option<u16>,
    /// The namespace whose callers follow the route; none for all.
    pub callers: Option<String>,
    /// Whether it is in force there.
    pub accepted: Condition,
    /// The rules of each port that it is for, of other objects as well: among them its own have their places.
    pub ports: Vec<ParentPort>,
}

/// The rules of a port that a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentPort {
    /// Number.
    pub number: u16,
    /// All rules, in order.
    pub rules: Vec<Rule>,
    /// Why the route has no effect here.
    pub without_effect: Option<String>,
}

/// A condition of a route's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// It holds.
    pub holds: bool,
    /// Gateway API's word for why.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It has our proxy.
    pub in_mesh: bool,
    /// New pods of its namespace get our proxy.
    pub namespace_injected: bool,
    /// It is ready.
    pub ready: bool,
    /// Its identity.
    pub identity: Option<String>,
    /// Services that select it.
    pub services: Vec<String>,
    /// Its ports that are known, by number.
    pub ports: Vec<PodPort>,
    /// What holds for all other ports.
    pub others: Plaintext,
    /// AuthorizationPolicies that are for it.
    pub access: Vec<AccessPolicy>,
}

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPort {
    /// Number.
    pub number: u16,
    /// `http`, `opaque` or `detect`.
    pub protocol: String,
    /// The Service that leads there.
    pub service: Option<String>,
    /// Connections to it come through the proxy.
    pub captured: bool,
    /// Whether it takes plaintext.
    pub plaintext: Plaintext,
}

/// Whether a port takes plaintext.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plaintext {
    /// `PERMISSIVE` or `STRICT`.
    pub mode: String,
    /// The object that says so; none where none does.
    pub object: Option<String>,
}

/// A policy about who may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessPolicy {
    /// The object.
    pub object: String,
    /// `ALLOW` or `DENY`.
    pub action: String,
    /// Number of its rules.
    pub rules: usize,
    /// Why it is refused; then it is closed.
    pub refused: Vec<String>,
}
