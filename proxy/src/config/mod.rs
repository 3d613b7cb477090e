//! Configuration: subscriptions on demand, Envoy resources decoded, and the tables that the data path reads.
//!
//! ```text
//! worker asks Store ─> subscription ─> control plane ─> Tables::apply ─> cells swapped one by one ─> worker reads
//! ```
//! A cell (one listener, one route table, one cluster) is swapped as a whole and only when everything that it refers to is there, so
//! that a request never sees half a change.

mod decode;
mod dump;
mod store;
mod streams;
mod tables;

pub use decode::{DecodeError, ServiceSpec};
pub use store::{Answer, Entry, Inbound, Memory, Outbound, Peer, Port, Protocol, RouteCell, Store};
pub use streams::{Stream, Streams};
pub use tables::Tables;
