//! A pod and what is known of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::containers::Kept;
use crate::util::{rfc3339, unix_now};

/// What a pod was made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Name of the Deployment, which is in the pod's namespace; none for a pod of a manifest.
    pub deployment: Option<String>,
    /// Hash of the template or of the manifest.
    pub hash: String,
}

/// A pod, from its creation to its end.
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique id.
    pub uid: String,
    /// What it was made from.
    pub owner: Owner,
    /// The object as it was made, replaced by what admission made of it.
    object: Mutex<Value>,
    pub(super) status: watch::Sender<PodStatus>,
    pub(super) delete: watch::Sender<Option<Deletion>>,
    pub(super) containers: Mutex<Vec<Arc<Kept>>>,
}

/// That and how a pod is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Longest time for it, where that is less than the pod's own grace period.
    pub at_most: Option<Duration>,
}

/// What is known of a pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PodStatus {
    /// Where it is.
    pub phase: Phase,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Its address of IPv6.
    #[serde(default)]
    pub address_v6: Option<Ipv6Addr>,
    /// Node side of its link.
    pub host_interface: Option<String>,
    /// Whether all its containers are ready.
    pub ready: bool,
    /// Whether it is on its way down.
    pub terminating: bool,
    /// Whether waiting will not help: someone must change the manifest or the machine.
    pub hopeless: bool,
    /// Why it does not go on.
    pub message: Option<String>,
    /// Containers, the init containers first.
    pub containers: Vec<ContainerStatus>,
    /// When it was made, seconds since 1970.
    pub created: u64,
}

/// Where a pod is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Asking the webhooks: the API server does not have it yet.
    #[default]
    Admission,
    /// Not all containers have been started.
    Pending,
    /// Running.
    Running,
    /// All containers ended well and are not started again.
    Succeeded,
    /// All containers ended, one of them badly, and are not started again.
    Failed,
    /// Gone.
    Gone,
}

/// What is known of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Name.
    pub name: String,
    /// Image.
    pub image: String,
    /// Whether it is in the list of init containers.
    pub init: bool,
    /// Where it is.
    pub state: ContainerState,
    /// Whether its start is over: post-start hook done, start-up probe passed.
    pub started: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended the last time: exit code and message.
    pub last_end: Option<(i32, String)>,
}

/// Where a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running, and why.
    Waiting(String),
    /// Running.
    Running,
    /// Ended with this exit code, for good.
    Ended(i32),
}

impl Default for ContainerState {
    fn default() -> Self {
        Self::Waiting("PodInitializing".into())
    }
}

