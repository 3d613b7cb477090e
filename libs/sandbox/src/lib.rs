//! Pods as network namespaces of one machine: API server, controllers, kubelet, container runtime, Service translation and DNS,
//! as far as a mesh can tell them from the real ones.
//!
//! ```text
//! launch      up, down           ──starts──>  supervisor   the one process that owns everything
//! client      status, exec, tap  ──socket──>  supervisor/control
//!
//! supervisor/cluster   objects and the loop that follows them: api/ (Deployments, Services, admission, tokens)
//!                      └─> pod/       the life of a pod: probes, restarts, the way down
//!                          ├─> cni/       the chain of network plugins
//!                          └─> runtime/   containers as processes: mounts, privileges, volumes, logs
//!                      └─> net/ dns/  translation of Service addresses, names
//! tap/                 the bytes on the link of a pod
//! ```
//! The supervisor is the first process of a process namespace and lives in a mount and a network namespace of its own. So
//! nothing of a sandbox can outlive it: neither a process, nor a mount, nor a rule. Files lie in one folder ([`layout`]).

pub mod api;
pub mod client;
pub mod cni;
pub mod dns;
pub mod events;
mod fds;
pub mod images;
pub mod launch;
pub mod layout;
pub mod net;
pub mod pod;
pub mod runtime;
pub mod supervisor;
pub mod tap;
mod util;

pub use client::Client;
pub use layout::Layout;
