//! Where requests go: clusters, their endpoints, the choice among them, and the connections that are kept.
//!
//! What is learned about an endpoint (load, latency, refused connections) lives once for all workers in [`EndpointState`] and survives
//! every change of configuration; connections belong to one worker and are never shared.

mod backend;
mod balance;
mod budget;
mod cluster;
mod endpoint;
mod making;
mod pool;
mod shared;

pub use backend::Backend;
pub use balance::pick;
pub use budget::RetryBudget;
pub use cluster::{Cluster, ClusterInfo, EndpointSet};
pub use endpoint::{Endpoint, EndpointState, InFlight, Registry, Workload};
pub use pool::{Connected, Connector, Key, Pool, Unreachable};
pub use shared::{CONNECTION_WINDOW, HEADER_LIST, Lease, SEND_BUFFER, STREAM_WINDOW, SharedPool, alone};
