//! Weir's vocabulary: ports, names, identities, capture settings, probes, response flags.
//!
//! Every part of Weir depends on this crate and it depends on none of them. It does no I/O: it holds the names that two
//! parts must agree on, and the strict parsers of what one part writes and another reads.

pub mod annotations;
pub mod bootstrap;
pub mod capture;
pub mod flags;
pub mod headers;
pub mod identity;
pub mod names;
pub mod ports;
pub mod probe;

pub use annotations::{AnnotationError, PodSettings};
pub use capture::CaptureSettings;
pub use identity::{Identity, IdentityError, TrustDomain};
