//! HTTP/2 without I/O: what the `h2` crate hands over as the codec-neutral head, and edits to what it sends.
//!
//! Frames, streams and flow control are the crate's. What a request may look like is decided by the same reader as for HTTP/1.1, so
//! that a path or a host means the same in both.

pub mod grpc;
mod guard;
mod head;

pub use guard::{Flood, FrameGuard};
pub use head::{apply, forwarded, request};
