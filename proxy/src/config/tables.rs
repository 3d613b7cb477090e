//! Builds the tables from what arrives, on the control thread.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};
use weir_xds::{ConnectionState, Handler, Kind, Rejection, Resource, Subscriptions, names};

use super::{
    Answer, Inbound, Outbound, RouteCell, Store,
    decode::{self, DecodeError, ListenerSpec, OutboundSpec, RouteSpecs, ServiceSpec, WorkloadSpec},
    dump,
    store::Port,
    streams::{Streams, StreamsSpec},
};
use crate::{
    telemetry::Service,
    upstream::{Cluster, ClusterInfo, Endpoint, Registry, Workload},
};

/// The parts of the configuration and what they wait for.
#[derive(Debug, Default)]
struct Records {
    /// Destinations that the control plane knows.
    listeners: HashMap<SocketAddr, OutboundSpec>,
    /// Destinations whose answer waits for something that it refers to.
    waiting: HashSet<SocketAddr>,
    routes: HashMap<String, RouteRecord>,
    clusters: HashMap<String, ClusterRecord>,
    /// Labels are made once for each Service.
    services: HashMap<ServiceSpec, Arc<Service>>,
}

#[derive(Debug)]
struct RouteRecord {
    cell: Arc<RouteCell>,
    /// The control plane has said what it is, or that there is none.
    said: bool,
    /// The next version, which waits for clusters.
    staged: Option<RouteSpecs>,
    /// Clusters that the version in force refers to.
    clusters: Vec<String>,
}

#[derive(Debug)]
struct ClusterRecord {
    cluster: Arc<Cluster>,
    /// The control plane has said what it is, or that there is none.
    info_said: bool,
    endpoints_said: bool,
}

/// The handler of the xDS client. Clones share their state.
#[derive(Debug, Clone)]
pub struct Tables {
    store: Arc<Store>,
    registry: Arc<Registry>,
    records: Arc<Mutex<Records>>,
}

