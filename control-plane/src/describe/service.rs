//! A Service: the rules and policies that its callers follow.

use weir_config::{
    describe::{Callers, Port, Service, WithoutEffect},
    model::{self, Name, RequestsOf, ServicePort},
};

use super::{Refused, aside, endpoints, protocol, rules::rules, settings};
use crate::world::World;

/// What is in force for a Service; `None` where it is not known.
pub fn service(world: &World, name: &Name, refused: &[Refused]) -> Option<Service> {
    let service = world.service(name)?;
    let ports = service.ports.iter().map(|port| Port {
        number: port.number,
        name: port.name.clone(),
        protocol: protocol(world.service_protocol(service, port)),
        endpoints: endpoints(world, service, port.number),
        callers: callers(world, service, port),
    });
    Some(Service {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        addresses: service.addresses().to_vec(),
        ports: ports.collect(),
        without_effect: without_effect(world, service, refused),
    })
}

fn callers(world: &World, service: &model::Service, port: &ServicePort) -> Vec<Callers> {
    let mut namespaces = world.audiences(&service.name);
    namespaces.extend(world.policy_audiences(&service.name));
    let apart = namespaces.into_iter().map(|namespace| Some(&**namespace));
    let of = |namespace: Option<&str>| {
        let ruling = world.ruling(service, port, namespace);
        let policies = world.policies_of(&service.name, namespace);
        let rules = rules(world, service, &ruling.sets);
        let of_requests = if rules.is_empty() {
            world.request_policies(&[RequestsOf::Service(service.name.clone())])
        } else {
            Vec::new()
        };
        Callers {
            namespace: namespace.map(str::to_owned),
            rules,
            settings: settings(policies.iter().map(|policy| (&policy.origin, policy.of(port.number).said()))),
            request_settings: settings(of_requests.iter().map(|policy| (&policy.origin, policy.rules.said()))),
            without_effect: ruling.aside.into_iter().map(|(set, why)| aside(set, why)).collect(),
        }
    };
    std::iter::once(None).chain(apart).map(of).collect()
}

/// Routes for ports that there are not, and of the Service's namespace the objects that are refused and the policies of nothing.
fn without_effect(world: &World, service: &model::Service, refused: &[Refused]) -> Vec<WithoutEffect> {
    let name = &service.name;
    let lost = world.routes_for(name).filter(|set| !service.ports.iter().any(|port| set.is_for(name, port.number)));
    let lost = lost.map(|set| WithoutEffect {
        object: set.origin.to_string(),
        reason: format!("Service {name} has no TCP port that it names"),
    });
    let refused = refused.iter().filter(|object| *object.namespace == *name.namespace).map(Refused::without_effect);
    let nothing = world.policies_of_nothing().into_iter();
    let nothing = nothing
        .filter(|(origin, _)| origin.name.namespace == name.namespace)
        .map(|(origin, reason)| WithoutEffect { object: origin.to_string(), reason });
    let mut all: Vec<WithoutEffect> = lost.chain(refused).chain(nothing).collect();
    all.sort();
    all
}
