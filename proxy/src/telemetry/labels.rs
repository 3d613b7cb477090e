//! Label sets of Istio's standard metrics: who called whom, for which service, and how it ended.

use std::{
    fmt::Write,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use weir_mesh::Identity;

use super::flags::ResponseFlags;

const UNKNOWN: &str = "unknown";
/// Stands for every value behind the bound of label sets.
pub(super) const OTHER: &str = "other";
/// Longest label value, in bytes. Names of Kubernetes objects are shorter; anything longer comes from outside.
const MAX_VALUE: usize = 512;

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod is called; `reporter="destination"`.
    Inbound,
    /// The pod calls; `reporter="source"`.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    const fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }
}

/// What was spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2.
    Http,
    /// gRPC, told by its content type.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

impl Protocol {
    /// `http`, `grpc` or `tcp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// How the connection was protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// Mutual TLS, both identities checked.
    MutualTls,
    /// Plaintext, or TLS that belongs to the application.
    None,
    /// There was no connection.
    Unknown,
}

impl SecurityPolicy {
    /// Value of `connection_security_policy`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Unknown => UNKNOWN,
        }
    }
}

/// What is known of a workload; empty where it is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PeerFields {
    /// Name of the controller (Deployment, ...), not of the pod.
    pub workload: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Label `app`, as it is.
    pub app: String,
    /// Label `version`, as it is.
    pub version: String,
    /// Canonical service name.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Cluster id.
    pub cluster: String,
    /// Identity; written only for connections on which it was checked.
    pub principal: Option<Identity>,
}

impl PeerFields {
    /// Reads `WORKLOAD;NAMESPACE;CANONICAL-NAME;CANONICAL-REVISION;CLUSTER-ID`, as endpoint metadata has it. What is missing
    /// stays empty.
    pub fn from_workload_metadata(text: &str) -> Self {
        let mut parts = text.splitn(5, ';').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self {
            workload: next(),
            namespace: next(),
            canonical_service: next(),
            canonical_revision: next(),
            cluster: next(),
            ..Self::default()
        }
    }
}

/// A workload in labels: made once (for a pod, an endpoint, a peer address), then shared.
#[derive(Debug)]
pub struct Peer {
    id: u64,
    fields: PeerFields,
}

impl Peer {
    /// With a process-wide unique id, by which [`super::SeriesCache`] knows it: make one for each workload, not for each request.
    pub fn new(fields: PeerFields) -> Arc<Self> {
        Arc::new(Self { id: next_id(), fields })
    }

    /// Nothing is known: a caller outside the mesh, or no endpoint was reached.
    pub fn unknown() -> Arc<Self> {
        static UNKNOWN: LazyLock<Arc<Peer>> = LazyLock::new(|| Peer::new(PeerFields::default()));
        UNKNOWN.clone()
    }

    /// Only the identity is known: the namespace is taken from it.
    pub fn from_identity(identity: &Identity) -> Arc<Self> {
        Self::new(PeerFields {
            namespace: identity.namespace().to_owned(),
            principal: Some(identity.clone()),
            ..PeerFields::default()
        })
    }

    pub(super) fn other() -> Arc<Self> {
        static OTHERS: LazyLock<Arc<Peer>> = LazyLock::new(|| {
            let other = || OTHER.to_owned();
            Peer::new(PeerFields {
                workload: other(),
                namespace: other(),
                app: other(),
                version: other(),
                canonical_service: other(),
                canonical_revision: other(),
                cluster: other(),
                principal: None,
            })
        });
        OTHERS.clone()
    }

