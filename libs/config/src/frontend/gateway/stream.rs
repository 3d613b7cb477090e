//! TCPRoute and TLSRoute.

use super::{MAX_BACKENDS, Read, Reader, Reference, values::is_host};
use crate::{
    gateway::{TCP_ROUTE, TLS_ROUTE, TcpRoute, TlsRoute, generated::StreamRule as ApiRule},
    model::{Backend, Rules, StreamRule},
    path::FieldPath,
};

/// Most server names of one route (the API's limit).
const MAX_SERVER_NAMES: usize = 1024;

/// Reads a TCPRoute.
///
/// # Errors
/// Every problem, by field.
pub fn tcp_route(route: &TcpRoute) -> Read {
    let mut reader = Reader::new(&route.metadata);
    reader.no_default_gateways(route.spec.use_default_gateways);
    let parents = reader.parents(&route.spec.parent_refs);
    let rule = reader.stream_rule(&route.spec.rules, Vec::new());
    reader.finish(TCP_ROUTE, &route.metadata, parents, Rules::Tcp(rule))
}

/// Reads a TLSRoute.
///
/// # Errors
/// Every problem, by field.
pub fn tls_route(route: &TlsRoute) -> Read {
    let mut reader = Reader::new(&route.metadata);
    reader.no_default_gateways(route.spec.use_default_gateways);
    let parents = reader.parents(&route.spec.parent_refs);
    let at = FieldPath::of("spec.hostnames");
    let names = &route.spec.hostnames;
    reader.limit(&at, names.len(), MAX_SERVER_NAMES);
    if names.is_empty() {
        reader.error(at.clone(), "is empty: name the servers that clients ask for");
    }
    for (i, name) in names.iter().enumerate() {
        let host = name.strip_prefix("*.").unwrap_or(name);
        if !is_host(host) || host.parse::<std::net::IpAddr>().is_ok() {
            let message = format!("{name:?} is not a server's name: lower-case labels with dots, or *. before them");
            reader.error(at.index(i), message);
        }
    }
    let rule = reader.stream_rule(&route.spec.rules, names.clone());
    reader.finish(TLS_ROUTE, &route.metadata, parents, Rules::Tls(rule))
}

impl Reader<'_> {
    fn stream_rule(&mut self, rules: &[ApiRule], server_names: Vec<String>) -> StreamRule {
        let name = rules.first().and_then(|rule| rule.name.clone());
        StreamRule { name, server_names, backends: self.stream_backends(rules) }
    }

    fn stream_backends(&mut self, rules: &[ApiRule]) -> Vec<Backend> {
        let at = FieldPath::of("spec.rules");
        let [rule] = rules else {
            self.error(at, format!("has {} entries; exactly one is allowed, which is for all streams", rules.len()));
            return Vec::new();
        };
        let at = at.index(0).key("backendRefs");
        self.limit(&at, rule.backend_refs.len(), MAX_BACKENDS);
        if rule.backend_refs.is_empty() {
            self.error(at.clone(), "is empty: name a Service");
        }
        let backends = rule.backend_refs.iter().enumerate();
        backends
            .filter_map(|(i, backend)| {
                self.backend(&Reference::from(backend), backend.weight, Default::default(), &at.index(i))
            })
            .collect()
    }
}