impl Tables {
    /// Tables that fill this store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, registry: Arc::default(), records: Arc::default() }
    }

    /// See [`Store::attach`].
    pub fn attach(&self, subscriptions: Subscriptions) {
        self.store.attach(subscriptions);
    }

    /// Forgets what nobody has used for a while, and ends its subscriptions.
    pub fn sweep(&self) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        for address in self.store.forget_idle() {
            records.listeners.remove(&address);
            records.waiting.remove(&address);
        }
        records.listeners.retain(|address, _| self.store.entry(*address).is_some());
        records.forget_unreferenced(&self.store);
    }

    /// What is in force, for `/config_dump`.
    pub fn dump(&self) -> Value {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let destinations: Vec<Value> = self.store.entries().iter().map(|entry| dump::destination(entry)).collect();
        let routes = records.routes.values();
        let mut routes: Vec<Value> =
            routes.map(|record| dump::routes(&record.cell, &record.clusters, record.staged.is_some())).collect();
        routes.sort_by_key(|route| route["name"].to_string());
        let mut clusters: Vec<Value> = records.clusters.values().map(|record| dump::cluster(&record.cluster)).collect();
        clusters.sort_by_key(|cluster| cluster["name"].to_string());
        let inbound = self.store.inbound().map(|inbound| dump::inbound(&inbound)).unwrap_or_default();
        json!({
            "control_plane": self.store.trouble().map_or("connected".to_owned(), |why| why.to_string()),
            "inbound": inbound,
            "destinations": destinations,
            "routes": routes,
            "clusters": clusters,
        })
    }

    fn apply_one(&self, records: &mut Records, kind: Kind, resource: &Resource) -> Result<(), DecodeError> {
        let name = resource.name.as_str();
        match kind {
            Kind::Listener => match decode::listener(&resource.body)? {
                ListenerSpec::Inbound(spec, own) if name == names::INBOUND => {
                    let ports = spec
                        .ports
                        .into_iter()
                        .map(|(number, port)| {
                            let service = records.service(port.service).unwrap_or_else(Service::inbound_passthrough);
                            (number, Arc::new(Port { protocol: port.protocol, service, access: port.access }))
                        })
                        .collect();
                    let own = Some(self.registry.peer(own.labels));
                    self.store.set_inbound(Inbound { ports, others: spec.others, own });
                }
                ListenerSpec::Outbound(spec) => {
                    let Some(names::Asked::Outbound(address)) = names::Asked::parse(name) else {
                        return Err(DecodeError::new("this name was never asked for"));
                    };
                    if let Some(route) = &spec.routes {
                        records.route(&self.store, route);
                    }
                    for cluster in spec.streams.iter().flat_map(StreamsSpec::clusters) {
                        records.cluster(&self.store, cluster);
                    }
                    records.listeners.insert(address, spec);
                    records.waiting.insert(address);
                }
                ListenerSpec::Inbound(..) => return Err(DecodeError::new("an inbound listener under another name")),
            },
            Kind::Route => {
                let specs = decode::routes(&resource.body)?;
                for cluster in specs.clusters() {
                    records.cluster(&self.store, &cluster);
                }
                if let Some(record) = records.routes.get_mut(name) {
                    record.said = true;
                    record.staged = Some(specs);
                }
            }
            Kind::Cluster => {
                let spec = decode::cluster(&resource.body)?;
                let service = records.service(spec.service);
                if let Some(record) = records.clusters.get_mut(name) {
                    self.store.set_checked(&record.cluster, !spec.checks.is_empty());
                    record.cluster.set_info(ClusterInfo {
                        service,
                        connect_timeout: spec.connect_timeout,
                        version: spec.version,
                        balancing: spec.balancing,
                        breaker: record.cluster.breaker(spec.thresholds),
                        allowance: spec.allowance,
                        outlier: spec.outlier,
                        checks: spec.checks,
                        keeping: spec.keeping,
                    });
                    record.info_said = true;
                }
            }
            Kind::Endpoints => {
                let specs = decode::endpoints(&resource.body)?;
                if let Some(address) = names::parse_workload(name) {
                    if let Some(peer) = self.store.known_peer(address) {
                        peer.set(specs.into_iter().next().map(|spec| self.workload(spec.mesh, spec.workload)));
                    }
                } else if let Some(record) = records.clusters.get_mut(name) {
                    let endpoints = specs
                        .into_iter()
                        .map(|spec| {
                            let mesh = spec.mesh.then(|| spec.workload.identity.clone()).flatten();
                            Arc::new(Endpoint {
                                address: spec.address,
                                state: self.registry.state(spec.address, mesh.as_ref()),
                                standing: self.registry.standing(name, spec.address, mesh.as_ref()),
                                mesh,
                                weight: spec.weight,
                                priority: spec.priority,
                                locality: spec.locality,
                                healthy: spec.healthy,
                                workload: self.workload(spec.mesh, spec.workload),
                            })
                        })
                        .collect();
                    record.cluster.set_endpoints(endpoints);
                    record.endpoints_said = true;
                }
            }
        }
        Ok(())
    }

    fn workload(&self, mesh: bool, spec: WorkloadSpec) -> Workload {
        Workload { pod: spec.pod.into(), identity: spec.identity, peer: self.registry.peer(spec.labels), mesh }
    }

    fn remove_one(&self, records: &mut Records, kind: Kind, name: &str) {
        match kind {
            Kind::Listener => match names::Asked::parse(name) {
                Some(names::Asked::Outbound(address)) => {
                    records.listeners.remove(&address);
                    records.waiting.remove(&address);
                    if let Some(entry) = self.store.entry(address) {
                        entry.set(Answer::Unknown);
                    }
                }
                // The control plane does not know this pod, yet or any more: its access rules must not be forgotten for that.
                Some(names::Asked::Inbound) | Some(names::Asked::Host { .. }) | None => {}
            },
            Kind::Route => {
                if let Some(record) = records.routes.get_mut(name) {
                    record.said = true;
                    record.staged = None;
                    record.cell.set(None);
                }
            }
            Kind::Cluster => {
                if let Some(record) = records.clusters.get_mut(name) {
                    record.info_said = true;
                }
            }
            Kind::Endpoints => {
                if let Some(address) = names::parse_workload(name) {
                    if let Some(peer) = self.store.known_peer(address) {
                        peer.set(None);
                    }
                } else if let Some(record) = records.clusters.get_mut(name) {
                    record.cluster.set_endpoints(Vec::new());
                    record.endpoints_said = true;
                }
            }
        }
    }
}

impl Handler for Tables {
    fn apply(&mut self, kind: Kind, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rejected = Vec::new();
        for resource in added {
            if let Err(error) = self.apply_one(&mut records, kind, &resource) {
                tracing::error!(resource = resource.name, ?kind, %error, "a resource of the control plane is not understood; what was in force stays");
                rejected.push(Rejection { name: resource.name, reason: error.to_string() });
            }
        }
        for name in removed {
            self.remove_one(&mut records, kind, &name);
        }
        records.settle(&self.store);
        rejected
    }

    fn connection(&mut self, state: ConnectionState) {
        match state {
            ConnectionState::Connected => {
                tracing::info!("connected to the control plane");
                self.store.set_trouble(None);
            }
            ConnectionState::Disconnected { reason, .. } => {
                if self.store.trouble().is_none_or(|old| *old != reason) {
                    tracing::warn!(reason, "no connection to the control plane; what is known stays in force");
                }
                self.store.set_trouble(Some(reason));
            }
        }
    }
}

