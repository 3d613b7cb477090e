//! The status of policies: one condition, `Accepted`, with the reasons of Gateway API's policies.

use kube::core::{ApiResource, DynamicObject};
use serde_json::Value as Json;
use weir_config::{FieldPath, Problem, model::Origin};

use super::{Facts, condition, text};
use crate::{kubernetes::kinds, verdict::policy_accepted, world::World};

const ACCEPTED: &str = "Accepted";

/// What is needed of a policy to write its status.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PolicyFacts {
    generation: i64,
    /// Why it is not accepted.
    refused: Vec<(FieldPath, String)>,
    /// Our own condition.
    ours: Vec<Json>,
}

impl PolicyFacts {
    /// Of an object, and what was found wrong with it.
    pub(in crate::kubernetes) fn new(object: &DynamicObject, problems: &[Problem]) -> Self {
        let conditions = object.data.pointer("/status/conditions").and_then(Json::as_array);
        Self {
            generation: object.metadata.generation.unwrap_or_default(),
            refused: problems.iter().map(|problem| (problem.field.clone(), problem.message.clone())).collect(),
            ours: conditions.into_iter().flatten().filter(|condition| Self::is_ours(condition)).cloned().collect(),
        }
    }
}

impl Facts for PolicyFacts {
    const LIST: &'static str = "conditions";

    fn resource(kind: &str) -> ApiResource {
        kinds::policy(kind)
    }

    fn generation(&self) -> i64 {
        self.generation
    }

    fn ours(&self) -> &[Json] {
        &self.ours
    }

    fn wanted(&self, name: &Origin, world: &World, now: &str) -> Option<Vec<Json>> {
        let verdict = policy_accepted(&self.refused, name, world)?;
        Some(vec![condition(ACCEPTED, verdict, self.generation, self.ours.first(), now)])
    }

    fn is_ours(condition: &Json) -> bool {
        text(condition, "type") == ACCEPTED
    }
}
