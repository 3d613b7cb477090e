//! Endpoints of a service: who serves it now.

use std::net::IpAddr;

use super::Name;

/// Endpoints of a service from one list; a service may have several lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSet {
    /// Namespace and name of the list.
    pub name: Name,
    /// The service.
    pub service: Name,
    /// Ports that all of its endpoints share.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of the endpoints of one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the service's port; empty where it has none.
    pub name: String,
    /// Where the endpoints listen.
    pub number: u16,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// May it be used?
    pub condition: Condition,
    /// The pod behind it.
    pub workload: Option<Name>,
}

/// May an endpoint be used?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Yes.
    Ready,
    /// It is going away but still serves: used where none is ready.
    Draining,
    /// No.
    Unready,
}
