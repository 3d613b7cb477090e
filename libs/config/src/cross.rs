//! Checks across objects: what names another object that is not there.
//!
//! The sandbox refuses what fails here. The control plane only reports it, and goes on as Gateway API says (500 for the share
//! of a bad backend): objects of a cluster come in any order.

use std::collections::{HashMap, HashSet};

use crate::{
    frontend,
    manifest::Manifest,
    model::{Name, Protocol, Service},
    object::{Object, ObjectRef},
    path::FieldPath,
    problem::Problem,
};

/// Every reference to something that is not among these objects, and every object that is there twice.
pub fn validate(manifests: &[Manifest]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen: HashMap<ObjectRef, &Manifest> = HashMap::new();
    let mut services = HashMap::new();
    for manifest in manifests {
        if let Some(first) = seen.insert(manifest.object.reference(), manifest) {
            let message = format!("is in {} too", first.source.file);
            problems.push(manifest.problem(FieldPath::of("metadata.name"), message));
        }
        if let Object::Service(service) = &manifest.object {
            let service = frontend::kubernetes::service(service);
            services.insert(service.name.clone(), service);
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
        if let Object::HttpRoute(route) = &manifest.object {
            for (field, message) in references(route, |name| services.get(name)) {
                problems.push(manifest.problem(field, message));
            }
        }
    }
    problems
}

/// Every Service, or port of one, that a route names and that is not there.
pub fn references<'a>(
    route: &crate::gateway::HttpRoute,
    service: impl Fn(&Name) -> Option<&'a Service>,
) -> Vec<(FieldPath, String)> {
    let mut errors = Vec::new();
    let own = route.metadata.namespace.as_deref().unwrap_or_default();
    let name = |namespace: &Option<String>, name: &str| Name::new(namespace.as_deref().unwrap_or(own), name);
    let mut check = |at: FieldPath, target: Name, port: Option<i64>, parent: bool| {
        let Some(service) = service(&target) else {
            errors.push((at.key("name"), format!("there is no Service {target}")));
            return;
        };
        let Some(number) = port else { return };
        let found = u16::try_from(number).ok().and_then(|number| service.port(number));
        let Some(found) = found else {
            let known: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            errors.push((
                at.key("port"),
                format!("Service {target} has no TCP port {number}; it has {}", known.join(", ")),
            ));
            return;
        };
        if parent && found.protocol == Protocol::Opaque {
            let message = format!(
                "port {number} of Service {target} does not speak HTTP by its name or appProtocol: rules have no effect on it"
            );
            errors.push((at.key("port"), message));
        }
    };
    let spec = FieldPath::of("spec");
    for (i, parent) in route.spec.parent_refs.iter().enumerate() {
        check(spec.key("parentRefs").index(i), name(&parent.namespace, &parent.name), parent.port, true);
    }
    for (i, rule) in route.spec.rules.iter().enumerate() {
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let at = spec.key("rules").index(i).key("backendRefs").index(j);
            check(at, name(&backend.namespace, &backend.name), backend.port, false);
        }
    }
    errors
}
