//! Kubernetes' own kinds to services, workloads and endpoints.

use std::net::IpAddr;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::util::intstr::IntOrString,
};
use weir_mesh::{
    CaptureSettings, PodSettings,
    names::{CAPTURE_ANNOTATION, PROXY_CONTAINER},
};

use crate::model::{
    Addressing, Condition, Endpoint, EndpointPort, EndpointSet, HttpVersion, Name, Protocol, Service, ServicePort,
    TargetPort, Workload, WorkloadPort,
};

/// Label of an EndpointSlice: the Service's name.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label of a ReplicaSet's pods: the hash at the end of the ReplicaSet's name.
const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

fn name(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Name {
    Name::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port > 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.unwrap_or("TCP") == "TCP"
}

/// A Service. What is not TCP is left out.
pub fn service(object: &core::Service) -> Service {
    let spec = object.spec.clone().unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let ports = ports.iter().filter(|port| is_tcp(port.protocol.as_deref())).filter_map(|port| {
        let number = port_number(port.port)?;
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => TargetPort::Number(port_number(*target)?),
            Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
        };
        let name = port.name.clone().unwrap_or_default();
        let protocol = protocol(&name, port.app_protocol.as_deref());
        let version = port.app_protocol.as_deref().and_then(version);
        Some(ServicePort { number, name, protocol, version, target })
    });
    let mut addresses: Vec<IpAddr> = Vec::new();
    let listed = spec.cluster_ips.unwrap_or_default();
    for text in listed.iter().chain(&spec.cluster_ip) {
        if let Ok(address) = text.parse()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    let addressing = match spec.external_name {
        Some(host) if spec.type_.as_deref() == Some("ExternalName") => Addressing::External(host),
        _ if addresses.is_empty() => Addressing::Headless,
        _ => Addressing::Cluster(addresses),
    };
    Service {
        name: name(&object.metadata),
        addressing,
        ports: ports.collect(),
        selector: spec.selector.unwrap_or_default(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
    }
}

/// What a port speaks: `appProtocol` if it is there, else the port's name up to its first dash.
pub fn protocol(port_name: &str, app_protocol: Option<&str>) -> Protocol {
    if let Some(declared) = app_protocol.filter(|declared| !declared.is_empty()) {
        return match declared.to_ascii_lowercase().as_str() {
            "http" | "http2" | "h2c" | "grpc" | "grpc-web" | "kubernetes.io/h2c" | "kubernetes.io/ws" => Protocol::Http,
            // RFC 6335 service names and domain-prefixed names: all of them say that it is no HTTP in plaintext
            _ => Protocol::Opaque,
        };
    }
    match port_name.split('-').next().unwrap_or_default() {
        "http" | "http2" | "grpc" => Protocol::Http,
        "tcp" | "tls" | "https" | "redis" | "mysql" | "mongo" | "postgres" | "kafka" | "amqp" => Protocol::Opaque,
        _ => Protocol::Undeclared,
    }
}

/// The version of HTTP that an `appProtocol` asks for (Kubernetes' own names for it, KEP-3726): the others leave it to the client.
fn version(app_protocol: &str) -> Option<HttpVersion> {
    match app_protocol.to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" => Some(HttpVersion::Http2),
        // WebSocket begins as HTTP/1.1 (RFC 6455)
        "kubernetes.io/ws" => Some(HttpVersion::Http1),
        _ => None,
    }
}

/// A Pod.
pub fn workload(object: &core::Pod) -> Workload {
    let metadata = &object.metadata;
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let labels = metadata.labels.clone().unwrap_or_default();
    let pod_name = name(metadata);

    let mut addresses: Vec<IpAddr> = Vec::new();
    let listed = status.pod_ips.unwrap_or_default();
    for text in listed.iter().map(|ip| &ip.ip).chain(&status.pod_ip) {
        if let Ok(address) = text.parse()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    let sidecars = spec.init_containers.unwrap_or_default();
    let sidecars: Vec<&core::Container> =
        sidecars.iter().filter(|container| container.restart_policy.as_deref() == Some("Always")).collect();
    let meshed = sidecars.iter().copied().chain(&spec.containers).any(|container| container.name == PROXY_CONTAINER);
    let ports = sidecars
        .iter()
        .copied()
        .chain(&spec.containers)
        .filter(|container| container.name != PROXY_CONTAINER)
        .flat_map(|container| container.ports.as_deref().unwrap_or_default())
        .filter(|port| is_tcp(port.protocol.as_deref()))
        .filter_map(|port| {
            Some(WorkloadPort {
                number: port_number(port.container_port)?,
                name: port.name.clone().unwrap_or_default(),
            })
        })
        .collect();
    let annotations = metadata.annotations.clone().unwrap_or_default();
    // The webhook refused what is wrong; if it is stored all the same, it is as if it were not there.
    let opaque = annotations.iter().filter(|(key, _)| key.as_str() == "weir.dev/opaque-ports");
    let opaque_ports = PodSettings::from_annotations(opaque.map(|(key, value)| (key.as_str(), value.as_str())))
        .map(|settings| settings.opaque_ports)
        .unwrap_or_default();
    // What the redirect was made of. The annotation that it comes from may have changed since, the redirect has not.
    let excluded_ports = annotations
        .get(CAPTURE_ANNOTATION)
        .and_then(|json| CaptureSettings::from_json(json).ok())
        .map(|settings| settings.exclude_inbound_ports)
        .unwrap_or_default();
    let condition = |wanted: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == wanted && condition.status == "True")
    };
    Workload {
        uid: metadata.uid.clone().unwrap_or_default(),
        addresses,
        service_account: spec
            .service_account_name
            .filter(|account| !account.is_empty())
            .unwrap_or_else(|| DEFAULT_ACCOUNT.into()),
        node: spec.node_name.unwrap_or_default(),
        owner: owner(metadata, &labels),
        ports,
        opaque_ports,
        excluded_ports,
        meshed,
        host_network: spec.host_network.unwrap_or_default(),
        ready: condition("Ready"),
        terminating: metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        name: pod_name,
        labels,
    }
}

