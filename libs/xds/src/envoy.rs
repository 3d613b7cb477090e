//! Envoy's v3 types, re-exported once: no other crate of Weir depends on `envoy-types` itself.

use envoy_types::pb::envoy;

pub use envoy::{
    config::{
        cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint, listener::v3 as listener, rbac::v3 as rbac,
        route::v3 as route,
    },
    extensions::filters::{
        listener::{http_inspector::v3 as http_inspector, tls_inspector::v3 as tls_inspector},
        network::{http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, tcp_proxy::v3 as tcp_proxy},
    },
    extensions::{
        filters::{
            common::fault::v3 as common_fault,
            http::{
                buffer::v3 as buffer, cors::v3 as cors, fault::v3 as fault, local_ratelimit::v3 as local_ratelimit,
                stateful_session::v3 as stateful_session,
            },
        },
        http::stateful_session::{cookie::v3 as cookie_session, header::v3 as header_session},
        upstreams::http::v3 as upstream_http,
    },
    r#type::{http::v3 as http_kinds, matcher::v3 as matcher, v3 as kinds},
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
/// Name of the TLS inspector in `listener_filters`.
pub const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
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
/// Key of a route's rules for CORS in `typed_per_filter_config`; as of those below, the value is of [`type_url`] of a type.
pub const CORS: &str = "envoy.filters.http.cors";
/// Key of a route's injected faults.
pub const FAULT: &str = "envoy.filters.http.fault";
/// Key of a route's local rate limit.
pub const LOCAL_RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
/// Key of a route's largest request.
pub const BUFFER: &str = "envoy.filters.http.buffer";
/// Key of a route's sessions.
pub const STATEFUL_SESSION: &str = "envoy.filters.http.stateful_session";
/// Name of a session's state in a cookie.
pub const COOKIE_SESSION: &str = "envoy.http.stateful_session.cookie";
/// Name of a session's state in a header.
pub const HEADER_SESSION: &str = "envoy.http.stateful_session.header";

/// The type URL of a message.
pub fn type_url<M: prost::Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}

/// Key of the filter state that is the namespace in the caller's identity. Not Envoy's: only our proxy has it.
pub const PEER_NAMESPACE: &str = "weir.dev/peer-namespace";
