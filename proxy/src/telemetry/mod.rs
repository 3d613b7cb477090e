//! What the proxy tells about itself: metrics, the access log and its own log.
//!
//! Metrics carry Istio's standard names and labels, so that boards made for Istio read them. [`Registry`] owns every series;
//! [`SeriesCache`] is a worker's own way to them, without a lock and without an allocation for a label set it has seen. Label
//! sets are bounded: what comes after the last one is counted under `other`.
//! The access log does not go through `tracing`: workers format lines into buffers of their own, one thread writes them.

pub mod access_log;
mod cache;
mod encode;
mod flags;
mod labels;
pub mod log;
mod own;
mod process;
mod registry;
mod series;
#[cfg(test)]
mod tests;

pub use access_log::{AccessEntry, AccessLog, AccessLogHandle, Mode};
pub use cache::SeriesCache;
pub use encode::Encoder;
pub use flags::ResponseFlags;
pub use labels::{Direction, HttpLabels, Peer, PeerFields, Protocol, RouteLabels, SecurityPolicy, Service, TcpLabels};
pub use own::{Counter, CounterVec, Gauge, GaugeVec, ProxyMetrics};
pub use registry::{Limits, Registry};
pub use series::{HttpSeries, RouteSeries, TcpSeries};
