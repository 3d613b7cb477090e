//! A cluster: a name that routes refer to, and the endpoints behind it, swapped as a whole when they change.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{Endpoint, RetryBudget};
use crate::{http::Version, telemetry::Service};

/// What the configuration says of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterInfo {
    /// The Service it stands for; none for a pod's own address.
    pub service: Option<Arc<Service>>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// The version of HTTP that its endpoints are called in; none: the caller's.
    pub version: Option<Version>,
}

impl Default for ClusterInfo {
    fn default() -> Self {
        Self { service: None, connect_timeout: Duration::from_secs(1), version: None }
    }
}

/// The endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// In the order of the configuration; each is held by the requests that are there.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// A cluster that lives as long as something refers to it; its parts are swapped one by one.
#[derive(Debug)]
pub struct Cluster {
    /// Name in the configuration.
    pub name: Box<str>,
    info: ArcSwap<ClusterInfo>,
    endpoints: ArcSwapOption<EndpointSet>,
    /// Retries allowed for all requests to this cluster.
    pub budget: RetryBudget,
}

impl Cluster {
    /// A cluster of which nothing is known yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            info: ArcSwap::from_pointee(ClusterInfo::default()),
            endpoints: ArcSwapOption::empty(),
            budget: RetryBudget::default(),
        }
    }

    /// What the configuration says.
    pub fn info(&self) -> arc_swap::Guard<Arc<ClusterInfo>> {
        self.info.load()
    }

    /// The endpoints now; `None` while they are not known.
    pub fn endpoints(&self) -> arc_swap::Guard<Option<Arc<EndpointSet>>> {
        self.endpoints.load()
    }

    /// Replaces what the configuration says.
    pub fn set_info(&self, info: ClusterInfo) {
        self.info.store(Arc::new(info));
    }

    /// Replaces the endpoints.
    pub fn set_endpoints(&self, endpoints: EndpointSet) {
        self.endpoints.store(Some(Arc::new(endpoints)));
    }
}
