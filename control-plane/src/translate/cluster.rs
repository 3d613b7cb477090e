//! Clusters: how the endpoints of a service, or of one pod address, are called.

use weir_config::model::UpstreamRules;
use weir_xds::envoy::{
    cluster::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
    },
    core::{AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier},
    protobuf::Duration,
};

use super::{
    Mesh, Of, View,
    encode::{Metadata, services, with_metadata},
    upstream,
};
use crate::world::World;

/// Time that a connection to an endpoint may take.
const CONNECT_TIMEOUT_SECONDS: i64 = 1;
/// `Cluster.metadata`
const METADATA: u32 = 25;

pub(super) fn cluster(mesh: &Mesh, world: &World, name: &str, of: &Of, view: &View) -> Option<Vec<u8>> {
    let (mut version, mut rules) = (None, UpstreamRules::default());
    let metadata = match of {
        Of::Service(service, port) => {
            let service = world.service(service)?;
            version = service.port(*port)?.version;
            rules = world.upstream_rules(&service.name, *port, view.namespace.as_deref());
            Some(Metadata::default().with("istio", [("services", services([(mesh.host(service), &service.name)]))]))
        }
        Of::Address(address) => {
            world.workload_at(address.ip())?;
            None
        }
        Of::Workload(_) | Of::Inbound(_) => return None,
    };
    let mut cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
        connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 }),
        ..Default::default()
    };
    upstream::apply(&rules, version, &mut cluster);
    Some(with_metadata(&cluster, METADATA, metadata.as_ref()))
}

/// "From the same stream."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}
