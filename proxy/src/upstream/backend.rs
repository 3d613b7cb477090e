//! A route's way to a cluster, with the series that its requests are counted in.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use super::Cluster;
use crate::telemetry::{Direction, Registry, RouteLabels, RouteSeries, Service};

/// What a route's share of requests goes to.
#[derive(Debug)]
pub struct Backend {
    /// The cluster; `None` for a backend that is not valid, whose share is answered with 500.
    pub cluster: Option<Arc<Cluster>>,
    /// Name of the route.
    pub route: Arc<str>,
    series: OnceLock<Arc<RouteSeries>>,
}

impl Backend {
    /// A backend of this route.
    pub fn new(cluster: Option<Arc<Cluster>>, route: Arc<str>) -> Self {
        Self { cluster, route, series: OnceLock::new() }
    }

    /// True where the cluster has an endpoint with this address.
    pub fn has(&self, address: SocketAddr) -> bool {
        let endpoints = self.cluster.as_ref().map(|cluster| cluster.endpoints());
        let set = endpoints.as_ref().and_then(|endpoints| endpoints.as_ref());
        set.is_some_and(|set| set.endpoints.iter().any(|endpoint| endpoint.address == address))
    }

    /// The series of this route and Service; looked up once for each table.
    pub fn series(&self, registry: &Registry, service: &Service) -> &Arc<RouteSeries> {
        self.series.get_or_init(|| {
            registry.route(&RouteLabels { direction: Direction::Outbound, service, route: &self.route })
        })
    }
}
