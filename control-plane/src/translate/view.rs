//! What of a caller a resource depends on. Most are the same for all of them; only who has rules of its own, or a place that counts,
//! gets its own.

use std::{collections::BTreeSet, sync::Arc};

use weir_config::model::Name;
use weir_xds::Kind;

use super::Of;
use crate::{source::Locality, world::World};

/// What of a caller a resource depends on; nothing, for most.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct View {
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Where its machine stands.
    pub place: Option<Locality>,
}

/// What the views of one resource differ in.
#[derive(Debug)]
pub struct Views<'a> {
    world: &'a World,
    namespaces: BTreeSet<&'a Arc<str>>,
    by_place: bool,
}

impl<'a> Views<'a> {
    /// Of a resource.
    pub fn of(world: &'a World, kind: Kind, of: &Of) -> Self {
        let service = match (kind, of) {
            (Kind::Listener, Of::Address(address)) => world.service_at(address.ip()),
            (_, Of::Service(service, _)) => world.service(service),
            _ => None,
        };
        let mut namespaces = BTreeSet::new();
        let mut by_place = false;
        if let Some(service) = service {
            match kind {
                Kind::Route | Kind::Listener => {
                    namespaces = world.audiences(&service.name);
                    namespaces.extend(world.hash_audiences(&service.name));
                }
                Kind::Cluster => namespaces = world.policy_audiences(&service.name),
                Kind::Endpoints => {
                    by_place = world.looks_at_places(&service.name);
                    namespaces = if by_place { world.policy_audiences(&service.name) } else { namespaces };
                }
            }
        }
        Self { world, namespaces, by_place }
    }

    /// The view of a pod.
    pub fn by(&self, pod: &Name) -> View {
        let place = || self.world.workload(pod).map(|pod| self.world.locality(pod));
        View {
            namespace: self.namespaces.get(&pod.namespace).map(|namespace| (*namespace).clone()),
            place: self.by_place.then(place).flatten().filter(|place| *place != Locality::default()),
        }
    }
}
