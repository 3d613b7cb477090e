//! An application's probes and lifecycle hooks, as the webhook hands them to the proxy.
//!
//! The kubelet's calls would arrive at the captured ports as plaintext of an unknown peer, so the webhook points them at the
//! proxy's port [`crate::ports::MERGED`] and describes the original call in the environment variable
//! [`crate::bootstrap::env::PROBES`], a JSON object: path -> [`AppCall`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Path -> original call, ordered by path.
pub type AppCalls = BTreeMap<String, AppCall>;

/// Path that stands for a container's probe or hook: `/app/CONTAINER/WHICH`.
pub fn path(container: &str, which: Which) -> String {
    format!("/app/{container}/{}", which.as_str())
}

/// Which call of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `livenessProbe`
    Liveness,
    /// `readinessProbe`
    Readiness,
    /// `startupProbe`
    Startup,
    /// `lifecycle.postStart`
    PostStart,
    /// `lifecycle.preStop`
    PreStop,
}

impl Which {
    /// The last segment of the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "livez",
            Self::Readiness => "readyz",
            Self::Startup => "startupz",
            Self::PostStart => "poststart",
            Self::PreStop => "prestop",
        }
    }
}

/// The call that the kubelet would have made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppCall {
    /// How long the call may take, in seconds.
    pub timeout_seconds: u32,
    /// What is called.
    #[serde(flatten)]
    pub action: Action,
}

/// What is called. Ports are numbers: the webhook has resolved names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// `httpGet`
    Http {
        /// Port.
        port: u16,
        /// Path and query.
        path: String,
        /// `https` instead of `http`; certificates are not checked, as the kubelet does not.
        #[serde(default)]
        tls: bool,
        /// Host to call instead of the pod's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Headers, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(String, String)>,
    },
    /// `tcpSocket`
    Tcp {
        /// Port.
        port: u16,
        /// Host to call instead of the pod's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// `grpc` health check
    Grpc {
        /// Port.
        port: u16,
        /// Service asked for; empty for the whole server.
        #[serde(default)]
        service: String,
    },
}