impl Records {
    fn service(&mut self, spec: Option<ServiceSpec>) -> Option<Arc<Service>> {
        let spec = spec?;
        let make = || Service::new(spec.host.clone(), spec.name.clone(), spec.namespace.clone());
        Some(self.services.entry(spec.clone()).or_insert_with(make).clone())
    }

    fn route(&mut self, store: &Store, name: &str) {
        if !self.routes.contains_key(name) {
            store.subscribe(Kind::Route, name.to_owned());
            let cell = Arc::new(RouteCell::new(name));
            self.routes.insert(name.to_owned(), RouteRecord { cell, said: false, staged: None, clusters: Vec::new() });
        }
    }

    fn cluster(&mut self, store: &Store, name: &str) {
        if !self.clusters.contains_key(name) {
            // Endpoints carry their cluster's name: asked for together, one round trip less.
            store.subscribe(Kind::Cluster, name.to_owned());
            store.subscribe(Kind::Endpoints, name.to_owned());
            let cluster = Arc::new(Cluster::new(name));
            self.clusters.insert(name.to_owned(), ClusterRecord { cluster, info_said: false, endpoints_said: false });
        }
    }

    fn is_ready(&self, cluster: &str) -> bool {
        self.clusters.get(cluster).is_some_and(|record| record.info_said && record.endpoints_said)
    }

    /// Puts in force what has all it refers to.
    fn settle(&mut self, store: &Store) {
        let clusters = &self.clusters;
        let ready = |name: &String| clusters.get(name).is_some_and(|r| r.info_said && r.endpoints_said);
        for record in self.routes.values_mut() {
            let Some(specs) = record.staged.take_if(|specs| specs.clusters().iter().all(ready)) else { continue };
            record.clusters = specs.clusters();
            let cluster = |name: &str| clusters.get(name).map(|record| record.cluster.clone());
            let old = record.cell.table();
            match specs.table(cluster, old.as_deref()) {
                Ok(table) => record.cell.set(Some(table)),
                Err(error) => {
                    tracing::error!(routes = &*record.cell.name, %error, "a route table can not be built; what was in force stays");
                }
            }
        }
        let done: Vec<(SocketAddr, Outbound)> = self
            .waiting
            .iter()
            .filter_map(|address| {
                let spec = self.listeners.get(address)?;
                let routes = match &spec.routes {
                    None => None,
                    Some(name) => Some(self.routes.get(name).filter(|r| r.said && r.staged.is_none())?.cell.clone()),
                };
                if !spec.streams.iter().flat_map(StreamsSpec::clusters).all(|name| self.is_ready(name)) {
                    return None;
                }
                let cluster = |name: &str| self.clusters.get(name).map(|record| record.cluster.clone());
                let old = store.entry(*address).and_then(|entry| match entry.answer().as_ref() {
                    Answer::Known(known) => known.streams.clone(),
                    Answer::Waiting | Answer::Unknown => None,
                });
                let streams = spec.streams.as_ref().map(|spec| Arc::new(Streams::new(spec, cluster, old.as_deref())));
                Some((*address, Outbound { protocol: spec.protocol, routes, streams }))
            })
            .collect();
        for (address, outbound) in done {
            self.waiting.remove(&address);
            if let Some(entry) = store.entry(address) {
                entry.set(Answer::Known(Arc::new(outbound)));
            }
        }
    }

    /// Ends the subscriptions of routes and clusters that no listener leads to any more.
    fn forget_unreferenced(&mut self, store: &Store) {
        let routes: HashSet<&String> = self.listeners.values().filter_map(|spec| spec.routes.as_ref()).collect();
        let gone: Vec<String> = self.routes.keys().filter(|name| !routes.contains(name)).cloned().collect();
        for name in gone {
            self.routes.remove(&name);
            store.unsubscribe(Kind::Route, name);
        }
        let streams = self.listeners.values().filter_map(|spec| spec.streams.as_ref());
        let mut clusters: HashSet<String> = streams.flat_map(StreamsSpec::clusters).cloned().collect();
        for record in self.routes.values() {
            clusters.extend(record.clusters.iter().cloned());
            clusters.extend(record.staged.iter().flat_map(RouteSpecs::clusters));
        }
        let gone: Vec<String> = self.clusters.keys().filter(|name| !clusters.contains(*name)).cloned().collect();
        for name in gone {
            if let Some(record) = self.clusters.remove(&name) {
                store.set_checked(&record.cluster, false);
            }
            store.unsubscribe(Kind::Cluster, name.clone());
            store.unsubscribe(Kind::Endpoints, name);
        }
        self.services.retain(|_, service| Arc::strong_count(service) > 1);
    }
}
