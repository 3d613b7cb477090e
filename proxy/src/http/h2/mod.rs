//! HTTP/2 (RFC 9113) without I/O: bytes in, heads and data out, and the way back.
//!
//! [`Session`] is one connection; whoever has its socket moves the bytes. [`Receiver`] and [`Sender`] are the two halves of one stream,
//! and belong to the request on it; all of them live in one thread. A list of headers becomes the codec-neutral head (`read`) and is
//! written from one (`write`); `hpack` is its compression, `core` what frames mean, `guard` what a peer may send that moves nothing.
//!
//! The `h2` crate would do all this between tasks that share nothing; here they share a thread, and what is sent is written into the
//! connection's buffer at once. `docs/benchmarks.md` has the difference.

mod chunks;
mod core;
mod error;
mod frame;
pub mod grpc;
mod guard;
mod handles;
mod hpack;
mod read;
mod stream;
mod write;

pub use self::{
    chunks::Chunks,
    error::Error,
    frame::Reason,
    handles::{Arrived, Receiver, Requests, Sender, Session},
    write::{ForwardRequest, ForwardResponse, ForwardTrailers, List},
};

#[cfg(test)]
mod tests;

/// Bytes of one stream that the peer may send ahead.
pub const STREAM_WINDOW: u32 = 128 * 1024;
/// Requests on one connection at the same time.
pub const STREAMS: u32 = 100;
/// Bytes of all streams of a connection together: room for each of them, so that one that nobody reads stops no other.
pub const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Largest list of headers, decoded, as RFC 9113, 6.5.2 counts it.
pub const HEADER_LIST: u32 = 64 * 1024;
