//! The messages of delta xDS (`envoy/service/discovery/v3/discovery.proto`), reduced to the fields that are used.
//!
//! Written by hand instead of taken from the generated types because a resource's bytes must be shared between streams
//! ([`bytes::Bytes`], not `Vec<u8>`). The encoding is the same; a test reads each form with the other.

use std::collections::HashMap;

use bytes::Bytes;

/// A client asks for resources, or answers a response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaRequest {
    /// Who asks; only in the first request of a stream.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Type of the resources.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names to begin with.
    #[prost(string, repeated, tag = "3")]
    pub subscribe: Vec<String>,
    /// Names to end.
    #[prost(string, repeated, tag = "4")]
    pub unsubscribe: Vec<String>,
    /// What the client has from an earlier stream: name to version.
    #[prost(map = "string, string", tag = "5")]
    pub initial_versions: HashMap<String, String>,
    /// Nonce of the response that is answered.
    #[prost(string, tag = "6")]
    pub nonce: String,
    /// Why it was refused, wholly or in part.
    #[prost(message, optional, tag = "7")]
    pub error: Option<Status>,
}

/// A server's changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaResponse {
    /// New and changed resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<WireResource>,
    /// Type of the resources.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Number of the response, to be repeated in its answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names that do not exist, or no longer.
    #[prost(string, repeated, tag = "6")]
    pub removed: Vec<String>,
}

/// One resource.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireResource {
    /// Version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Content.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    /// Type of the value.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `envoy.config.core.v3.Node`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// `POD.NAMESPACE`
    #[prost(string, tag = "1")]
    pub id: String,
    /// Service cluster.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// Program.
    #[prost(string, tag = "6")]
    pub user_agent_name: String,
    /// Version of the program.
    #[prost(string, tag = "7")]
    pub user_agent_version: String,
}

/// `google.rpc.Status`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3 as theirs;
    use prost::Message as _;

    use super::*;

    #[test]
    fn encoded_as_envoy_encodes_it() {
        let ours = DeltaRequest {
            node: Some(Node {
                id: "a.b".into(),
                cluster: "c".into(),
                user_agent_name: "n".into(),
                user_agent_version: "v".into(),
            }),
            type_url: "t".into(),
            subscribe: vec!["s".into()],
            unsubscribe: vec!["u".into()],
            initial_versions: HashMap::from([("k".into(), "v".into())]),
            nonce: "1".into(),
            error: Some(Status { code: 3, message: "m".into() }),
        };
        let read = theirs::DeltaDiscoveryRequest::decode(ours.encode_to_vec().as_slice()).unwrap();
        assert_eq!(
            (read.resource_names_subscribe.clone(), read.resource_names_unsubscribe.clone()),
            (vec!["s".into()], vec!["u".into()])
        );
        assert_eq!(DeltaRequest::decode(read.encode_to_vec().as_slice()).unwrap(), ours);

        let ours = DeltaResponse {
            resources: vec![WireResource {
                version: "v".into(),
                resource: Some(Any { type_url: "t".into(), value: Bytes::from_static(b"x") }),
                name: "n".into(),
            }],
            type_url: "t".into(),
            nonce: "1".into(),
            removed: vec!["r".into()],
        };
        let read = theirs::DeltaDiscoveryResponse::decode(ours.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read.removed_resources, ["r"]);
        assert_eq!(DeltaResponse::decode(read.encode_to_vec().as_slice()).unwrap(), ours);
    }
}
