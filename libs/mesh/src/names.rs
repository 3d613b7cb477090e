//! Labels, annotations, files and container names that two parts must agree on.

/// Namespace label (`enabled`), and pod label that overrides it (`true` or `false`).
pub const INJECT_LABEL: &str = "weir.dev/inject";
/// Value of [`INJECT_LABEL`] on a namespace.
pub const INJECT_ENABLED: &str = "enabled";
/// Annotation written by the webhook: [`crate::CaptureSettings`] as JSON, read by the CNI plugin.
pub const CAPTURE_ANNOTATION: &str = "weir.dev/capture";
/// Annotation written by the webhook for people: what was injected. Never believed.
pub const STATUS_ANNOTATION: &str = "weir.dev/status";
/// Prefix of every annotation that a user may set.
pub const PREFIX: &str = "weir.dev/";

/// Name of the injected proxy container.
pub const PROXY_CONTAINER: &str = "weir-proxy";
/// Name of the injected init container where no CNI plugin is installed.
pub const INIT_CONTAINER: &str = "weir-init";
/// Name of the volume with the projected token.
pub const TOKEN_VOLUME: &str = "weir-token";
/// Name of the volume with the mesh's root certificates.
pub const ROOT_VOLUME: &str = "weir-root";
/// Folder of the token in the proxy container.
pub const TOKEN_DIR: &str = "/var/run/secrets/weir.dev/token";
/// Folder of the root certificates in the proxy container.
pub const ROOT_DIR: &str = "/var/run/secrets/weir.dev/root";
/// File name of the token in [`TOKEN_DIR`].
pub const TOKEN_FILE: &str = "token";
/// File name of the root certificates in [`ROOT_DIR`], and key of the ConfigMap [`ROOT_CONFIG_MAP`].
pub const ROOT_FILE: &str = "root-cert.pem";
/// ConfigMap that holds the root certificates in every mesh namespace.
pub const ROOT_CONFIG_MAP: &str = "weir-root";
/// Audience of the token that a proxy shows to the control plane.
pub const TOKEN_AUDIENCE: &str = "weir-control";
/// Namespace that Weir itself runs in, unless its installer chose another.
pub const SYSTEM_NAMESPACE: &str = "weir-system";
/// Name of the control plane's Service.
pub const CONTROL_SERVICE: &str = "weir-control";
/// Name of the webhook's Service.
pub const WEBHOOK_SERVICE: &str = "weir-webhook";

/// Key of the pod's annotations in the CNI runtime configuration (containerd 1.5 and later, CRI-O).
pub const CNI_ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Source address of the proxy's own calls to its application (IPv4).
pub const APP_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 6);
/// Source address of the proxy's own calls to its application (IPv6), added to `lo` with the redirect.
pub const APP_SOURCE_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
