//! Envoy's resources, as far as this proxy understands them, decoded into its own terms. What it does not understand is an error: the
//! control plane hears of it (NACK), and what was in force stays.

mod access;
mod cluster;
mod endpoints;
mod filters;
mod listener;
mod policy;
mod route;
mod strict;

pub(super) use cluster::cluster;
pub(super) use endpoints::{WorkloadSpec, endpoints};
pub(super) use listener::{ListenerSpec, OutboundSpec, listener};
pub(super) use route::{RouteSpecs, routes};

use std::borrow::Cow;

use weir_xds::envoy::{
    core::Metadata,
    protobuf::{Struct, Value, value::Kind},
};

/// Why a resource is not understood.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(Cow<'static, str>);

impl DecodeError {
    /// An error with this reason.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

impl From<weir_xds::prost::DecodeError> for DecodeError {
    fn from(error: weir_xds::prost::DecodeError) -> Self {
        Self::new(format!("not the protobuf message it should be: {error}"))
    }
}

/// A Service's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceSpec {
    /// Fully qualified name.
    pub host: String,
    /// Short name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

fn metadata<'a>(metadata: Option<&'a Metadata>, namespace: &str) -> Option<&'a Struct> {
    metadata?.filter_metadata.get(namespace)
}

fn text<'a>(of: &'a Struct, key: &str) -> Option<&'a str> {
    match of.fields.get(key)? {
        Value { kind: Some(Kind::StringValue(text)) } => Some(text),
        _ => None,
    }
}

/// `filter_metadata["istio"].services[0]`, as Istio writes it.
fn service(of: Option<&Metadata>) -> Option<ServiceSpec> {
    let Some(Value { kind: Some(Kind::ListValue(list)) }) = metadata(of, "istio")?.fields.get("services") else {
        return None;
    };
    let Some(Value { kind: Some(Kind::StructValue(first)) }) = list.values.first() else { return None };
    Some(ServiceSpec {
        host: text(first, "host")?.to_owned(),
        name: text(first, "name")?.to_owned(),
        namespace: text(first, "namespace")?.to_owned(),
    })
}
