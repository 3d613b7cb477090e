//! Gateway API's kinds (`gateway.networking.k8s.io/v1`). Their fields are [generated] from the API's own definitions; which of them
//! are understood, [`crate::frontend::gateway`] knows.
//!
//! A kind is read with all the fields that the API has, and no other: what can not be done is refused by name, never ignored.

#[rustfmt::skip]
pub mod generated;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use generated::{GrpcRouteSpec, HttpRouteSpec, ReferenceGrantSpec, TcpRouteSpec, TlsRouteSpec};

/// Group of the API.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The version that is read.
pub const API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// An earlier version, with the same fields, of [`EARLIER_KINDS`].
pub const EARLIER_API_VERSION: &str = "gateway.networking.k8s.io/v1beta1";
/// Kinds that are written in the earlier version as well.
pub const EARLIER_KINDS: [&str; 2] = ["HTTPRoute", "ReferenceGrant"];

/// Declares the kinds, which differ in their `spec`.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($spec:ident) = $name:ident, $text:literal;)*) => {
        $(
        #[doc = concat!("Name of the kind `", $text, "`.")]
        pub const $name: &str = $text;

        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            /// Group and version of the API.
            pub api_version: String,
            /// The kind's name.
            pub kind: String,
            /// Name, namespace and the rest.
            pub metadata: ObjectMeta,
            /// What is wanted.
            pub spec: $spec,
            /// Written by controllers; not read.
            #[serde(default)]
            pub status: Option<serde_json::Value>,
        })*
    };
}

kinds! {
    /// Rules for requests of HTTP.
    HttpRoute(HttpRouteSpec) = HTTP_ROUTE, "HTTPRoute";
    /// Rules for calls of gRPC.
    GrpcRoute(GrpcRouteSpec) = GRPC_ROUTE, "GRPCRoute";
    /// Where streams of TLS go, by the server's name.
    TlsRoute(TlsRouteSpec) = TLS_ROUTE, "TLSRoute";
    /// Where streams go.
    TcpRoute(TcpRouteSpec) = TCP_ROUTE, "TCPRoute";
    /// Who may refer to what of a namespace.
    ReferenceGrant(ReferenceGrantSpec) = REFERENCE_GRANT, "ReferenceGrant";
}

/// A list that may be written as `null`, as Kubernetes allows.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
