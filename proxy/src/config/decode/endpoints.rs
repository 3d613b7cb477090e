//! Endpoints, and the workloads behind them.

use std::{net::SocketAddr, sync::Arc};

use weir_mesh::Identity;
use weir_xds::envoy::{
    core::{HealthStatus, Metadata, address::Address, socket_address::PortSpecifier},
    endpoint::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};
use weir_xds::prost::Message;

use super::{DecodeError, metadata, strict::refuse, text};
use crate::{telemetry::PeerFields, upstream::Locality};

/// An endpoint by its parts.
pub(crate) struct EndpointSpec {
    /// Address.
    pub address: SocketAddr,
    /// It has a proxy of the mesh.
    pub mesh: bool,
    /// At least 1.
    pub weight: u32,
    /// 0 comes first.
    pub priority: u32,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// False where it is said not to be well.
    pub healthy: bool,
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

/// Decodes endpoints.
///
/// # Errors
/// [`DecodeError`] where one has no address, or is in the mesh and names no identity that could be demanded of it.
pub(crate) fn endpoints(body: &[u8]) -> Result<Vec<EndpointSpec>, DecodeError> {
    let assignment = ClusterLoadAssignment::decode(body)?;
    refuse!(assignment, named_endpoints);
    if let Some(policy) = &assignment.policy {
        refuse!(policy, drop_overloads, overprovisioning_factor, endpoint_stale_after, weighted_priority_health);
    }
    let mut all = Vec::new();
    for part in &assignment.endpoints {
        refuse!(part, proximity, lb_config);
        let place = locality(part);
        for one in &part.lb_endpoints {
            all.push(endpoint(one, part.priority, &place)?);
        }
    }
    Ok(all)
}

fn locality(part: &LocalityLbEndpoints) -> Arc<Locality> {
    let name = part.locality.as_ref().map(|place| format!("{}/{}/{}", place.region, place.zone, place.sub_zone));
    let weight = part.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    Arc::new(Locality { name: name.unwrap_or_default().into(), weight })
}

fn endpoint(endpoint: &LbEndpoint, priority: u32, place: &Arc<Locality>) -> Result<EndpointSpec, DecodeError> {
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
    let healthy = !matches!(
        HealthStatus::try_from(endpoint.health_status),
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout)
    );
    let address = SocketAddr::new(ip, port);
    Ok(EndpointSpec { address, mesh, weight, priority, locality: place.clone(), healthy, workload })
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
