//! The user's resources: strict parsing of manifests into typed objects, checks of one object and across objects, and the one
//! routing model that the control plane translates.
//!
//! ```text
//! text --yaml--> tree with lines --manifest--> Object (Kubernetes' and Gateway API's own shapes) --frontend--> model
//! ```
//!
//! This crate does no I/O: callers hand in text and file names. What a manifest says and this build does not support is an
//! error that names file, object and field; nothing is ignored.

pub mod check;
pub mod cross;
pub mod describe;
pub mod frontend;
pub mod gateway;
pub mod istio;
pub mod manifest;
pub mod model;
pub mod object;
pub mod path;
pub mod problem;
pub mod security;
pub mod traffic;
pub mod yaml;

pub use cross::validate;
pub use manifest::{MAX_FILE_BYTES, Manifest, Stored, parse, parse_stored, parse_value, parse_value_stored};
pub use object::{Object, ObjectRef};
pub use path::FieldPath;
pub use problem::Problem;

/// Re-exported so that every part uses the same Kubernetes types.
pub use k8s_openapi;
