//! The status of routes: for each Service that a route names, whether the rules are accepted there and whether what they name
//! exists (Gateway API, "RouteParentStatus").

use kube::core::ApiResource;
use serde_json::{Value as Json, json};
use weir_config::{
    FieldPath,
    model::{Name, Origin},
};

use super::{Facts, condition, text};
use crate::{
    kubernetes::kinds::{self, CONTROLLER},
    verdict::{accepted, resolved},
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
            let verdicts = [
                ("Accepted", accepted(&self.refused, set, world, service, *port)),
                ("ResolvedRefs", resolved(set, world)),
            ];
            let conditions: Vec<Json> = verdicts
                .into_iter()
                .map(|(kind, verdict)| condition(kind, verdict, self.generation, old(kind), now))
                .collect();
            json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions})
        };
        Some(self.parents.iter().map(entry).collect())
    }

    fn is_ours(entry: &Json) -> bool {
        text(entry, "controllerName") == CONTROLLER
    }
}
