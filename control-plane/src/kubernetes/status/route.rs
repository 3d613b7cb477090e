//! The status of routes: for each Service that a route names, whether the rules are accepted there and whether what they name
//! exists (Gateway API, "RouteParentStatus").

use kube::core::ApiResource;
use serde_json::{Value as Json, json};
use weir_config::{
    FieldPath,
    model::{Name, Origin, RouteSet, ServicePort, Target},
};

use super::{Facts, Verdict, text};
use crate::{
    kubernetes::kinds::{self, CONTROLLER},
    world::World,
};

/// What is needed of a route to write its status.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouteFacts {
    pub(in crate::kubernetes) generation: i64,
    /// Its Services among `parentRefs`, each as it was written, with the port if it names one.
    pub(in crate::kubernetes) parents: Vec<(Json, Name, Option<i64>)>,
    /// Why it is not accepted.
    pub(in crate::kubernetes) refused: Vec<(FieldPath, String)>,
    /// Our own entries of its status.
    pub(in crate::kubernetes) ours: Vec<Json>,
}

impl Facts for RouteFacts {
    const LIST: &'static str = "parents";

    fn resource(kind: &str) -> ApiResource {
        kinds::gateway_api(kind)
    }

    fn generation(&self) -> i64 {
        self.generation
    }

    fn ours(&self) -> &[Json] {
        &self.ours
    }

    fn wanted(&self, name: &Origin, world: &World, now: &str) -> Option<Vec<Json>> {
        let set = world.route(name);
        if self.refused.is_empty() && !self.parents.is_empty() && set.is_none() {
            return None;
        }
        let entry = |(reference, service, port): &(Json, Name, Option<i64>)| {
            let old = self.ours.iter().find(|entry| entry.get("parentRef") == Some(reference));
            let old = |kind: &str| old?.get("conditions")?.as_array()?.iter().find(|old| text(old, "type") == kind);
            let verdicts =
                [("Accepted", accepted(self, set, world, service, *port)), ("ResolvedRefs", resolved(set, world))];
            let conditions: Vec<Json> = verdicts
                .into_iter()
                .map(|(kind, verdict)| verdict.condition(kind, self.generation, old(kind), now))
                .collect();
            json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions})
        };
        Some(self.parents.iter().map(entry).collect())
    }

    fn is_ours(entry: &Json) -> bool {
        text(entry, "controllerName") == CONTROLLER
    }
}

fn accepted(facts: &RouteFacts, set: Option<&RouteSet>, world: &World, name: &Name, port: Option<i64>) -> Verdict {
    if !facts.refused.is_empty() {
        return Verdict::refused("UnsupportedValue", &facts.refused);
    }
    let Some(service) = world.service(name) else {
        return Verdict::no("NoMatchingParent", format!("there is no Service {name}"));
    };
    let number = port.and_then(|port| u16::try_from(port).ok());
    let ports: Vec<&ServicePort> =
        service.ports.iter().filter(|known| port.is_none() || Some(known.number) == number).collect();
    let asked = port.map_or_else(|| "TCP port".into(), |port| format!("TCP port {port}"));
    if ports.is_empty() {
        return Verdict::no("NoMatchingParent", format!("Service {name} has no {asked}"));
    }
    let Some(set) = set else { return Verdict::yes("Accepted", "the rules are in force") };
    let level = set.rules.level();
    let suiting = |port: &&&ServicePort| level.suits(world.service_protocol(service, port));
    if ports.iter().filter(suiting).count() == 0 {
        let speaks = if level.is_of_requests() { "speaks HTTP" } else { "speaks something else than HTTP" };
        let message =
            format!("no {asked} of Service {name} {speaks} by its name or appProtocol: the rules have no effect on it");
        return Verdict::no("UnsupportedProtocol", message);
    }
    let caller = set.audience(name).map(|namespace| &**namespace);
    let mut preferred = None;
    for port in ports.iter().filter(suiting) {
        match world.routes_of(service, port, caller).first().copied() {
            Some(first) if first.rules.level() != level => preferred = Some((first, port.number)),
            _ => return Verdict::yes("Accepted", "the rules are in force"),
        }
    }
    match preferred {
        Some((other, port)) => Verdict::no(
            "Conflicted",
            format!(
                "port {port} of Service {name} has rules of {}, which goes before {}",
                other.origin, set.origin.kind
            ),
        ),
        None => Verdict::yes("Accepted", "the rules are in force"),
    }
}

fn resolved(set: Option<&RouteSet>, world: &World) -> Verdict {
    let Some(set) = set else {
        return Verdict::yes("ResolvedRefs", "the rules are not accepted, so nothing that they name is looked for");
    };
    let effect = |field| match (field, set.rules.level().is_of_requests()) {
        ("filters", _) => "nobody gets the copy",
        (_, true) => "its share is answered with 500",
        (_, false) => "its share is refused",
    };
    for (_, field, target) in set.rules.targets() {
        if let Some(foreign) = &target.foreign {
            return Verdict::no("InvalidKind", format!("{foreign} is no Service: {}", effect(field)));
        }
        let Target { service, port, .. } = target;
        if !world.is_permitted(set, target) {
            let message = format!("no ReferenceGrant of its namespace allows Service {service}: {}", effect(field));
            return Verdict::no("RefNotPermitted", message);
        }
        if world.target(set, target).is_none() {
            let message = format!("there is no Service {service} with TCP port {port}: {}", effect(field));
            return Verdict::no("BackendNotFound", message);
        }
    }
    Verdict::yes("ResolvedRefs", "everything that the rules name is there")
}
