//! The data plane: a proxy beside every pod.
//!
//! ```text
//! capture ─> detect ─> serve ─┬─> http (codec) + route (rules) + upstream (endpoints, pools) + tls
//!                             └─> tcp (opaque streams)
//! config (xDS) swaps the tables that route and upstream read; identity keeps the certificate; admin, telemetry and drain look on.
//! ```

pub mod admin;
pub mod app;
pub mod capture;
pub mod config;
pub mod detect;
pub mod drain;
pub mod http;
pub mod identity;
mod memory;
pub mod net;
pub mod overload;
pub mod policy;
pub mod route;
pub mod serve;
pub mod settings;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
