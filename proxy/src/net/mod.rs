//! Connections as the data path sees them: bytes in, bytes out, whatever is underneath.
//!
//! Owns the stream enum ([`Io`]), a worker's buffers ([`buffers`]), a connection with its read buffer ([`Conn`]), and that as a stream of
//! frames ([`Wire`]). Knows nothing of requests, routes or clusters.

pub mod buffers;
mod conn;
mod deadline;
mod io;
pub mod lost;
mod random;
mod wire;

pub use conn::Conn;
pub use deadline::Deadline;
pub use io::{Io, connect, tune};
pub use random::random;
pub use wire::{Trouble, Wire};
