//! The HTTP endpoints for people, Prometheus and the kubelet. They run on the control thread and never touch the data path.
//!
//! | port | where | what |
//! | --- | --- | --- |
//! | 15000 | loopback | admin: configuration, certificates, log level |
//! | 15020 | everywhere | metrics merged with the application's, and its rewritten probes |
//! | 15021 | everywhere | readiness |
//! | 15090 | everywhere | the proxy's own metrics |
//!
//! There is no endpoint that stops the proxy, and none that can show a secret: what they show is made of public facts only.

mod app_call;
mod app_metrics;
pub mod ask;
mod body;
mod client;
mod local;
mod open;
pub mod readiness;
mod server;
pub mod wait;

use std::{fmt, net::IpAddr, sync::Arc};

use weir_mesh::probe::AppCalls;

pub use app_metrics::AppMetrics;
pub use readiness::Readiness;
pub use server::{Addresses, Bound, Servers};
pub use wait::wait;

use crate::{
    telemetry::{AccessLog, Registry, log::LogControl},
    tls::MeshTls,
};

/// Makes the configuration dump. It is given no secrets, so it can show none.
pub type ConfigDump = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the endpoints show and change.
pub struct Admin {
    /// Whether the proxy is ready.
    pub readiness: Readiness,
    /// Metrics.
    pub registry: Arc<Registry>,
    /// The certificate in use; only its public facts are shown.
    pub tls: MeshTls,
    /// The configuration in use.
    pub config_dump: ConfigDump,
    /// The proxy's own log.
    pub log: LogControl,
    /// The access log, where there is one.
    pub access_log: Option<AccessLog>,
    /// The application beside the proxy.
    pub app: App,
}

/// The application beside the proxy.
#[derive(Debug, Clone, Default)]
pub struct App {
    /// The pod's addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Probes and hooks to perform.
    pub calls: AppCalls,
    /// Metrics to merge.
    pub metrics: Option<AppMetrics>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("readiness", &self.readiness).field("app", &self.app).finish_non_exhaustive()
    }
}
