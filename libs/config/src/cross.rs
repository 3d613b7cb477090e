//! Checks across objects: what names another object that is not there.
//!
//! The sandbox refuses what fails here. The control plane only reports it, and goes on as Gateway API says (500 for the share
//! of a bad backend): objects of a cluster come in any order.

use std::collections::{HashMap, HashSet};

use crate::{
    frontend,
    manifest::Manifest,
    model::{Grant, Level, Name, RouteSet, Service, Target},
    object::{Object, ObjectRef},
    path::FieldPath,
    problem::Problem,
};

/// Every reference to something that is not among these objects, and every object that is there twice.
pub fn validate(manifests: &[Manifest]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen: HashMap<ObjectRef, &Manifest> = HashMap::new();
    let mut services = HashMap::new();
    let mut grants = Vec::new();
    for manifest in manifests {
        if let Some(first) = seen.insert(manifest.object.reference(), manifest) {
            let message = format!("is in {} too", first.source.file);
            problems.push(manifest.problem(FieldPath::of("metadata.name"), message));
        }
        if let Object::Service(service) = &manifest.object {
            let service = frontend::kubernetes::service(service);
            services.insert(service.name.clone(), service);
        }
        if let Object::ReferenceGrant(grant) = &manifest.object {
            grants.push(frontend::gateway::reference_grant(grant));
        }
    }
    let namespaces: HashSet<&str> = manifests
        .iter()
        .filter(|manifest| matches!(manifest.object, Object::Namespace(_)))
        .filter_map(|manifest| manifest.object.metadata().name.as_deref())
        .collect();
    for manifest in manifests {
        let namespace = manifest.object.metadata().namespace.as_deref();
        if let Some(namespace) = namespace
            && !namespaces.contains(namespace)
            && ![crate::manifest::DEFAULT_NAMESPACE, weir_mesh::names::SYSTEM_NAMESPACE].contains(&namespace)
        {
            let message = format!("there is no Namespace {namespace}");
            problems.push(manifest.problem(FieldPath::of("metadata.namespace"), message));
        }
        if let Some(Ok(set)) = manifest.object.route() {
            for (field, message) in references(&set, &grants, |name| services.get(name)) {
                problems.push(manifest.problem(field, message));
            }
        }
    }
    problems
}

/// Every Service, or port of one, that a route names and that is not there.
fn references<'a>(
    set: &RouteSet,
    grants: &[Grant],
    service: impl Fn(&Name) -> Option<&'a Service>,
) -> Vec<(FieldPath, String)> {
    let mut errors = Vec::new();
    let spec = FieldPath::of("spec");
    for (i, parent) in set.parents.iter().enumerate() {
        let at = spec.key("parentRefs").index(i);
        let Some(service) = service(&parent.service) else {
            errors.push((at.key("name"), format!("there is no Service {}", parent.service)));
            continue;
        };
        let Some(number) = parent.port else { continue };
        match service.port(number) {
            None => errors.push((at.key("port"), no_port(service, number))),
            Some(port) if !set.rules.level().suits(port.protocol) => {
                errors.push((at.key("port"), unsuited(set.rules.level(), &parent.service, number)));
            }
            Some(_) => {}
        }
    }
    let mut counts: HashMap<(usize, &str), usize> = HashMap::new();
    for (rule, field, target) in set.rules.targets() {
        let number = counts.entry((rule, field)).or_default();
        let at = spec.key("rules").index(rule).key(field);
        // The place of a mirror among the filters is not known here: the field is that of them all.
        let at = if field == "backendRefs" { at.index(*number) } else { at };
        *number += 1;
        if let Some(foreign) = &target.foreign {
            errors.push((at.key("kind"), format!("{foreign} is nothing that can be called: use a Service")));
        } else if !is_permitted(set, target, grants) {
            let message = format!(
                "Service {} is of another namespace than the rules and their parents: a ReferenceGrant there has to allow it",
                target.service
            );
            errors.push((at.key("namespace"), message));
        } else if let Some(service) = service(&target.service) {
            if service.port(target.port).is_none() {
                errors.push((at.key("port"), no_port(service, target.port)));
            }
        } else {
            errors.push((at.key("name"), format!("there is no Service {}", target.service)));
        }
    }
    errors
}

fn no_port(service: &Service, number: u16) -> String {
    let known: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
    format!("Service {} has no TCP port {number}; it has {}", service.name, known.join(", "))
}

/// Why rules have no effect on a port that speaks something else.
pub fn unsuited(level: Level, service: &Name, port: u16) -> String {
    if level.is_of_requests() {
        format!(
            "port {port} of Service {service} does not speak HTTP by its name or appProtocol: rules have no effect on it"
        )
    } else {
        format!(
            "port {port} of Service {service} speaks HTTP by its name or appProtocol: use an HTTPRoute or a GRPCRoute"
        )
    }
}

/// True where rules may send to a service: within their own namespace, to that of the service that they are for (a caller reaches
/// it anyway), and where a grant says so.
pub fn is_permitted<'a>(set: &RouteSet, target: &Target, grants: impl IntoIterator<Item = &'a Grant>) -> bool {
    let namespace = &target.service.namespace;
    *namespace == set.origin.name.namespace
        || set.parents.iter().any(|parent| parent.service.namespace == *namespace)
        || grants.into_iter().any(|grant| grant.permits(&set.origin, &target.service))
}
