//! Listeners: which protocol, which routes, which cluster.

use std::{collections::HashMap, sync::Arc};

use weir_xds::envoy::{
    HCM_TYPE_URL, TCP_PROXY_TYPE_URL,
    hcm::{HttpConnectionManager, http_connection_manager::RouteSpecifier},
    kinds::{HashPolicy, hash_policy::PolicySpecifier},
    listener::{Filter, FilterChain, Listener, filter::ConfigType},
    tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier},
};
use weir_xds::prost::Message;

use super::{
    DecodeError, ServiceSpec, WorkloadSpec,
    access::{self, Guards},
    endpoints::workload,
    service,
};
use crate::{
    config::{
        Protocol,
        streams::{Shares, StreamsSpec},
    },
    policy::Access,
};

/// `TrafficDirection.INBOUND` (envoy/config/core/v3/base.proto).
const INBOUND: i32 = 1;

/// A listener in this proxy's terms.
pub(crate) enum ListenerSpec {
    /// What stands behind one address.
    Outbound(OutboundSpec),
    /// The pod's own ports, and who it is.
    Inbound(InboundSpec, Box<WorkloadSpec>),
}

/// The pod's own ports.
pub(crate) struct InboundSpec {
    /// By number.
    pub ports: HashMap<u16, PortSpec>,
    /// What all other ports ask.
    pub others: Access,
}

/// One port of the pod.
pub(crate) struct PortSpec {
    /// How its bytes are treated.
    pub protocol: Protocol,
    /// The first Service that leads here.
    pub service: Option<ServiceSpec>,
    /// What it asks of connections.
    pub access: Access,
}

/// What stands behind one address, by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutboundSpec {
    /// How its bytes are treated.
    pub protocol: Protocol,
    /// RouteConfiguration.
    pub routes: Option<String>,
    /// Where opaque streams go.
    pub streams: Option<StreamsSpec>,
}

enum Chain {
    Http(Option<String>),
    /// With the filter's name in statistics: the object behind it.
    Opaque(Shares, String),
}

/// Decodes a listener.
///
/// # Errors
/// [`DecodeError`] names the filter that is not understood.
pub(crate) fn listener(body: &[u8]) -> Result<ListenerSpec, DecodeError> {
    let listener = Listener::decode(body)?;
    if listener.traffic_direction == INBOUND { inbound(&listener) } else { outbound(&listener) }
}

fn outbound(listener: &Listener) -> Result<ListenerSpec, DecodeError> {
    let mut spec = OutboundSpec { protocol: Protocol::Opaque, routes: None, streams: None };
    for filters in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        match chain(filters)? {
            Chain::Http(Some(routes)) => spec.routes = Some(routes),
            Chain::Http(None) => {
                return Err(DecodeError::new("an outbound HTTP chain without a route configuration's name"));
            }
            Chain::Opaque(shares, _) => {
                let matching = filters.filter_chain_match.as_ref();
                let names = matching.map(|matching| matching.server_names.clone()).unwrap_or_default();
                let streams = spec.streams.get_or_insert_default();
                if names.is_empty() {
                    streams.every = Some(shares);
                } else {
                    streams.named.push((names, shares));
                }
            }
        }
    }
    spec.protocol = match (&spec.routes, &spec.streams) {
        (Some(_), Some(_)) => Protocol::Detect,
        (Some(_), None) => Protocol::Http,
        (None, Some(_)) => Protocol::Opaque,
        (None, None) => return Err(DecodeError::new("a listener without a filter chain")),
    };
    Ok(ListenerSpec::Outbound(spec))
}

fn inbound(listener: &Listener) -> Result<ListenerSpec, DecodeError> {
    let mut guards = Guards::default();
    let strict = access::strict(listener.metadata.as_ref())?.unwrap_or_default();
    let mut ports: HashMap<u16, PortSpec> = HashMap::new();
    for filters in &listener.filter_chains {
        let matched = filters.filter_chain_match.as_ref().and_then(|m| m.destination_port.as_ref());
        let Some(number) = matched.and_then(|port| u16::try_from(port.value).ok()) else {
            return Err(DecodeError::new("an inbound chain without a destination port"));
        };
        let (rules, rest) = guards.split(&filters.filters)?;
        let protocol = match last(rest)? {
            Chain::Http(_) => Protocol::Http,
            Chain::Opaque(..) => Protocol::Opaque,
        };
        let access = access::access(&strict, access::strict(filters.metadata.as_ref())?, rules);
        let service = service(filters.metadata.as_ref());
        let port = match ports.remove(&number) {
            Some(other) if other.access != access => {
                return Err(DecodeError::new(format!("the chains of port {number} differ in their access rules")));
            }
            Some(other) if other.protocol != protocol => {
                PortSpec { protocol: Protocol::Detect, service: other.service.or(service), access }
            }
            _ => PortSpec { protocol, service, access },
        };
        ports.insert(number, port);
    }
    let rules = match &listener.default_filter_chain {
        Some(filters) => guards.split(&filters.filters)?.0,
        None => Arc::default(),
    };
    let spec = InboundSpec { ports, others: access::access(&strict, None, rules) };
    Ok(ListenerSpec::Inbound(spec, Box::new(workload(listener.metadata.as_ref()))))
}

fn chain(chain: &FilterChain) -> Result<Chain, DecodeError> {
    let mut last = last(&chain.filters)?;
    // A chain has the name of the rule that it is made from.
    if let Chain::Opaque(shares, object) = &mut last
        && !chain.name.is_empty()
    {
        shares.route = Some((chain.name.clone(), std::mem::take(object)));
    }
    Ok(last)
}

/// The one filter that says where bytes go.
fn last(filters: &[Filter]) -> Result<Chain, DecodeError> {
    let [filter] = filters else {
        return Err(DecodeError::new(format!(
            "a filter chain with {} filters, where one is understood",
            filters.len()
        )));
    };
    let Some(ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(DecodeError::new(format!("filter {} without a configuration", filter.name)));
    };
    match config.type_url.as_str() {
        HCM_TYPE_URL => match HttpConnectionManager::decode(config.value.as_slice())?.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Ok(Chain::Http(Some(rds.route_config_name))),
            _ => Ok(Chain::Http(None)),
        },
        TCP_PROXY_TYPE_URL => {
            let proxy = TcpProxy::decode(config.value.as_slice())?;
            let clusters = match proxy.cluster_specifier {
                Some(ClusterSpecifier::Cluster(cluster)) => vec![(cluster, 1)],
                Some(ClusterSpecifier::WeightedClusters(all)) => {
                    all.clusters.into_iter().map(|share| (share.name, share.weight)).collect()
                }
                None => return Err(DecodeError::new("a TCP proxy without a cluster")),
            };
            let by_source = match proxy.hash_policy.as_slice() {
                [] => false,
                [HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(_)) }] => true,
                _ => return Err(DecodeError::new("a TCP proxy's hash_policy that is not one source_ip")),
            };
            Ok(Chain::Opaque(Shares { clusters, route: None, by_source }, proxy.stat_prefix))
        }
        other => Err(DecodeError::new(format!("filter {other} is not understood"))),
    }
}