    /// What is known.
    pub fn fields(&self) -> &PeerFields {
        &self.fields
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

/// A Service in labels: made once, then shared.
#[derive(Debug)]
pub struct Service {
    id: u64,
    host: String,
    name: String,
    namespace: String,
}

impl Service {
    /// `host` is the full DNS name. As for [`Peer::new`], make one for each service.
    pub fn new(host: impl Into<String>, name: impl Into<String>, namespace: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { id: next_id(), host: host.into(), name: name.into(), namespace: namespace.into() })
    }

    /// A destination outside the mesh, passed through. One value for all of them: addresses and names are unbounded.
    pub fn passthrough() -> Arc<Self> {
        static SERVICE: LazyLock<Arc<Service>> = LazyLock::new(|| Service::new("", "PassthroughCluster", ""));
        SERVICE.clone()
    }

    /// A destination that was refused.
    pub fn black_hole() -> Arc<Self> {
        static SERVICE: LazyLock<Arc<Service>> = LazyLock::new(|| Service::new("", "BlackHoleCluster", ""));
        SERVICE.clone()
    }

    /// A port of this pod that no Service has.
    pub fn inbound_passthrough() -> Arc<Self> {
        static SERVICE: LazyLock<Arc<Service>> = LazyLock::new(|| Service::new("", "InboundPassthroughCluster", ""));
        SERVICE.clone()
    }

    pub(super) fn other() -> Arc<Self> {
        static SERVICE: LazyLock<Arc<Service>> = LazyLock::new(|| Service::new(OTHER, OTHER, OTHER));
        SERVICE.clone()
    }

    /// Full DNS name.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

/// One label set of the request metrics.
#[derive(Debug, Clone, Copy)]
pub struct HttpLabels<'a> {
    /// Which way.
    pub direction: Direction,
    /// The other end.
    pub peer: &'a Peer,
    /// The service that was called.
    pub service: &'a Service,
    /// [`Protocol::Http`] or [`Protocol::Grpc`].
    pub protocol: Protocol,
    /// Status code; 0 where no answer was sent.
    pub code: u16,
    /// gRPC status, 0 to 16, where it is gRPC.
    pub grpc_status: Option<u8>,
    /// Flags.
    pub flags: ResponseFlags,
    /// Protection of the connection to the other end.
    pub security: SecurityPolicy,
}

/// One label set of the connection metrics. Pick it once for a connection and count its start and end with the same set.
#[derive(Debug, Clone, Copy)]
pub struct TcpLabels<'a> {
    /// Which way.
    pub direction: Direction,
    /// The other end.
    pub peer: &'a Peer,
    /// The service that was called.
    pub service: &'a Service,
    /// Flags.
    pub flags: ResponseFlags,
    /// Protection of the connection to the other end.
    pub security: SecurityPolicy,
}

/// One label set of the route metrics: declared routes only, never paths.
#[derive(Debug, Clone, Copy)]
pub struct RouteLabels<'a> {
    /// Which way.
    pub direction: Direction,
    /// The service that was called.
    pub service: &'a Service,
    /// Name of the route, such as `HTTPRoute/shop/catalog/0/0` or `default`.
    pub route: &'a str,
}

/// What the `other` label set still tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    Full,
    Other,
}

impl HttpLabels<'_> {
    pub(super) fn render(&self, own: &Peer, detail: Detail) -> String {
        let mut text = String::with_capacity(1024);
        ends(&mut text, self.direction, own, self.peer, self.service, self.security);
        label(&mut text, "request_protocol", self.protocol.as_str());
        match detail {
            Detail::Full => {
                let _ = write!(text, "response_code=\"{}\",", self.code);
                match self.grpc_status {
                    Some(status) => {
                        let _ = write!(text, "grpc_response_status=\"{status}\",");
                    }
                    None => label(&mut text, "grpc_response_status", ""),
                }
                let _ = write!(text, "response_flags=\"{}\",", self.flags);
            }
            Detail::Other => {
                label(&mut text, "response_code", OTHER);
                label(&mut text, "grpc_response_status", "");
                label(&mut text, "response_flags", OTHER);
            }
        }
        label(&mut text, "connection_security_policy", self.security.as_str());
        text.pop();
        text
    }

    pub(super) fn others<'a>(&self, peer: &'a Peer, service: &'a Service) -> HttpLabels<'a> {
        HttpLabels {
            direction: self.direction,
            peer,
            service,
            protocol: self.protocol,
            code: 0,
            grpc_status: None,
            flags: ResponseFlags::NONE,
            security: SecurityPolicy::Unknown,
        }
    }
}

