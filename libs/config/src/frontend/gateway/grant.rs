//! ReferenceGrant: what a namespace lets others refer to. Kinds that the mesh does not know are passed over: they are of other
//! controllers.

use std::sync::Arc;

use super::is_core;
use crate::{
    gateway::{GROUP, REFERENCE_GRANT, ReferenceGrant},
    model::{Grant, Name, Origin},
};

/// Reads a ReferenceGrant.
pub fn reference_grant(object: &ReferenceGrant) -> Grant {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    let name = Name::new(text(&object.metadata.namespace), text(&object.metadata.name));
    let from = object.spec.from.iter().filter(|from| from.group == GROUP);
    let to = object.spec.to.iter().filter(|to| is_core(&to.group) && to.kind == "Service");
    Grant {
        origin: Origin { kind: REFERENCE_GRANT, name },
        from: from.map(|from| (from.kind.clone(), Arc::from(from.namespace.as_str()))).collect(),
        services: to.map(|to| to.name.as_deref().map(Arc::from)).collect(),
    }
}
