//! A route: the Services that it is for, what becomes of it there, and the place of its rules among all.

use weir_config::{
    describe::{Condition, Parent, ParentPort, Route},
    model::{Origin, RouteParent, RouteSet, ServicePort},
};

use super::{Refused, aside, rules::rules};
use crate::{
    verdict::{Verdict, accepted, resolved},
    world::World,
};

/// What becomes of a route; `None` where it is not known.
pub fn route(world: &World, origin: &Origin, refused: &[Refused]) -> Option<Route> {
    let refused: Vec<String> = refused
        .iter()
        .filter(|object| {
            object.kind == origin.kind
                && *object.namespace == *origin.name.namespace
                && *object.name == *origin.name.name
        })
        .map(|object| object.reason.clone())
        .collect();
    let set = world.route(origin);
    if set.is_none() && refused.is_empty() {
        return None;
    }
    Some(Route {
        object: origin.to_string(),
        resolved: set.map(|set| condition(resolved(Some(set), world))),
        parents: set
            .map(|set| set.parents.iter().map(|parent| self::parent(world, set, parent)).collect())
            .unwrap_or_default(),
        refused,
    })
}

fn parent(world: &World, set: &RouteSet, parent: &RouteParent) -> Parent {
    let callers = set.audience(&parent.service).map(|namespace| &**namespace);
    let service = world.service(&parent.service);
    let ports = service.into_iter().flat_map(|service| {
        let meant = service.ports.iter().filter(|port| parent.port.is_none_or(|only| only == port.number));
        meant.map(move |port: &ServicePort| {
            let ruling = world.ruling(service, port, callers);
            let why = ruling.aside.iter().find(|(other, _)| other.origin == set.origin);
            ParentPort {
                number: port.number,
                rules: rules(world, service, &ruling.sets),
                without_effect: why.map(|(set, why)| aside(set, *why).reason),
            }
        })
    });
    Parent {
        service: parent.service.to_string(),
        port: parent.port,
        callers: callers.map(str::to_owned),
        accepted: condition(accepted(&[], Some(set), world, &parent.service, parent.port.map(i64::from))),
        ports: ports.collect(),
    }
}

fn condition(Verdict { holds, reason, message }: Verdict) -> Condition {
    Condition { holds, reason: reason.to_owned(), message }
}