impl TcpLabels<'_> {
    pub(super) fn render(&self, own: &Peer, detail: Detail) -> String {
        let mut text = String::with_capacity(1024);
        ends(&mut text, self.direction, own, self.peer, self.service, self.security);
        label(&mut text, "request_protocol", Protocol::Tcp.as_str());
        match detail {
            Detail::Full => {
                let _ = write!(text, "response_flags=\"{}\",", self.flags);
            }
            Detail::Other => label(&mut text, "response_flags", OTHER),
        }
        label(&mut text, "connection_security_policy", self.security.as_str());
        text.pop();
        text
    }

    pub(super) fn others<'a>(&self, peer: &'a Peer, service: &'a Service) -> TcpLabels<'a> {
        TcpLabels {
            direction: self.direction,
            peer,
            service,
            flags: ResponseFlags::NONE,
            security: SecurityPolicy::Unknown,
        }
    }
}

impl RouteLabels<'_> {
    pub(super) fn render(&self) -> String {
        let mut text = String::with_capacity(256);
        label(&mut text, "direction", self.direction.as_str());
        label(&mut text, "destination_service", or_unknown(&self.service.host));
        label(&mut text, "destination_service_namespace", or_unknown(&self.service.namespace));
        label(&mut text, "route", self.route);
        text.pop();
        text
    }
}

/// The labels that say who called whom, in the order in which Istio writes them.
fn ends(text: &mut String, direction: Direction, own: &Peer, peer: &Peer, service: &Service, security: SecurityPolicy) {
    let (source, destination) = match direction {
        Direction::Inbound => (&peer.fields, &own.fields),
        Direction::Outbound => (&own.fields, &peer.fields),
    };
    let principal = |fields: &PeerFields| match (&fields.principal, security) {
        (Some(identity), SecurityPolicy::MutualTls) => identity.uri().to_owned(),
        _ => UNKNOWN.to_owned(),
    };
    // A failure that reached no endpoint is still one of its service's namespace.
    let service_namespace = match (service.namespace.as_str(), direction) {
        ("", Direction::Inbound) => own.fields.namespace.as_str(),
        (namespace, _) => namespace,
    };
    let (host, name) = match (service.host.as_str(), direction) {
        ("", Direction::Inbound) => (own.fields.canonical_service.as_str(), service.name.as_str()),
        (host, _) => (host, service.name.as_str()),
    };
    label(text, "reporter", direction.reporter());
    label(text, "source_workload", or_unknown(&source.workload));
    label(text, "source_canonical_service", or_unknown(&source.canonical_service));
    label(text, "source_canonical_revision", or(&source.canonical_revision, "latest"));
    label(text, "source_workload_namespace", or_unknown(&source.namespace));
    label(text, "source_principal", &principal(source));
    label(text, "source_app", or_unknown(&source.app));
    label(text, "source_version", or_unknown(&source.version));
    label(text, "source_cluster", or_unknown(&source.cluster));
    label(text, "destination_workload", or_unknown(&destination.workload));
    label(text, "destination_workload_namespace", or_unknown(&destination.namespace));
    label(text, "destination_principal", &principal(destination));
    label(text, "destination_app", or_unknown(&destination.app));
    label(text, "destination_version", or_unknown(&destination.version));
    label(text, "destination_service", or_unknown(host));
    label(text, "destination_canonical_service", or_unknown(&destination.canonical_service));
    label(text, "destination_canonical_revision", or(&destination.canonical_revision, "latest"));
    label(text, "destination_service_name", or_unknown(name));
    label(text, "destination_service_namespace", or_unknown(service_namespace));
    label(text, "destination_cluster", or_unknown(&destination.cluster));
}

fn or_unknown(value: &str) -> &str {
    or(value, UNKNOWN)
}

fn or<'a>(value: &'a str, fallback: &'a str) -> &'a str {
    if value.is_empty() { fallback } else { value }
}

/// Appends `name="value",` with the value escaped (Prometheus text format 0.0.4) and cut at [`MAX_VALUE`].
pub(super) fn label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    let mut left = MAX_VALUE;
    for c in value.chars() {
        let Some(rest) = left.checked_sub(c.len_utf8()) else { break };
        left = rest;
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text.push_str("\",");
}
