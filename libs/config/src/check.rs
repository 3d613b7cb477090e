//! Checks of one object that its types do not make: names, ports, routes. The rest is the API server's business.

use std::collections::HashSet;

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};
use weir_mesh::PodSettings;

use crate::{frontend, object::Object, path::FieldPath};

/// A problem of one field.
type FieldError = (FieldPath, String);

/// Everything wrong with an object, by field.
pub fn object(object: &Object) -> Vec<FieldError> {
    let mut errors = names(object);
    match object {
        Object::Service(service) => service_ports(service, &mut errors),
        Object::Pod(pod) => {
            pod_spec(pod.spec.as_ref(), &FieldPath::of("spec"), &mut errors);
            annotations(&pod.metadata, &FieldPath::of("metadata.annotations"), &mut errors);
        }
        Object::Deployment(deployment) => {
            template(deployment.spec.as_ref().map(|spec| (&spec.template, &spec.selector)), &mut errors)
        }
        Object::StatefulSet(set) => {
            template(set.spec.as_ref().map(|spec| (&spec.template, &spec.selector)), &mut errors)
        }
        Object::PeerAuthentication(object) => errors.extend(frontend::security::peer_authentication(object).refused),
        Object::AuthorizationPolicy(object) => errors.extend(frontend::security::authorization_policy(object).refused),
        other => {
            errors.extend(other.route().and_then(Result::err).unwrap_or_default());
            errors.extend(other.policy().and_then(Result::err).unwrap_or_default());
        }
    }
    errors
}

/// RFC 1123 sub-domains; label names where Kubernetes asks for labels.
fn names(object: &Object) -> Vec<FieldError> {
    let metadata = object.metadata();
    let mut errors = Vec::new();
    let name = metadata.name.as_deref().unwrap_or_default();
    let label_only = matches!(object, Object::Service(_) | Object::Namespace(_));
    let field = FieldPath::of("metadata.name");
    if name.is_empty() {
        errors.push((field, "is missing".into()));
    } else if !is_name(name, if label_only { 63 } else { 253 }, !label_only) {
        errors.push((
            field,
            format!(
                "{name:?} is not a name: lower-case letters, digits and '-'{}, a letter or digit at both ends",
                if label_only { ", at most 63" } else { " and '.', at most 253" }
            ),
        ));
    }
    match metadata.namespace.as_deref() {
        Some(namespace) if object.is_namespaced() && !is_name(namespace, 63, false) => {
            errors.push((FieldPath::of("metadata.namespace"), format!("{namespace:?} is not a namespace's name")));
        }
        Some(namespace) if !object.is_namespaced() && !namespace.is_empty() => {
            errors.push((FieldPath::of("metadata.namespace"), format!("a {} has no namespace", object.kind())));
        }
        _ => {}
    }
    errors
}

fn is_name(name: &str, max: usize, dots: bool) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    name.len() <= max
        && end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-') || (dots && *b == b'.'))
}

fn is_port(port: i32) -> bool {
    (1..=65535).contains(&port)
}

fn service_ports(service: &core::Service, errors: &mut Vec<FieldError>) {
    let Some(spec) = &service.spec else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let at = FieldPath::of("spec.ports");
    if ports.is_empty() && spec.type_.as_deref() != Some("ExternalName") && spec.cluster_ip.as_deref() != Some("None") {
        errors.push((at.clone(), "is empty: a Service needs a port".into()));
    }
    let mut seen = HashSet::new();
    let mut numbers = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = at.index(i);
        if !is_port(port.port) {
            errors.push((at.key("port"), format!("{} is not a port (1 to 65535)", port.port)));
        }
        if let Some(IntOrString::Int(target)) = port.target_port
            && !is_port(target)
        {
            errors.push((at.key("targetPort"), format!("{target} is not a port (1 to 65535)")));
        }
        if ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            errors.push((at.key("name"), "is missing: with several ports each needs a name".into()));
        } else if !seen.insert(port.name.clone()) {
            errors.push((at.key("name"), "is the name of an earlier port".into()));
        }
        if !numbers.insert((port.port, port.protocol.clone().unwrap_or_else(|| "TCP".into()))) {
            errors.push((at.key("port"), format!("{} is the number of an earlier port", port.port)));
        }
        protocol(port.protocol.as_deref(), at.key("protocol"), errors);
    }
}

fn protocol(protocol: Option<&str>, field: FieldPath, errors: &mut Vec<FieldError>) {
    if let Some(protocol) = protocol
        && !["TCP", "UDP", "SCTP"].contains(&protocol)
    {
        errors.push((field, format!("{protocol:?} is not TCP, UDP or SCTP")));
    }
}

fn pod_spec(spec: Option<&core::PodSpec>, at: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(spec) = spec.filter(|spec| !spec.containers.is_empty()) else {
        errors.push((at.key("containers"), "is empty: a pod needs a container".into()));
        return;
    };
    let mut seen = HashSet::new();
    let lists =
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)];
    for (field, containers) in lists {
        for (i, container) in containers.iter().enumerate() {
            let at = at.key(field).index(i);
            if !is_name(&container.name, 63, false) {
                errors.push((at.key("name"), format!("{:?} is not a container's name", container.name)));
            } else if !seen.insert(&container.name) {
                errors.push((at.key("name"), format!("{} is the name of an earlier container", container.name)));
            }
            for (i, port) in container.ports.as_deref().unwrap_or_default().iter().enumerate() {
                let at = at.key("ports").index(i);
                if !is_port(port.container_port) {
                    errors
                        .push((at.key("containerPort"), format!("{} is not a port (1 to 65535)", port.container_port)));
                }
                protocol(port.protocol.as_deref(), at.key("protocol"), errors);
            }
        }
    }
}

fn annotations(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    at: &FieldPath,
    errors: &mut Vec<FieldError>,
) {
    let annotations = metadata.annotations.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    if let Err(found) = PodSettings::from_annotations(annotations) {
        errors.extend(found.into_iter().map(|error| (at.key(error.name), error.reason)));
    }
}

fn template(
    template: Option<(&core::PodTemplateSpec, &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector)>,
    errors: &mut Vec<FieldError>,
) {
    let Some((template, selector)) = template else {
        errors.push((FieldPath::of("spec"), "is missing".into()));
        return;
    };
    let at = FieldPath::of("spec.template");
    pod_spec(template.spec.as_ref(), &at.key("spec"), errors);
    let Some(metadata) = &template.metadata else {
        errors.push((at.key("metadata").key("labels"), "is missing: spec.selector must select it".into()));
        return;
    };
    annotations(metadata, &at.key("metadata").key("annotations"), errors);
    let labels = metadata.labels.clone().unwrap_or_default();
    let wanted = selector.match_labels.clone().unwrap_or_default();
    if wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
        errors.push((at.key("metadata").key("labels"), "do not have the labels of spec.selector.matchLabels".into()));
    }
}
