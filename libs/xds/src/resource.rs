//! Kinds of resources, and one encoded resource.

use bytes::Bytes;

/// Cluster that stands in a rule for a backend that does not exist: a proxy answers the share of it with 500 (Gateway API),
/// and never asks for it.
pub const BAD_BACKEND_CLUSTER: &str = "weir/bad-backend";

/// The kinds of resources that a proxy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoints,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
}

impl Kind {
    /// All kinds, in the order in which changes are sent: what others refer to comes first, so that a proxy never has a route
    /// to a cluster that it could not know yet.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];

    /// The protobuf type's URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind of a type's URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Short name, as in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Route => "route",
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Cluster => 0,
            Self::Endpoints => 1,
            Self::Listener => 2,
            Self::Route => 3,
        }
    }
}

/// One encoded resource. Cheap to clone but for its two names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Name.
    pub name: String,
    /// Hash of the content: equal on every replica for equal content.
    pub version: String,
    /// The encoded message (the value of the `Any`).
    pub body: Bytes,
}
