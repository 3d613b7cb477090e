//! A route's way to a cluster, with the series that its requests are counted in.

use std::sync::{Arc, OnceLock};

use super::Cluster;
use crate::telemetry::{Direction, Registry, RouteLabels, RouteSeries, Service};

/// What a route's share of requests goes to.
#[derive(Debug)]
pub struct Backend {
    /// The cluster; `None` for a backend that is not valid, whose share is answered with 500.
    pub cluster: Option<Arc<Cluster>>,
    /// Name of the route.
    pub route: Arc<str>,
    /// Object that the route comes from.
    pub object: Arc<str>,
    series: OnceLock<Arc<RouteSeries>>,
}

impl Backend {
    /// A backend of this route.
    pub fn new(cluster: Option<Arc<Cluster>>, route: Arc<str>, object: Arc<str>) -> Self {
        Self { cluster, route, object, series: OnceLock::new() }
    }

    /// The series of this route and Service; looked up once for each table.
    pub fn series(&self, registry: &Registry, service: &Service) -> &Arc<RouteSeries> {
        self.series.get_or_init(|| {
            registry.route(&RouteLabels { direction: Direction::Outbound, service, route: &self.route })
        })
    }
}
