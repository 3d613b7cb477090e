//! A workload instance: one pod.

use std::{collections::BTreeMap, net::IpAddr};

use weir_mesh::ports::NEVER_REDIRECTED;

use super::Name;

/// A pod, as far as the mesh looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name of the pod.
    pub name: Name,
    /// Uid of the pod; empty where there is none.
    pub uid: String,
    /// Addresses; empty until it has some.
    pub addresses: Vec<IpAddr>,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the node that it runs on; empty until it is known.
    pub node: String,
    /// Name of what made it: the Deployment, the StatefulSet, or the pod itself.
    pub owner: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// TCP ports of its containers.
    pub ports: Vec<WorkloadPort>,
    /// Ports that are never looked into.
    pub opaque_ports: Vec<u16>,
    /// Ports that are not redirected to the proxy; beside the proxy's own.
    pub excluded_ports: Vec<u16>,
    /// It has our proxy.
    pub meshed: bool,
    /// It shares the node's network: its address is not its own.
    pub host_network: bool,
    /// It is ready to serve.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// It has ended; its address may belong to another.
    pub finished: bool,
}

/// Value of a label that is not there, in names for people and telemetry.
const LATEST: &str = "latest";

impl Workload {
    /// The addresses that are its own and in use.
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.host_network || self.finished { &[] } else { &self.addresses }
    }

    /// The proxy takes connections to this port: they can be mutual TLS.
    pub fn captures(&self, port: u16) -> bool {
        self.meshed && !NEVER_REDIRECTED.contains(&port) && !self.excluded_ports.contains(&port)
    }

    /// The port that this name stands for.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| port.name == name).map(|port| port.number)
    }

    /// Label `app`, as telemetry shows it; empty where there is none.
    pub fn app(&self) -> &str {
        self.label("app").unwrap_or_default()
    }

    /// Label `version`, as telemetry shows it; empty where there is none.
    pub fn version(&self) -> &str {
        self.label("version").unwrap_or_default()
    }

    /// Name that stays the same over versions (labels `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, else
    /// the owner's name).
    pub fn canonical_name(&self) -> &str {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
            .iter()
            .find_map(|key| self.label(key))
            .unwrap_or(&self.owner)
    }

    /// Version (labels `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, else `latest`).
    pub fn canonical_revision(&self) -> &str {
        ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]
            .iter()
            .find_map(|key| self.label(key))
            .unwrap_or(LATEST)
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Number.
    pub number: u16,
    /// Name; empty where there is none.
    pub name: String,
}
