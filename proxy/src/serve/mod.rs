//! The way of a connection through the proxy.
//!
//! ```text
//! accept ─> original destination ─> outbound: table of that address ─┬─> HTTP: one exchange after the other (exchange)
//!                                   inbound:  mutual TLS, own port  ─┴─> opaque: bytes both ways (tcp)
//! ```
//! One task carries one connection of a caller from beginning to end; it picks the endpoint, takes an upstream connection of its
//! worker's pool and reads the answer itself.

mod exchange;
mod inbound;
mod opaque;
mod outbound;
mod refuse;
mod worker;

pub use worker::{Shared, Worker, run};
