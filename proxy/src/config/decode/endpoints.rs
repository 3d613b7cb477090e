//! Clusters and their endpoints.

use std::{net::SocketAddr, time::Duration};

use weir_mesh::Identity;
use weir_xds::envoy::{
    HTTP_OPTIONS, HTTP_OPTIONS_TYPE_URL,
    cluster::Cluster,
    core::{Metadata, address::Address, socket_address::PortSpecifier},
    endpoint::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier},
    protobuf::Any,
    upstream_http::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
    },
};
use weir_xds::prost::Message;

use super::{DecodeError, ServiceSpec, metadata, service, text};
use crate::{http::Version, telemetry::PeerFields};

/// Where a cluster says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that a connection may take, whatever a cluster says.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// An endpoint by its parts.
pub(crate) struct EndpointSpec {
    /// Address.
    pub address: SocketAddr,
    /// It has a proxy of the mesh.
    pub mesh: bool,
    /// At least 1.
    pub weight: u32,
    /// Who it is.
    pub workload: WorkloadSpec,
}

/// A workload by its parts.
pub(crate) struct WorkloadSpec {
    /// Pod name.
    pub pod: String,
    /// Identity.
    pub identity: Option<Identity>,
    /// Labels.
    pub labels: PeerFields,
}

/// A cluster by its parts.
pub(crate) struct ClusterSpec {
    /// The Service it stands for.
    pub service: Option<ServiceSpec>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// The version of HTTP that is asked for.
    pub version: Option<Version>,
}

/// Decodes a cluster.
///
/// # Errors
/// [`DecodeError`] where it is no cluster.
pub(crate) fn cluster(body: &[u8]) -> Result<ClusterSpec, DecodeError> {
    let cluster = Cluster::decode(body)?;
    let connect_timeout = cluster
        .connect_timeout
        .and_then(|time| {
            let (seconds, nanos) = (u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?);
            Some(Duration::new(seconds.min(MAX_CONNECT_TIMEOUT.as_secs()), nanos.min(999_999_999)))
        })
        .filter(|time| !time.is_zero())
        .unwrap_or(CONNECT_TIMEOUT)
        .min(MAX_CONNECT_TIMEOUT);
    let version = cluster.typed_extension_protocol_options.get(HTTP_OPTIONS).map(version).transpose()?.flatten();
    Ok(ClusterSpec { service: service(cluster.metadata.as_ref()), connect_timeout, version })
}

/// The version of HTTP that a cluster asks for.
fn version(options: &Any) -> Result<Option<Version>, DecodeError> {
    if options.type_url != HTTP_OPTIONS_TYPE_URL {
        return Err(DecodeError::new("HTTP options of another type"));
    }
    let options = HttpProtocolOptions::decode(&*options.value)?;
    Ok(match options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(_)) => Some(Version::Http11),
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Some(Version::Http2),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return Err(DecodeError::new("a cluster that asks for HTTP/3"));
            }
            None => None,
        },
        _ => None,
    })
}

/// Decodes endpoints.
///
/// # Errors
/// [`DecodeError`] where one has no address, or is in the mesh and names no identity that could be demanded of it.
pub(crate) fn endpoints(body: &[u8]) -> Result<Vec<EndpointSpec>, DecodeError> {
    let assignment = ClusterLoadAssignment::decode(body)?;
    assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints).map(endpoint).collect()
}

fn endpoint(endpoint: &LbEndpoint) -> Result<EndpointSpec, DecodeError> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err(DecodeError::new("an endpoint without an address"));
    };
    let Some(Address::SocketAddress(socket)) = host.address.as_ref().and_then(|a| a.address.as_ref()) else {
        return Err(DecodeError::new("an endpoint without a socket address"));
    };
    let ip = socket.address.parse().map_err(|_| DecodeError::new(format!("{:?} is no IP address", socket.address)))?;
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    };
    let port = port.ok_or_else(|| DecodeError::new(format!("endpoint {ip} without a port")))?;
    let meta = endpoint.metadata.as_ref();
    let mesh = metadata(meta, "envoy.transport_socket_match").and_then(|m| text(m, "tlsMode")) == Some("istio");
    let workload = workload(meta);
    if mesh && workload.identity.is_none() {
        return Err(DecodeError::new(format!("endpoint {ip}:{port} is in the mesh but names no SPIFFE identity")));
    }
    let weight = endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value).max(1);
    Ok(EndpointSpec { address: SocketAddr::new(ip, port), mesh, weight, workload })
}

/// Who a pod is.
pub(super) fn workload(meta: Option<&Metadata>) -> WorkloadSpec {
    let mut labels = metadata(meta, "istio")
        .and_then(|m| text(m, "workload"))
        .map(PeerFields::from_workload_metadata)
        .unwrap_or_default();
    let ours = metadata(meta, "weir");
    let get = |key| ours.and_then(|m| text(m, key)).unwrap_or_default();
    let identity: Option<Identity> = get("identity").parse().ok();
    labels.app = get("app").to_owned();
    labels.version = get("version").to_owned();
    labels.principal = identity.clone();
    WorkloadSpec { pod: get("pod").to_owned(), identity, labels }
}
