//! Connections as the data path sees them: bytes in, bytes out, whatever is underneath.
//!
//! Owns the stream enum ([`Io`]), a worker's buffers ([`buffers`]), a connection with its read buffer ([`Conn`]), and one that carries
//! HTTP/2 ([`Frames`]). Knows nothing of requests, routes or clusters.

pub mod buffers;
mod conn;
mod deadline;
mod frames;
mod hash;
mod io;
pub mod lost;
mod random;
mod slots;

pub use conn::Conn;
pub use deadline::Deadline;
pub use frames::{Ended, Frames};
pub use hash::{hash64, mix};
pub use io::{Io, connect, tune};
pub use random::random;
pub use slots::{Slot, Slots};
