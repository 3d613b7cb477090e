//! What clients and supervisor say to each other over the control socket: one JSON object a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{events::Event, pod::PodStatus, tap::FlowReport};

/// A request. One connection carries one request, but for [`Request::Tap`], which lasts until the client closes it for writing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Everything there is.
    Status,
    /// Events from now on, until the client closes.
    Follow,
    /// Runs a program in a container, with the three open files sent along.
    Exec(Exec),
    /// Looks at a pod's link until the client stops writing.
    Tap {
        /// `NAMESPACE/POD`, or what [`crate::supervisor::cluster::Cluster::find`] takes.
        pod: String,
    },
    /// The packet rules of a pod's network namespace.
    Rules {
        /// As for [`Request::Tap`].
        pod: String,
    },
    /// Ends the sandbox.
    Stop,
}

/// A program to run in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    /// The pod: `NAME`, `NAMESPACE/NAME` or `deploy/NAME`.
    pub pod: String,
    /// The container; without one the pod's first.
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Follow`], many times.
    Event(Event),
    /// The program ended with this exit code.
    Exited(i32),
    /// The tap is in place.
    Tapping {
        /// The interface it is on.
        interface: String,
    },
    /// What the tap saw.
    Flows(Vec<FlowReport>),
    /// The rules, as `nft list ruleset` writes them; empty where there is none.
    Rules(String),
    /// Done.
    Done,
    /// It can not be.
    Error(String),
}

/// Everything there is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Name of the sandbox.
    pub name: String,
    /// The user's manifests.
    pub manifests: String,
    /// Process id of the supervisor, on the machine.
    pub pid: u32,
    /// Pods by `NAMESPACE/NAME`.
    pub pods: BTreeMap<String, PodView>,
    /// Services by `NAMESPACE/NAME`.
    pub services: BTreeMap<String, ServiceView>,
    /// Deployments by `NAMESPACE/NAME`: wanted, up to date, ready.
    pub deployments: BTreeMap<String, (usize, usize, usize)>,
    /// What happened, oldest first.
    pub events: Vec<Event>,
    /// Whether all that is wanted is there and ready.
    pub ready: bool,
}

/// A pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodView {
    /// What is known of it.
    pub status: PodStatus,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its Deployment.
    pub deployment: Option<String>,
}

/// A Service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceView {
    /// Address, or `None` (headless).
    pub address: String,
    /// Ports, as `name:port`.
    pub ports: Vec<String>,
    /// Number of ready endpoints.
    pub ready: usize,
    /// Number of all endpoints.
    pub all: usize,
}
