//! Envoy's v3 types, re-exported once: no other crate of Weir depends on `envoy-types` itself.

use envoy_types::pb::envoy;

pub use envoy::{
    config::{
        cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint, listener::v3 as listener, rbac::v3 as rbac,
        route::v3 as route,
    },
    extensions::filters::{
        listener::http_inspector::v3 as http_inspector,
        network::{http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, tcp_proxy::v3 as tcp_proxy},
    },
    extensions::upstreams::http::v3 as upstream_http,
    r#type::matcher::v3 as matcher,
};
/// Google's well-known types.
pub use envoy_types::pb::google::protobuf;

/// Type URL of the HTTP connection manager in a filter's `typed_config`.
pub const HCM_TYPE_URL: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// Type URL of the TCP proxy in a filter's `typed_config`.
pub const TCP_PROXY_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
/// Type URL of the HTTP inspector in a listener filter's `typed_config`.
pub const HTTP_INSPECTOR_TYPE_URL: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
/// Type URL of the HTTP router in an HTTP filter's `typed_config`.
pub const ROUTER_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
/// Name of the HTTP inspector in `listener_filters`.
pub const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";
/// Name of the HTTP connection manager in `filters`.
pub const HCM: &str = "envoy.filters.network.http_connection_manager";
/// Name of the TCP proxy in `filters`.
pub const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
/// Name of the HTTP router in `http_filters`.
pub const ROUTER: &str = "envoy.filters.http.router";
/// Type URL of the network RBAC filter in a filter's `typed_config`.
pub const NETWORK_RBAC_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
/// Name of the network RBAC filter in `filters`.
pub const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
/// Key of the HTTP options in a cluster's `typed_extension_protocol_options`.
pub const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Their type URL.
pub const HTTP_OPTIONS_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Key of the filter state that is the namespace in the caller's identity. Not Envoy's: only our proxy has it.
pub const PEER_NAMESPACE: &str = "weir.dev/peer-namespace";
