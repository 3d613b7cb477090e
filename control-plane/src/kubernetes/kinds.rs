//! The API server's objects to what the mesh looks at; the rest of them is dropped at once.

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value as Json;
use weir_config::{
    Problem, frontend,
    frontend::gateway::only_ours,
    gateway, istio,
    manifest::{Source, parse_value, trim},
    model::{AUTHORIZATION_POLICY_KIND, Name, PEER_AUTHENTICATION_KIND},
    security, traffic,
};

use super::status::route::RouteFacts;
use crate::{
    policy,
    source::{Item, ItemKind, ItemRef},
};

/// What a place is called in problems.
const PLACE: &str = "kubernetes";
/// The controller's name in the status of routes.
pub(super) const CONTROLLER: &str = "weir.dev/mesh";

/// What an object of a watched kind becomes.
pub(super) enum Read {
    /// This, and what is wrong with it: an access rule that can not be accepted is closed, not left out.
    Item(Box<Item>, Vec<Problem>),
    /// Nothing that the mesh looks at.
    Nothing,
    /// It can not be accepted.
    Refused(Vec<Problem>),
}

impl Read {
    /// What is wrong with it.
    pub(super) fn problems(&self) -> &[Problem] {
        match self {
            Self::Item(_, problems) | Self::Refused(problems) => problems,
            Self::Nothing => &[],
        }
    }
}

impl From<Item> for Read {
    fn from(item: Item) -> Self {
        Self::Item(Box::new(item), Vec::new())
    }
}

/// A kind that is watched.
pub(super) trait Kind:
    kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static
{
    const ITEM: ItemKind;

    fn read(self) -> Read;
}

/// The name of an object.
pub(super) fn name(meta: &ObjectMeta) -> Name {
    Name::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Names an object of a kind.
pub(super) fn reference(kind: ItemKind, meta: &ObjectMeta) -> ItemRef {
    ItemRef { kind, name: name(meta) }
}

impl Kind for Service {
    const ITEM: ItemKind = ItemKind::Service;

    fn read(self) -> Read {
        Item::Service(frontend::kubernetes::service(&self)).into()
    }
}

impl Kind for EndpointSlice {
    const ITEM: ItemKind = ItemKind::Endpoints;

    fn read(self) -> Read {
        frontend::kubernetes::endpoints(&self).map_or(Read::Nothing, |set| Item::Endpoints(set).into())
    }
}

impl Kind for Pod {
    const ITEM: ItemKind = ItemKind::Workload;

    fn read(self) -> Read {
        Item::Workload(frontend::kubernetes::workload(&self).into()).into()
    }
}

impl Kind for Namespace {
    const ITEM: ItemKind = ItemKind::Namespace;

    fn read(self) -> Read {
        Item::Namespace((&self).into()).into()
    }
}

impl Kind for Node {
    const ITEM: ItemKind = ItemKind::Node;

    fn read(self) -> Read {
        Item::Node((&self).into()).into()
    }
}

/// Kinds of rules for requests and streams, as they are called in the log and in the API.
pub(super) const ROUTES: [(&str, &str); 4] = [
    ("HTTPRoutes", gateway::HTTP_ROUTE),
    ("GRPCRoutes", gateway::GRPC_ROUTE),
    ("TLSRoutes", gateway::TLS_ROUTE),
    ("TCPRoutes", gateway::TCP_ROUTE),
];

/// Where objects of one of Gateway API's kinds are.
pub(super) fn gateway_api(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(gateway::GROUP, "v1", kind))
}

/// The JSON of an object, with the type that it was asked for by.
fn json(object: &DynamicObject, api_version: &str, kind: &str) -> Option<Json> {
    let mut raw = serde_json::to_value(object).ok()?;
    let top = raw.as_object_mut()?;
    top.insert("apiVersion".into(), api_version.into());
    top.insert("kind".into(), kind.into());
    Some(raw)
}

