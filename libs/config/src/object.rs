//! The kinds that are read, and the names of objects.

use std::fmt;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    frontend::{gateway, policy},
    gateway::{GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute},
    istio::DestinationRule,
    model::RouteSet,
    path::{FieldPath, Printable},
    security::{AuthorizationPolicy, PeerAuthentication},
    traffic::TrafficPolicy,
};

/// Kind, namespace and name of an object. Shown as `HTTPRoute shop/catalog`; cluster-wide kinds without a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Kind, as it was written.
    pub kind: String,
    /// Namespace; empty for kinds without one.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", Printable(&self.kind))?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", Printable(&self.namespace))?;
        }
        if self.name.is_empty() { f.write_str("(no name)") } else { write!(f, "{}", Printable(&self.name)) }
    }
}

/// Declares [`Object`] and what each kind is called, from one list.
macro_rules! objects {
    ($($variant:ident($type:ty) = $api:literal, $kind:literal, $scope:ident;)*) => {
        /// A typed object of a manifest.
        #[derive(Debug, Clone)]
        pub enum Object {
            $(#[doc = concat!("`", $kind, "` of `", $api, "`")] $variant(Box<$type>),)*
        }

        /// `apiVersion`, `kind` and whether it lives in a namespace, of every kind that is read.
        pub const KINDS: &[(&str, &str, bool)] = &[$(($api, $kind, objects!(@$scope)),)*];

        impl Object {
            /// The kind's name.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            /// Name, namespace, labels and the rest of the metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$variant(object) => &object.metadata,)* }
            }

            /// Name, namespace, labels and the rest of the metadata.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$variant(object) => &mut object.metadata,)* }
            }

            /// True where the kind lives in a namespace.
            pub fn is_namespaced(&self) -> bool {
                match self { $(Self::$variant(_) => objects!(@$scope),)* }
            }

            pub(crate) fn read(
                api: &str,
                kind: &str,
                value: &serde_json::Value,
            ) -> Option<crate::manifest::Reading<Self>> {
                match (api, kind) {
                    $(($api, $kind) => Some(
                        crate::manifest::read_as::<$type>(value).map(|object| Self::$variant(Box::new(object)))
                    ),)*
                    _ => None,
                }
            }
        }

        $(impl From<$type> for Object {
            fn from(object: $type) -> Self {
                Self::$variant(Box::new(object))
            }
        })*
    };
    (@namespaced) => { true };
    (@cluster) => { false };
}

objects! {
    Namespace(Namespace) = "v1", "Namespace", cluster;
    Node(Node) = "v1", "Node", cluster;
    ServiceAccount(ServiceAccount) = "v1", "ServiceAccount", namespaced;
    Service(Service) = "v1", "Service", namespaced;
    Pod(Pod) = "v1", "Pod", namespaced;
    ConfigMap(ConfigMap) = "v1", "ConfigMap", namespaced;
    EndpointSlice(EndpointSlice) = "discovery.k8s.io/v1", "EndpointSlice", namespaced;
    Deployment(Deployment) = "apps/v1", "Deployment", namespaced;
    StatefulSet(StatefulSet) = "apps/v1", "StatefulSet", namespaced;
    HttpRoute(HttpRoute) = "gateway.networking.k8s.io/v1", "HTTPRoute", namespaced;
    GrpcRoute(GrpcRoute) = "gateway.networking.k8s.io/v1", "GRPCRoute", namespaced;
    TlsRoute(TlsRoute) = "gateway.networking.k8s.io/v1", "TLSRoute", namespaced;
    TcpRoute(TcpRoute) = "gateway.networking.k8s.io/v1", "TCPRoute", namespaced;
    DestinationRule(DestinationRule) = "networking.istio.io/v1", "DestinationRule", namespaced;
    TrafficPolicy(TrafficPolicy) = "weir.dev/v1alpha1", "TrafficPolicy", namespaced;
    ReferenceGrant(ReferenceGrant) = "gateway.networking.k8s.io/v1", "ReferenceGrant", namespaced;
    PeerAuthentication(PeerAuthentication) = "security.istio.io/v1", "PeerAuthentication", namespaced;
    AuthorizationPolicy(AuthorizationPolicy) = "security.istio.io/v1", "AuthorizationPolicy", namespaced;
}

impl Object {
    /// Kind, namespace and name.
    pub fn reference(&self) -> ObjectRef {
        let metadata = self.metadata();
        ObjectRef {
            kind: self.kind().to_owned(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The rules of a route, or what is wrong with it; `None` for kinds that are no routes.
    pub fn route(&self) -> Option<Result<RouteSet, Vec<(FieldPath, String)>>> {
        Some(match self {
            Self::HttpRoute(route) => gateway::http_route(route),
            Self::GrpcRoute(route) => gateway::grpc_route(route),
            Self::TlsRoute(route) => gateway::tls_route(route),
            Self::TcpRoute(route) => gateway::tcp_route(route),
            _ => return None,
        })
    }

    /// What a policy says, or what is wrong with it; `None` for kinds that are no policies for traffic.
    pub fn policy(&self) -> Option<policy::Read> {
        Some(match self {
            Self::DestinationRule(object) => policy::destination_rule(object),
            Self::TrafficPolicy(object) => policy::traffic_policy(object),
            _ => return None,
        })
    }

    /// Marks an access rule that can not be accepted, which is closed from then on. False for all other kinds.
    pub(crate) fn close(&mut self, why: &[(FieldPath, String)]) -> bool {
        let wrong = match self {
            Self::PeerAuthentication(object) => &mut object.wrong,
            Self::AuthorizationPolicy(object) => &mut object.wrong,
            _ => return false,
        };
        wrong.extend_from_slice(why);
        true
    }
}
