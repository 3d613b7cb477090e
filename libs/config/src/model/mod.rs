//! The one model: services, workloads, endpoints, routes and access rules, in no front end's words.
//!
//! Front ends (`crate::frontend`) write it, the control plane translates it. Everything in it has been checked.

mod access;
mod endpoint;
mod grant;
mod route;
mod said;
mod service;
mod shadow;
mod upstream;
mod workload;

pub use access::{
    AUTHORIZATION_POLICY_KIND, AccessAction, AccessRule, AuthorizationPolicy, FieldError, MtlsMode,
    PEER_AUTHENTICATION_KIND, PeerAuthentication, Selection, Term, Test, TextMatch,
};
pub use endpoint::{Condition, Endpoint, EndpointPort, EndpointSet};
pub use grant::Grant;
pub use route::{
    Backend, ComparedPath, Cors, HeaderChange, HeaderOp, Level, Matcher, Mirror, NamedMatcher, Origin, PathChange,
    PathMatcher, Redirect, Retry, Route, RouteParent, RouteRule, RouteSet, Rules, Session, SessionBy, StreamRoute,
    StreamRule, Target, in_precedence, streams_in_precedence,
};
pub use said::Said;
pub use service::{Addressing, HttpVersion, Protocol, Service, ServicePort, TargetPort};
pub use shadow::shadows;
pub use upstream::{
    Abort, AbortWith, Balance, CheckBy, Delay, HashKey, HashTable, HealthCheck, Outliers, Places, PolicySet, Rate,
    RequestPolicy, RequestRules, RequestsOf, RetryBudget, ServicePolicy, UpstreamRules, WarmUp,
};
pub use workload::{Workload, WorkloadPort};

use std::{fmt, sync::Arc};

/// Namespace and name. Cheap to clone. Shown as `shop/catalog`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Name {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