/// Name of the controller that a person made: a ReplicaSet's Deployment, a Job's CronJob is not followed; else the pod's name.
fn owner(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    labels: &std::collections::BTreeMap<String, String>,
) -> String {
    let references = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = references.iter().find(|reference| reference.controller == Some(true)).or(references.first())
    else {
        return metadata.name.clone().unwrap_or_default();
    };
    if owner.kind == "ReplicaSet" {
        let hash = labels.get(POD_TEMPLATE_HASH).map(String::as_str);
        if let Some((deployment, suffix)) = owner.name.rsplit_once('-')
            && hash.is_none_or(|hash| hash == suffix)
        {
            return deployment.to_owned();
        }
    }
    owner.name.clone()
}

/// An EndpointSlice; `None` where it belongs to no Service or lists host names instead of addresses.
pub fn endpoints(object: &discovery::EndpointSlice) -> Option<EndpointSet> {
    if object.address_type == "FQDN" {
        return None;
    }
    let metadata = &object.metadata;
    let name = name(metadata);
    let service = metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    let ports = object.ports.as_deref().unwrap_or_default();
    let ports = ports.iter().filter(|port| is_tcp(port.protocol.as_deref())).filter_map(|port| {
        Some(EndpointPort { name: port.name.clone().unwrap_or_default(), number: port_number(port.port?)? })
    });
    let endpoints = object.endpoints.iter().map(|endpoint| {
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let namespace = target.and_then(|target| target.namespace.clone());
        Endpoint {
            addresses: endpoint.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
            condition: condition(endpoint.conditions.as_ref()),
            workload: target
                .and_then(|target| target.name.clone())
                .map(|pod| Name::new(namespace.as_deref().unwrap_or(&name.namespace), pod)),
        }
    });
    Some(EndpointSet {
        service: Name::new(name.namespace.clone(), service.as_str()),
        ports: ports.collect(),
        endpoints: endpoints.collect(),
        name,
    })
}

/// Missing conditions count as the API says: ready unknown is ready, serving follows ready, terminating unknown is not.
fn condition(conditions: Option<&discovery::EndpointConditions>) -> Condition {
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    match (ready, serving, terminating) {
        (true, ..) => Condition::Ready,
        (false, true, true) => Condition::Draining,
        _ => Condition::Unready,
    }
}
