//! Where objects come from. A source reads, checks and trims; it keeps no history and knows nothing of proxies.

pub mod directory;

use std::{fmt, future::Future};

use k8s_openapi::api::core::v1 as core;
use tokio::sync::mpsc;
use weir_config::{
    Object, Problem, frontend,
    model::{
        AuthorizationPolicy, EndpointSet, Grant, Name, PeerAuthentication, PolicySet, RouteSet, Service, Workload,
    },
};
use weir_mesh::names::{INJECT_ENABLED, INJECT_LABEL};

/// Batches that wait to be taken up; a source that is faster is held back.
pub const BACKLOG: usize = 4;

/// A stream of objects. A Kubernetes source gives the objects of its first list, then `Synced`, then changes; after a lost
/// watch it gives what differs.
pub trait Source: Send + 'static {
    /// Sends batches until the receiver is gone.
    fn run(self, batches: mpsc::Sender<Batch>) -> impl Future<Output = ()> + Send;
}

/// Changes that belong together: they take effect at once.
pub type Batch = Vec<Change>;

/// One change.
#[derive(Debug, Clone)]
pub enum Change {
    /// An object is new or has changed.
    Apply(Item),
    /// An object is gone.
    Delete(ItemRef),
    /// Everything that was there at the start has been told.
    Synced,
    /// What was there at the start can not be told whole before this is mended or removed, one line each; comes before `Synced`
    /// only, and replaces what was told so before.
    Held(Vec<String>),
    /// What is wrong at one place (such as a file) now; an empty list once it is mended.
    Problems(String, Vec<Problem>),
}

/// An object, trimmed to what the mesh looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A service.
    Service(Service),
    /// A pod.
    Workload(Box<Workload>),
    /// Endpoints of a service.
    Endpoints(EndpointSet),
    /// Rules for requests or streams.
    Routes(RouteSet),
    /// What a namespace lets others refer to.
    Grant(Grant),
    /// How services are called, and what is done to requests besides rules.
    Traffic(PolicySet),
    /// A namespace.
    Namespace(Namespace),
    /// A machine.
    Node(Node),
    /// Which ports accept plaintext.
    PeerAuthentication(PeerAuthentication),
    /// Who may call.
    AuthorizationPolicy(AuthorizationPolicy),
}

/// A namespace, as far as the mesh looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name, in no namespace.
    pub name: Name,
    /// Its pods get our proxy.
    pub injected: bool,
}

/// A machine, as far as the mesh looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, in no namespace.
    pub name: Name,
    /// Where it stands.
    pub locality: Locality,
}

/// Where a machine stands (labels `topology.kubernetes.io/region` and `zone`); empty where it is not said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone in the region.
    pub zone: String,
}

impl From<&core::Namespace> for Namespace {
    fn from(object: &core::Namespace) -> Self {
        let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(INJECT_LABEL));
        Self {
            name: Name::new("", object.metadata.name.as_deref().unwrap_or_default()),
            injected: label.is_some_and(|label| label == INJECT_ENABLED),
        }
    }
}

impl From<&core::Node> for Node {
    fn from(object: &core::Node) -> Self {
        let labels = object.metadata.labels.as_ref();
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).cloned().unwrap_or_default();
        Self {
            name: Name::new("", object.metadata.name.as_deref().unwrap_or_default()),
            locality: Locality {
                region: label("topology.kubernetes.io/region"),
                zone: label("topology.kubernetes.io/zone"),
            },
        }
    }
}

/// Names an [`Item`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemRef {
    /// Which kind.
    pub kind: ItemKind,
    /// Namespace and name.
    pub name: Name,
}

impl fmt::Display for ItemRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ItemKind::Routes(kind) | ItemKind::Traffic(kind) => write!(f, "{kind} {}", self.name),
            kind => write!(f, "{kind:?} {}", self.name),
        }
    }
}

/// Kinds of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ItemKind {
    /// A service.
    Service,
    /// A pod.
    Workload,
    /// Endpoints of a service.
    Endpoints,
    /// Rules for requests or streams, of objects of this kind.
    Routes(&'static str),
    /// What a namespace lets others refer to.
    Grant,
    /// Policies for traffic, of objects of this kind.
    Traffic(&'static str),
    /// A namespace.
    Namespace,
    /// A machine.
    Node,
    /// Which ports accept plaintext.
    PeerAuthentication,
    /// Who may call.
    AuthorizationPolicy,
}

impl Item {
    /// Trims a typed object; `None` for kinds that the mesh does not look at.
    pub fn of(object: &Object) -> Option<Self> {
        match object {
            Object::Service(service) => Some(Self::Service(frontend::kubernetes::service(service))),
            Object::Pod(pod) => Some(Self::Workload(frontend::kubernetes::workload(pod).into())),
            Object::EndpointSlice(slice) => frontend::kubernetes::endpoints(slice).map(Self::Endpoints),
            Object::ReferenceGrant(grant) => Some(Self::Grant(frontend::gateway::reference_grant(grant))),
            Object::Namespace(namespace) => Some(Self::Namespace(namespace.as_ref().into())),
            Object::Node(node) => Some(Self::Node(node.as_ref().into())),
            Object::PeerAuthentication(object) => {
                Some(Self::PeerAuthentication(frontend::security::peer_authentication(object)))
            }
            Object::AuthorizationPolicy(object) => {
                Some(Self::AuthorizationPolicy(frontend::security::authorization_policy(object)))
            }
            other => match other.route() {
                Some(route) => route.ok().map(Self::Routes),
                None => other.policy()?.ok().map(Self::Traffic),
            },
        }
    }

    /// Kind and name.
    pub fn reference(&self) -> ItemRef {
        let (kind, name) = match self {
            Self::Service(service) => (ItemKind::Service, &service.name),
            Self::Workload(workload) => (ItemKind::Workload, &workload.name),
            Self::Endpoints(set) => (ItemKind::Endpoints, &set.name),
            Self::Routes(set) => (ItemKind::Routes(set.origin.kind), &set.origin.name),
            Self::Grant(grant) => (ItemKind::Grant, &grant.origin.name),
            Self::Traffic(set) => (ItemKind::Traffic(set.origin.kind), &set.origin.name),
            Self::Namespace(namespace) => (ItemKind::Namespace, &namespace.name),
            Self::Node(node) => (ItemKind::Node, &node.name),
            Self::PeerAuthentication(policy) => (ItemKind::PeerAuthentication, &policy.name),
            Self::AuthorizationPolicy(policy) => (ItemKind::AuthorizationPolicy, &policy.name),
        };
        ItemRef { kind, name: name.clone() }
    }
}
