//! A cluster: a name that routes refer to, and the endpoints behind it, swapped as a whole when they change.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::Instant;

use super::{
    Allowance, Balancing, Breaker, Check, Counts, Detector, Endpoint, EndpointSet, Outlier, RetryBudget, Thresholds,
};
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
    /// How endpoints are chosen.
    pub balancing: Balancing,
    /// Limits, and what is counted for them.
    pub breaker: Breaker,
    /// What retries are allowed by.
    pub allowance: Allowance,
    /// When endpoints are ejected.
    pub outlier: Option<Outlier>,
    /// How endpoints are checked.
    pub checks: Vec<Check>,
    /// How connections are kept.
    pub keeping: Keeping,
}

/// How connections are kept for further requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeping {
    /// No longer without a request, where that is shorter than the proxy's own limit.
    pub idle: Option<Duration>,
    /// For no more requests.
    pub requests: Option<u32>,
}

impl Default for ClusterInfo {
    fn default() -> Self {
        Self {
            service: None,
            connect_timeout: Duration::from_secs(1),
            version: None,
            balancing: Balancing::default(),
            breaker: Breaker::default(),
            allowance: Allowance::default(),
            outlier: None,
            checks: Vec::new(),
            keeping: Keeping::default(),
        }
    }
}

impl ClusterInfo {
    /// Endpoints may be left out for what they do.
    fn is_watchful(&self) -> bool {
        self.outlier.is_some() || !self.checks.is_empty()
    }
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
    /// What ejections have to remember.
    pub detector: Detector,
    counts: Arc<Counts>,
}

impl Cluster {
    /// A cluster of which nothing is known yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            info: ArcSwap::from_pointee(ClusterInfo::default()),
            endpoints: ArcSwapOption::empty(),
            budget: RetryBudget::default(),
            detector: Detector::default(),
            counts: Arc::default(),
        }
    }

    /// Limits for this cluster, with what is counted for it already.
    pub fn breaker(&self, thresholds: Thresholds) -> Breaker {
        Breaker { thresholds, counts: self.counts.clone() }
    }

    /// What the configuration says.
    pub fn info(&self) -> arc_swap::Guard<Arc<ClusterInfo>> {
        self.info.load()
    }

    /// The endpoints now; `None` while they are not known.
    pub fn endpoints(&self) -> arc_swap::Guard<Option<Arc<EndpointSet>>> {
        self.endpoints.load()
    }

    /// Replaces what the configuration says. Called by one thread only, as is [`Self::set_endpoints`].
    pub fn set_info(&self, info: ClusterInfo) {
        let old = self.info.swap(Arc::new(info));
        let info = self.info.load();
        let known = self.endpoints.load_full();
        if let Some(known) = known
            && (old.balancing != info.balancing || old.is_watchful() != info.is_watchful())
        {
            self.arrange(known.endpoints.clone(), &info);
        }
        // What nobody looks after any more is forgotten.
        if let Some(known) = self.endpoints.load().as_ref() {
            for standing in known.endpoints.iter().map(|endpoint| &endpoint.standing) {
                if info.outlier.is_none() && old.outlier.is_some() {
                    standing.pardon();
                }
                if info.checks.is_empty() && !old.checks.is_empty() {
                    standing.set_well(true, Instant::now());
                }
            }
        }
    }

    /// Replaces the endpoints.
    pub fn set_endpoints(&self, endpoints: Vec<Arc<Endpoint>>) {
        self.arrange(endpoints, &self.info.load());
    }

    fn arrange(&self, endpoints: Vec<Arc<Endpoint>>, info: &ClusterInfo) {
        let set = EndpointSet::new(endpoints, &info.balancing, info.is_watchful());
        self.endpoints.store(Some(Arc::new(set)));
    }
}
