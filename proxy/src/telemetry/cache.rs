//! A worker's own way to the series it writes to.

use std::{collections::hash_map::Entry, sync::Arc};

use rustc_hash::FxHashMap;

use super::{
    labels::{HttpLabels, TcpLabels},
    registry::Registry,
    series::{HttpSeries, TcpSeries},
};

/// Label sets that a worker remembers; then it starts anew. Ids of workloads and services change with the configuration, so
/// that old entries would never be asked for again.
const MAX_REMEMBERED: usize = 4096;

/// A label set by small ids. Two sets with equal keys render equally.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    peer: u64,
    service: u64,
    flags: u32,
    code: u16,
    /// gRPC status and one; 0 for none.
    grpc_status: u8,
    /// Direction, protocol and security policy, two bits each.
    kinds: u8,
}

/// Looks label sets up without a lock and without an allocation, once they were seen. One for each worker.
#[derive(Debug)]
pub struct SeriesCache {
    registry: Arc<Registry>,
    http: FxHashMap<Key, Arc<HttpSeries>>,
    tcp: FxHashMap<Key, Arc<TcpSeries>>,
}

impl SeriesCache {
    /// An empty one.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, http: FxHashMap::default(), tcp: FxHashMap::default() }
    }

    /// The series of a request's label set.
    pub fn http(&mut self, labels: &HttpLabels<'_>) -> &Arc<HttpSeries> {
        let key = Key {
            peer: labels.peer.id(),
            service: labels.service.id(),
            flags: labels.flags.bits(),
            code: labels.code,
            grpc_status: labels.grpc_status.map_or(0, |status| status.saturating_add(1)),
            kinds: (labels.direction as u8) | ((labels.protocol as u8) << 2) | ((labels.security as u8) << 4),
        };
        if self.http.len() >= MAX_REMEMBERED && !self.http.contains_key(&key) {
            self.http.clear();
        }
        match self.http.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(empty) => empty.insert(self.registry.http(labels)),
        }
    }

    /// The series of a connection's label set.
    pub fn tcp(&mut self, labels: &TcpLabels<'_>) -> &Arc<TcpSeries> {
        let key = Key {
            peer: labels.peer.id(),
            service: labels.service.id(),
            flags: labels.flags.bits(),
            code: 0,
            grpc_status: 0,
            kinds: (labels.direction as u8) | ((labels.security as u8) << 4),
        };
        if self.tcp.len() >= MAX_REMEMBERED && !self.tcp.contains_key(&key) {
            self.tcp.clear();
        }
        match self.tcp.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(empty) => empty.insert(self.registry.tcp(labels)),
        }
    }

    /// Where the series live.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
}
