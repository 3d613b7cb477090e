//! By which key requests find their endpoint.

use weir_config::model::{Balance, HashKey, Name};
use weir_xds::envoy::route::route_action::{
    HashPolicy,
    hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter},
};

use crate::{
    translate::{View, encode::duration},
    world::World,
};

/// The key of the first of the services that has one: a request has one key, wherever it goes.
pub(super) fn policy<'a>(
    world: &World,
    services: impl IntoIterator<Item = (&'a Name, u16)>,
    view: &View,
) -> Vec<HashPolicy> {
    let key = services.into_iter().find_map(|(service, port)| {
        match world.upstream_rules(service, port, view.namespace.as_deref()).balance {
            Some(Balance::Hash { key, .. }) => Some(key),
            _ => None,
        }
    });
    let specifier = key.map(|key| match key {
        HashKey::Header(name) => PolicySpecifier::Header(Header { header_name: name, ..Default::default() }),
        HashKey::Query(name) => PolicySpecifier::QueryParameter(QueryParameter { name }),
        HashKey::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashKey::Cookie { name, path, ttl } => {
            PolicySpecifier::Cookie(Cookie { name, path, ttl: ttl.map(duration), ..Default::default() })
        }
    });
    specifier
        .map(|specifier| HashPolicy { policy_specifier: Some(specifier), ..Default::default() })
        .into_iter()
        .collect()
}
