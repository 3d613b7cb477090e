//! The data plane.

pub mod admin;
pub mod http;
pub mod identity;
pub mod route;
pub mod telemetry;
pub mod tls;
