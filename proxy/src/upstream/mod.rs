//! Where requests go: clusters, their endpoints, the choice among them, and the connections that are kept.
//!
//! What is learned about an endpoint (load, latency, refused connections) lives once for all workers in [`EndpointState`], what a cluster
//! thinks of it in [`Standing`]; both survive every change of configuration. Connections belong to one worker and are never shared.

mod backend;
mod balance;
mod breaker;
mod budget;
mod checks;
mod cluster;
mod endpoint;
mod handover;
mod hashing;
mod making;
mod outlier;
mod pool;
mod shared;
mod standing;

pub use backend::Backend;
pub use balance::{Ask, Balancing, EndpointSet, Method, SlowStart};
pub use breaker::{Breaker, Counts, Full, Thresholds};
pub use budget::{Allowance, RetryBudget};
pub use checks::{Check, Expected, Probe};
pub use cluster::{Cluster, ClusterInfo, Keeping};
pub use endpoint::{Endpoint, EndpointState, InFlight, Locality, Registry, Workload};
pub use handover::{Handover, Wishes};
pub use hashing::MAX_PLACES;
pub use outlier::{Detector, Ejected, Outlier, SuccessRate, Verdict, in_percent};
pub use pool::{Connected, Connector, Key, Pool, Unreachable};
pub use shared::{Lease, SharedPool, alone};
pub use standing::{Part, Standing};
