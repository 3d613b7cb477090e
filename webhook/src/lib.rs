//! Injection: what a pod gets to be part of the mesh.
//!
//! A pure function from an object to a JSON patch ([`inject_pod`]), the same over whole manifests ([`inject_manifest`]), the
//! admission protocol around it ([`review`], which judges access rules as well), and an HTTPS server around that ([`server`]). Nothing here talks to the API
//! server, reads a pod's secrets or fills in a text template: operations are built as typed JSON, on the raw object, so that
//! fields which this build does not know pass untouched.

mod appcalls;
mod edit;
mod inject;
mod manifest;
mod nameservers;
mod parts;
mod prestop;
mod qos;
mod refusal;
mod resources;
pub mod review;
mod rules;
mod scrape;
pub mod server;
mod settings;
mod user;

pub use inject::{Outcome, Skip, Verdict, inject_pod};
pub use manifest::{ManifestError, inject_manifest, inject_manifest_with_warnings};
pub use refusal::{Reason, Refusal};
pub use settings::{Redirect, RedirectBackend, Settings, SettingsError};
