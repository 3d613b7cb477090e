//! Who may refer to what of a namespace.

use std::sync::Arc;

use super::{Name, Origin};

/// What a namespace lets others refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The object; what it allows is in its namespace.
    pub origin: Origin,
    /// Objects of this kind in this namespace may refer.
    pub from: Vec<(String, Arc<str>)>,
    /// To all services, or to these.
    pub services: Vec<Option<Arc<str>>>,
}

impl Grant {
    /// True where it lets an object refer to a service.
    pub fn permits(&self, from: &Origin, to: &Name) -> bool {
        self.origin.name.namespace == to.namespace
            && self.from.iter().any(|(kind, namespace)| kind == from.kind && *namespace == from.name.namespace)
            && self.services.iter().any(|name| name.as_ref().is_none_or(|name| *name == to.name))
    }
}