/// Kinds of policies for traffic, as they are called in the log and in the API, with their group and version.
pub(super) const TRAFFIC: [(&str, &str, &str, &str); 2] = [
    ("DestinationRules", istio::DESTINATION_RULE, istio::GROUP, "v1"),
    ("TrafficPolicies", traffic::TRAFFIC_POLICY, traffic::GROUP, "v1alpha1"),
];

/// Where policies of a kind are: those for traffic, and access rules.
pub(super) fn policy(kind: &str) -> ApiResource {
    let traffic = TRAFFIC.iter().find(|(_, known, ..)| *known == kind);
    let (group, version) = traffic.map_or((security::GROUP, "v1"), |(_, _, group, version)| (*group, *version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Reads an object that becomes one item, or is refused whole.
pub(super) fn whole(object: &DynamicObject, api_version: &str, kind: &str) -> Read {
    let Some(mut raw) = json(object, api_version, kind) else { return Read::Nothing };
    trim(&mut raw);
    match parse_value(raw, Source::named(PLACE)) {
        Ok(manifest) => Item::of(&manifest.object).map_or(Read::Nothing, Read::from),
        Err(problems) => Read::Refused(problems),
    }
}

/// Kinds of access rules, as they are called in the log and in the API.
pub(super) const ACCESS_RULES: [(&str, &str, ItemKind); 2] = [
    ("PeerAuthentications", PEER_AUTHENTICATION_KIND, ItemKind::PeerAuthentication),
    ("AuthorizationPolicies", AUTHORIZATION_POLICY_KIND, ItemKind::AuthorizationPolicy),
];

/// Reads an access rule.
pub(super) fn access_rule(kind: &str, object: &DynamicObject) -> Read {
    let Some(raw) = json(object, security::API_VERSION, kind) else { return Read::Nothing };
    policy::stored(raw, PLACE).map_or(Read::Nothing, |(item, problems)| Read::Item(Box::new(item), problems))
}

/// Reads a route. Parents that are no Services belong to other controllers, and so does a route without others.
pub(super) fn route(kind: &str, object: &DynamicObject) -> (Option<RouteFacts>, Read) {
    let generation = object.metadata.generation.unwrap_or_default();
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let Some(mut raw) = json(object, gateway::API_VERSION, kind) else { return (None, Read::Nothing) };
    let ours = raw.pointer("/status/parents").and_then(Json::as_array).cloned().unwrap_or_default();
    let ours = ours.into_iter().filter(|entry| entry.get("controllerName").and_then(Json::as_str) == Some(CONTROLLER));
    let ours: Vec<Json> = ours.collect();
    trim(&mut raw);
    if raw.pointer("/spec/parentRefs").and_then(Json::as_array).is_none() {
        return (None, Read::Nothing);
    }
    if !only_ours(&mut raw) {
        // It was ours once: the status must not say that it still is.
        let facts = RouteFacts { generation, parents: Vec::new(), refused: Vec::new(), ours };
        return ((!facts.ours.is_empty()).then_some(facts), Read::Nothing);
    }
    let references = raw.pointer("/spec/parentRefs").and_then(Json::as_array);
    let parents = references.into_iter().flatten().map(|parent| {
        let text = |key: &str| parent.get(key).and_then(Json::as_str);
        let service = Name::new(text("namespace").unwrap_or(&namespace), text("name").unwrap_or_default());
        (parent.clone(), service, parent.get("port").and_then(Json::as_i64))
    });
    let parents = parents.collect();
    let mut facts = RouteFacts { generation, parents, refused: Vec::new(), ours };
    match parse_value(raw, Source::named(PLACE)) {
        Ok(manifest) => match Item::of(&manifest.object) {
            Some(item) => (Some(facts), item.into()),
            None => (None, Read::Nothing),
        },
        Err(problems) => {
            facts.refused = problems.iter().map(|problem| (problem.field.clone(), problem.message.clone())).collect();
            (Some(facts), Read::Refused(problems))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(object: DynamicObject) -> (Option<RouteFacts>, Read) {
        super::route(gateway::HTTP_ROUTE, &object)
    }

    fn object(spec: Json) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "generation": 3, "uid": "u", "resourceVersion": "7",
                "annotations": {"a": "b"}, "managedFields": [{"manager": "x"}], "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec,
            "status": {"parents": [{"controllerName": "weir.dev/mesh"}, {"controllerName": "other"}]},
        }))
        .unwrap()
    }

    #[test]
    fn only_service_parents_are_ours() {
        let gateway = json!({"name": "edge", "group": "gateway.networking.k8s.io", "kind": "Gateway"});
        let service = json!({"name": "catalog", "group": "", "kind": "Service", "port": 80});
        let (facts, read) = route(object(json!({"parentRefs": [gateway]})));
        assert!(matches!(read, Read::Nothing));
        assert_eq!(
            facts.map(|facts| (facts.parents.len(), facts.ours.len())),
            Some((0, 1)),
            "our entry is to be taken out"
        );
        let (facts, read) = route(object(json!({"parentRefs": [gateway, service],
            "rules": [{"backendRefs": [{"name": "v1", "port": 80, "group": "", "kind": "Service", "weight": 1}],
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]})));
        let facts = facts.unwrap();
        assert_eq!((facts.generation, facts.ours.len(), facts.refused.len()), (3, 1, 0));
        assert_eq!(facts.parents, [(service, Name::new("shop", "catalog"), Some(80))]);
        let Read::Item(item, _) = read else { panic!("it is a route") };
        let Item::Routes(set) = *item else { panic!("it is a route") };
        assert_eq!((set.created.as_str(), set.parents.len()), ("2026-01-01T00:00:00Z", 1));
    }

    #[test]
    fn names_of_hosts_are_a_gateways_where_there_is_one() {
        let gateway = json!({"name": "edge"});
        let service = json!({"name": "catalog", "group": "", "kind": "Service"});
        let (facts, _) = route(object(json!({"parentRefs": [service], "hostnames": ["a.example"]})));
        assert_eq!(facts.map(|facts| facts.refused.len()), Some(1));
        let (facts, read) = route(object(json!({"parentRefs": [gateway, service], "hostnames": ["a.example"]})));
        assert_eq!(facts.map(|facts| facts.refused.len()), Some(0));
        assert!(matches!(read, Read::Item(..)));
    }

    #[test]
    fn an_access_rule_that_can_not_be_accepted_is_there_and_closed() {
        let rule = |spec: Json| {
            let object: DynamicObject = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "managedFields": [{"manager": "x"}], "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": spec,
            }))
            .unwrap();
            let Read::Item(item, problems) = access_rule(AUTHORIZATION_POLICY_KIND, &object) else {
                panic!("there is always a rule")
            };
            let Item::AuthorizationPolicy(policy) = *item else { panic!("of the kind that was read") };
            (policy.refused.is_empty(), problems.len())
        };
        assert_eq!(rule(json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]})), (true, 0));
        assert_eq!(rule(json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/"]}}]}]})), (false, 1));
    }

    #[test]
    fn what_is_not_supported_is_refused_whole_and_by_name() {
        let service = json!({"name": "catalog", "group": "", "kind": "Service"});
        let (facts, read) =
            route(object(json!({"parentRefs": [service], "rules": [{"filters": [{"type": "ExtensionRef",
            "extensionRef": {"group": "x", "kind": "X", "name": "x"}}]}]})));
        let (field, message) = facts.unwrap().refused[0].clone();
        assert_eq!(field.to_string(), "spec.rules[0].filters[0].type");
        assert!(message.starts_with("ExtensionRef is not supported: "), "{message}");
        assert!(matches!(read, Read::Refused(problems) if problems.len() == 1));
    }
}