impl Pod {
    /// A pod that is about to be created.
    pub fn new(namespace: &str, name: &str, owner: Owner, mut object: Value) -> Self {
        let uid = crate::util::uuid();
        let created = unix_now();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("uid".into(), json!(uid));
            metadata.insert("creationTimestamp".into(), json!(rfc3339(created)));
            metadata.insert("namespace".into(), json!(namespace));
        }
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid,
            owner,
            object: Mutex::new(object),
            status: watch::Sender::new(PodStatus { created, ..PodStatus::default() }),
            delete: watch::Sender::new(None),
            containers: Mutex::new(Vec::new()),
        }
    }

    /// `Pod namespace/name`, for messages.
    pub fn reference(&self) -> String {
        format!("Pod {}/{}", self.namespace, self.name)
    }

    /// What is known of it.
    pub fn status(&self) -> PodStatus {
        self.status.borrow().clone()
    }

    /// The object, without a status.
    pub fn object(&self) -> Value {
        self.object.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_object(&self, object: Value) {
        *self.object.lock().unwrap_or_else(PoisonError::into_inner) = object;
    }

    /// The object with its status, as an API server would hold it.
    pub fn full_object(&self) -> Value {
        let status = self.status();
        let mut object = self.object();
        let condition = |kind: &str, on: bool| json!({"type": kind, "status": if on { "True" } else { "False" }});
        let phase = match status.phase {
            Phase::Admission | Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded | Phase::Gone => "Succeeded",
            Phase::Failed => "Failed",
        };
        let containers = |init: bool| -> Vec<Value> {
            status.containers.iter().filter(|container| container.init == init).map(ContainerStatus::to_json).collect()
        };
        let mut full = json!({
            "phase": phase,
            "hostIP": crate::layout::NODE_ADDRESS,
            "hostIPs": ips(&crate::layout::node_addresses(status.address_v6.is_some())),
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", status.phase != Phase::Pending),
                condition("ContainersReady", status.ready),
                condition("Ready", status.ready && !status.terminating),
            ],
            "initContainerStatuses": containers(true),
            "containerStatuses": containers(false),
        });
        if let (Some(address), Some(full)) = (status.address, full.as_object_mut()) {
            full.insert("podIP".into(), json!(address));
            full.insert("podIPs".into(), ips(&status.addresses()));
        }
        if status.terminating
            && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("deletionTimestamp".into(), json!(rfc3339(unix_now())));
        }
        if let Some(object) = object.as_object_mut() {
            object.insert("status".into(), full);
        }
        object
    }

    /// The object with its status, typed.
    ///
    /// # Errors
    /// Where a webhook made something of it that is no pod.
    pub fn typed(&self) -> Result<core::Pod, serde_json::Error> {
        serde_json::from_value(self.full_object())
    }

    /// Labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner);
        object
            .pointer("/metadata/labels")
            .and_then(|labels| serde_json::from_value(labels.clone()).ok())
            .unwrap_or_default()
    }

    /// Asks for the end of the pod. Asking again can only shorten it.
    pub fn delete(&self, at_most: Option<Duration>) {
        self.delete.send_modify(|deletion| {
            let shorter = match deletion.and_then(|deletion| deletion.at_most) {
                Some(before) => Some(at_most.map_or(before, |now| now.min(before))),
                None => at_most,
            };
            *deletion = Some(Deletion { at_most: shorter });
        });
    }

    /// Whether its end was asked for.
    pub fn is_deleted(&self) -> bool {
        self.delete.borrow().is_some()
    }

    /// Waits until the pod and all that belongs to it is gone.
    pub async fn gone(&self) {
        let mut status = self.status.subscribe();
        let _ = status.wait_for(|status| status.phase == Phase::Gone).await;
    }

    /// A running container by name; without one the pod's first ordinary container.
    pub fn container(&self, name: Option<&str>) -> Option<Arc<Kept>> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        match name {
            Some(name) => containers.iter().find(|kept| kept.name() == name).cloned(),
            None => containers.iter().find(|kept| !kept.is_init()).cloned(),
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut PodStatus)) {
        self.status.send_modify(|status| {
            change(status);
            let all = !status.containers.is_empty()
                && status.containers.iter().all(|container| match container.state {
                    ContainerState::Ended(0) => true,
                    _ => container.ready,
                });
            status.ready = all && status.phase == Phase::Running;
        });
    }

    pub(super) fn change_container(&self, name: &str, change: impl FnOnce(&mut ContainerStatus)) {
        self.change(|status| {
            if let Some(container) = status.containers.iter_mut().find(|container| container.name == name) {
                change(container);
            }
        });
    }
}

impl PodStatus {
    /// Its addresses, the first one first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.address.map(IpAddr::from).into_iter().chain(self.address_v6.map(IpAddr::from)).collect()
    }
}

/// Addresses as the API has them in a status.
fn ips(addresses: &[IpAddr]) -> Value {
    addresses.iter().map(|address| json!({"ip": address})).collect()
}

impl ContainerStatus {
    fn to_json(&self) -> Value {
        let state = match &self.state {
            ContainerState::Waiting(reason) => json!({"waiting": {"reason": reason}}),
            ContainerState::Running => json!({"running": {}}),
            ContainerState::Ended(code) => json!({"terminated": {"exitCode": code}}),
        };
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": state,
        })
    }
}
