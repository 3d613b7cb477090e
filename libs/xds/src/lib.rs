//! Envoy's xDS v3 as Weir speaks it: names, messages, a delta ADS client and server, and Istio's certificate service.
//!
//! ```text
//! control plane                                              proxy
//! server::Catalog <- server (nonces, versions, back-pressure) <=> client (subscriptions, versions, reconnect) -> client::Handler
//! ```
//!
//! Resources pass through as encoded bytes: the control plane encodes each once and shares it among all streams, a proxy
//! decodes what it asked for. The types inside are Envoy's own ([`envoy`]).

pub mod ca;
pub mod client;
pub mod envoy;
pub mod names;
mod resource;
pub mod server;
mod tls;
pub mod wire;

pub use client::{Client, ConnectionState, Handler, Rejection, Subscriptions};
pub use resource::{BAD_BACKEND_CLUSTER, Kind, Resource};
pub use tls::{ChannelError, endpoint};

/// Re-exported so that callers use the same version.
pub use prost;
pub use tonic;

/// Largest message in either direction, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// Longest resource name that is asked for or answered, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;
