//! By which key requests and streams find their endpoint.

use weir_config::model::{Balance, HashKey, Name};
use weir_xds::envoy::{
    kinds::{self, hash_policy::PolicySpecifier as StreamSpecifier},
    route::route_action::{
        HashPolicy,
        hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter},
    },
};

use crate::{
    translate::{View, encode::duration},
    world::World,
};

/// The key of the first of the services that has one: a request has one key, wherever it goes.
fn key<'a>(world: &World, services: impl IntoIterator<Item = (&'a Name, u16)>, view: &View) -> Option<HashKey> {
    services.into_iter().find_map(|(service, port)| {
        match world.upstream_rules(service, port, view.namespace.as_deref()).balance {
            Some(Balance::Hash { key, .. }) => Some(key),
            _ => None,
        }
    })
}

/// The key of streams: of them nothing is known but where they come from.
pub(in crate::translate) fn of_streams<'a>(
    world: &World,
    services: impl IntoIterator<Item = (&'a Name, u16)>,
    view: &View,
) -> Vec<kinds::HashPolicy> {
    let by_source = key(world, services, view) == Some(HashKey::SourceIp);
    let specifier = StreamSpecifier::SourceIp(kinds::hash_policy::SourceIp {});
    by_source.then_some(kinds::HashPolicy { policy_specifier: Some(specifier) }).into_iter().collect()
}

/// The key of requests.
pub(super) fn policy<'a>(
    world: &World,
    services: impl IntoIterator<Item = (&'a Name, u16)>,
    view: &View,
) -> Vec<HashPolicy> {
    let specifier = key(world, services, view).map(|key| match key {
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
