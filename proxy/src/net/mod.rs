//! Connections as the data path sees them: bytes in, bytes out, whatever is underneath.
//!
//! Owns the stream enum ([`Io`]), a worker's buffers ([`buffers`]) and a connection with its read buffer ([`Conn`]). Knows nothing of
//! HTTP, routes or clusters.

pub mod buffers;
mod conn;
mod deadline;
mod io;
mod random;

pub use conn::Conn;
pub use deadline::Deadline;
pub use io::{Io, connect, tune};
pub use random::random;
