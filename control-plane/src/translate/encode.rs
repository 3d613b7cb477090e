//! Encoding that is the same every time, and versions from it.
//!
//! The generated types keep protobuf maps in hash maps, whose order is random: equal content would have other bytes, and so
//! another version, on every replica. Metadata is the one place with maps. So messages are encoded without it, and metadata is
//! encoded by ordered types and appended: concatenated encodings are a merged message (protobuf, "Last One Wins").

use std::collections::BTreeMap;

use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};
use sha2::{Digest as _, Sha256};

/// Bytes of the hash in a version: enough against chance, short in logs. Nobody gains from a forged collision, since content
/// and version come from the same place.
const VERSION_BYTES: usize = 12;

/// Version of an encoded resource.
pub fn version(body: &[u8]) -> String {
    Sha256::digest(body).iter().take(VERSION_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// `envoy.config.core.v3.Metadata`, ordered.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    filter_metadata: BTreeMap<String, Struct>,
}

impl Metadata {
    /// Adds fields to those of a namespace.
    pub(super) fn with<'a>(mut self, namespace: &str, fields: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
        self.filter_metadata.entry(namespace.to_owned()).or_default().fields.extend(fields);
        self
    }
}

/// A duration of protobuf; what is too long for one is the longest.
pub(super) fn duration(of: std::time::Duration) -> weir_xds::envoy::protobuf::Duration {
    let seconds = i64::try_from(of.as_secs()).unwrap_or(i64::MAX);
    weir_xds::envoy::protobuf::Duration { seconds, nanos: i32::try_from(of.subsec_nanos()).unwrap_or_default() }
}

pub(super) fn string(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

/// `services: [{host, name, namespace}]`
pub(super) fn services<'a>(list: impl IntoIterator<Item = (String, &'a weir_config::model::Name)>) -> Value {
    let values = list
        .into_iter()
        .map(|(host, name)| {
            let fields =
                [("host", string(host)), ("name", string(&*name.name)), ("namespace", string(&*name.namespace))];
            let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            Value { kind: Some(Kind::StructValue(Struct { fields })) }
        })
        .collect();
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

/// Encodes a message that has no metadata of its own, and appends metadata as the field with this tag.
pub(super) fn with_metadata(message: &impl Message, tag: u32, metadata: Option<&Metadata>) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    if let Some(metadata) = metadata {
        append(&mut bytes, tag, &metadata.encode_to_vec());
    }
    bytes
}

/// Appends an encoded message as the field with this tag.
pub(super) fn append(bytes: &mut Vec<u8>, tag: u32, message: &[u8]) {
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, bytes);
    prost::encoding::encode_varint(u64::try_from(message.len()).unwrap_or(u64::MAX), bytes);
    bytes.extend_from_slice(message);
}
