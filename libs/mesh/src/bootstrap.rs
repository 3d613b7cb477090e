//! What the webhook tells the proxy by environment, and its defaults.

/// Names of the environment variables.
pub mod env {
    /// Pod name.
    pub const POD_NAME: &str = "WEIR_POD_NAME";
    /// Pod namespace.
    pub const POD_NAMESPACE: &str = "WEIR_POD_NAMESPACE";
    /// Pod uid.
    pub const POD_UID: &str = "WEIR_POD_UID";
    /// All addresses of the pod, comma-separated.
    pub const POD_IPS: &str = "WEIR_POD_IPS";
    /// Service account of the pod.
    pub const SERVICE_ACCOUNT: &str = "WEIR_SERVICE_ACCOUNT";
    /// Trust domain of the mesh.
    pub const TRUST_DOMAIN: &str = "WEIR_TRUST_DOMAIN";
    /// `HOST:PORT` of the control plane.
    pub const CONTROL: &str = "WEIR_CONTROL";
    /// Name in the control plane's certificate, where it differs from the host of [`CONTROL`].
    pub const CONTROL_NAME: &str = "WEIR_CONTROL_NAME";
    /// Service and pod ranges of the mesh, comma-separated CIDRs.
    pub const MESH_CIDRS: &str = "WEIR_MESH_CIDRS";
    /// Ports (of the pod and of destinations) that are never looked into, comma-separated.
    pub const OPAQUE_PORTS: &str = "WEIR_OPAQUE_PORTS";
    /// JSON of [`crate::probe::AppCalls`].
    pub const PROBES: &str = "WEIR_PROBES";
    /// JSON of [`crate::CaptureSettings`], for the check of the redirect.
    pub const CAPTURE: &str = "WEIR_CAPTURE";
    /// Application's own metrics to merge: `PORT/PATH`.
    pub const APP_METRICS: &str = "WEIR_APP_METRICS";
    /// Seconds that open connections get at shutdown.
    pub const DRAIN_SECONDS: &str = "WEIR_DRAIN_SECONDS";
    /// Log filter, such as `info` or `weir_proxy=debug`.
    pub const LOG: &str = "WEIR_LOG";
    /// What of the requests is logged: `off`, `errors` (the default), `all`, or `sample:N`.
    pub const ACCESS_LOG: &str = "WEIR_ACCESS_LOG";
    /// Number of workers.
    pub const WORKERS: &str = "WEIR_WORKERS";
}

/// Trust domain where none is given.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Seconds that open connections get at shutdown where none is given.
pub const DEFAULT_DRAIN_SECONDS: u32 = 25;
