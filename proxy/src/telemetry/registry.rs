//! All series of the proxy, by their label sets, and the bound on their number.

use std::{
    hash::BuildHasher,
    sync::{Arc, PoisonError, RwLock},
};

use rustc_hash::{FxBuildHasher, FxHashMap};

use arc_swap::ArcSwap;

use super::{
    encode::Encoder,
    labels::{Detail, HttpLabels, OTHER, Peer, RouteLabels, Service, TcpLabels},
    own::ProxyMetrics,
    series::{HttpSeries, RouteSeries, TcpSeries},
};

/// Bounds on the number of label sets. One costs about 2 kB of memory and 66 lines of a scrape.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of the request metrics.
    pub http: usize,
    /// Of the connection metrics.
    pub tcp: usize,
    /// Of the route metrics.
    pub routes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { http: 2000, tcp: 1000, routes: 500 }
    }
}

type Sets<T> = RwLock<FxHashMap<Arc<str>, Arc<T>>>;

/// Owns every series. One for the process, shared by an `Arc`.
#[derive(Debug)]
pub struct Registry {
    own: ArcSwap<Peer>,
    version: String,
    limits: Limits,
    http: Sets<HttpSeries>,
    tcp: Sets<TcpSeries>,
    routes: Sets<RouteSeries>,
    /// Weir's own metrics.
    pub proxy: ProxyMetrics,
}

impl Registry {
    /// `own` is this pod's workload, its identity included; `version` the proxy's.
    pub fn new(own: Arc<Peer>, version: impl Into<String>) -> Arc<Self> {
        Self::with_limits(own, version, Limits::default())
    }

    /// With other bounds.
    pub fn with_limits(own: Arc<Peer>, version: impl Into<String>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            own: ArcSwap::new(own),
            version: version.into(),
            limits,
            http: Sets::default(),
            tcp: Sets::default(),
            routes: Sets::default(),
            proxy: ProxyMetrics::default(),
        })
    }

    /// The series of a label set, or the one of `other` where there are too many. Renders the labels and takes a lock: workers
    /// go through [`super::SeriesCache`].
    pub fn http(&self, labels: &HttpLabels<'_>) -> Arc<HttpSeries> {
        let text = labels.render(&self.own.load(), Detail::Full);
        get(&self.http, text, self.limits.http, HttpSeries::new).unwrap_or_else(|| {
            self.proxy.label_sets_dropped.inc(["requests"]);
            let (peer, service) = (Peer::other(), Service::other());
            let text = labels.others(&peer, &service).render(&self.own.load(), Detail::Other);
            force(&self.http, text, HttpSeries::new)
        })
    }

    /// The series of a label set, or the one of `other` where there are too many. Once a connection.
    pub fn tcp(&self, labels: &TcpLabels<'_>) -> Arc<TcpSeries> {
        let text = labels.render(&self.own.load(), Detail::Full);
        get(&self.tcp, text, self.limits.tcp, TcpSeries::new).unwrap_or_else(|| {
            self.proxy.label_sets_dropped.inc(["connections"]);
            let (peer, service) = (Peer::other(), Service::other());
            let text = labels.others(&peer, &service).render(&self.own.load(), Detail::Other);
            force(&self.tcp, text, TcpSeries::new)
        })
    }

    /// The series of a declared route; kept beside the route.
    pub fn route(&self, labels: &RouteLabels<'_>) -> Arc<RouteSeries> {
        get(&self.routes, labels.render(), self.limits.routes, RouteSeries::new).unwrap_or_else(|| {
            self.proxy.label_sets_dropped.inc(["routes"]);
            let service = Service::other();
            let other = RouteLabels { direction: labels.direction, service: &service, route: OTHER };
            force(&self.routes, other.render(), RouteSeries::new)
        })
    }

    /// This pod's workload.
    pub fn own(&self) -> Arc<Peer> {
        self.own.load_full()
    }

    /// Who this pod is, once it is known: to be called before the first request, since series keep the labels they were made with.
    pub fn set_own(&self, own: Arc<Peer>) {
        self.own.store(own);
    }

    /// The whole scrape in pieces, so that a large one never lies in memory at once.
    pub fn encoder(self: &Arc<Self>) -> Encoder {
        Encoder::new(self.clone())
    }

    /// The whole scrape as one text; for tests and small uses.
    pub fn encode(self: &Arc<Self>) -> String {
        self.encoder().fold(String::new(), |mut text, piece| {
            text.push_str(&String::from_utf8_lossy(&piece));
            text
        })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn all_http(&self) -> Vec<Arc<HttpSeries>> {
        all(&self.http)
    }

    pub(super) fn all_tcp(&self) -> Vec<Arc<TcpSeries>> {
        all(&self.tcp)
    }

    pub(super) fn all_routes(&self) -> Vec<Arc<RouteSeries>> {
        all(&self.routes)
    }
}

fn get<T>(sets: &Sets<T>, text: String, limit: usize, new: impl FnOnce(Arc<str>) -> T) -> Option<Arc<T>> {
    let known = sets.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(series) = known.get(text.as_str()) {
        return Some(series.clone());
    }
    if known.len() >= limit {
        return None;
    }
    drop(known);
    Some(force(sets, text, new))
}

fn force<T>(sets: &Sets<T>, text: String, new: impl FnOnce(Arc<str>) -> T) -> Arc<T> {
    let mut sets = sets.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(series) = sets.get(text.as_str()) {
        return series.clone();
    }
    let labels: Arc<str> = text.into();
    let series = Arc::new(new(labels.clone()));
    sets.insert(labels, series.clone());
    series
}

/// In a stable order, so that two scrapes can be compared.
fn all<T>(sets: &Sets<T>) -> Vec<Arc<T>> {
    let sets = sets.read().unwrap_or_else(PoisonError::into_inner);
    let mut all: Vec<(u64, Arc<T>)> =
        sets.iter().map(|(labels, series)| (FxBuildHasher.hash_one(labels), series.clone())).collect();
    all.sort_unstable_by_key(|(hash, _)| *hash);
    all.into_iter().map(|(_, series)| series).collect()
}
