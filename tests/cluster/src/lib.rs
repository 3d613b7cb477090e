//! A real Kubernetes of several nodes on one machine, without Docker: for the tests, and for a person who tries something.
//!
//! Every node is a network namespace and a mount namespace with containerd, kubelet and kube-proxy of its own; etcd and the control
//! plane have another. All of them are in one process namespace, whose first process takes everything with it when it ends.
//!
//! ```text
//! lanes           all suites, some at the same time           \
//! suite, case     tests of a file on one cluster               |
//! conformance     Gateway API's own suite on one cluster       |
//! cluster         a running cluster in a test's hands          > in the test, or `weir-cluster up`
//! launch          what is needed, the tools, the base images  /
//!     └─starts─> guard ─> init ─> supervisor                     three processes, each inside the one before
//!                                 ├─ mounts network place cgroups pki forward    what the programs run in
//!                                 ├─ control_plane node service                  the programs
//!                                 └─ readiness control                           when it is up, and what can be asked of it
//! ```
//! Kubernetes, CoreDNS and Helm are built by `tools/cluster-tools` from the modules in `go/`; the rest is Debian's.

pub mod address;
pub mod case;
pub mod cgroups;
pub mod cluster;
pub mod conformance;
pub mod control;
mod control_plane;
mod diagnose;
mod forward;
pub mod guard;
pub mod images;
pub mod lanes;
mod launch;
pub mod layout;
pub mod load;
pub mod mesh;
mod mounts;
mod network;
mod node;
pub mod options;
pub mod others;
pub mod person;
mod pki;
mod place;
pub mod pods;
mod readiness;
pub mod requirements;
pub mod said;
mod service;
pub mod suite;
pub mod supervisor;
pub mod tools;

pub use case::{Case, is_ready, until};
pub use cluster::{Cluster, Spot};
pub use layout::Layout;
pub use options::Options;
pub use suite::Suite;
