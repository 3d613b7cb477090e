//! Clusters: how the endpoints of a service, or of one pod address, are called.

use prost::Message;
use weir_config::model::HttpVersion;
use weir_xds::envoy::{
    HTTP_OPTIONS, HTTP_OPTIONS_TYPE_URL,
    cluster::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
    },
    core::{AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier},
    protobuf::{Any, Duration},
    upstream_http::{
        HttpProtocolOptions,
        http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
    },
};

use super::{
    Mesh, Of,
    encode::{Metadata, services, with_metadata},
};
use crate::world::World;

/// Time that a connection to an endpoint may take.
const CONNECT_TIMEOUT_SECONDS: i64 = 1;
/// `Cluster.metadata`
const METADATA: u32 = 25;

pub(super) fn cluster(mesh: &Mesh, world: &World, name: &str, of: &Of) -> Option<Vec<u8>> {
    let mut version = None;
    let metadata = match of {
        Of::Service(service, port) => {
            let service = world.service(service)?;
            version = service.port(*port)?.version;
            Some(Metadata::default().with("istio", [("services", services([(mesh.host(service), &service.name)]))]))
        }
        Of::Address(address) => {
            world.workload_at(address.ip())?;
            None
        }
        Of::Workload(_) | Of::Inbound(_) => return None,
    };
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
        lb_policy: LbPolicy::LeastRequest.into(),
        connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 }),
        typed_extension_protocol_options: version.map(in_version).into_iter().collect(),
        ..Default::default()
    };
    Some(with_metadata(&cluster, METADATA, metadata.as_ref()))
}

/// "Called in this version of HTTP."
fn in_version(version: HttpVersion) -> (String, Any) {
    let config = match version {
        HttpVersion::Http1 => ProtocolConfig::HttpProtocolOptions(Default::default()),
        HttpVersion::Http2 => ProtocolConfig::Http2ProtocolOptions(Default::default()),
    };
    let explicit = UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let options = HttpProtocolOptions { upstream_protocol_options: Some(explicit), ..Default::default() };
    let options = Any { type_url: HTTP_OPTIONS_TYPE_URL.to_owned(), value: options.encode_to_vec() };
    (HTTP_OPTIONS.to_owned(), options)
}

/// "From the same stream."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}
