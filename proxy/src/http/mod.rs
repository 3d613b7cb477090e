//! HTTP without I/O: bytes in, a codec-neutral head and verified body chunks out, and the way back.
//!
//! [`head`] is what routing, policy and telemetry see, whichever codec read it; [`h1`] reads and writes HTTP/1.1 strictly
//! (RFC 9112), [`h2`] does HTTP/2 (RFC 9113); [`path`] is the one normaliser that both the match and the forwarded request go through; [`edits`] are the
//! changes to headers, applied while a head is written. Sockets, time-outs, pools and the order of events belong to the caller.
//!
//! Nothing here allocates for an ordinary request: a head is the received bytes, frozen once, and ranges into them.

pub mod authority;
mod chars;
pub mod edits;
mod fields;
pub mod h1;
pub mod h2;
pub mod head;
pub mod limits;
pub mod path;

pub use edits::{Edit, Edits, Name, Value};
pub use head::{Asked, Framing, RequestHead, ResponseHead, Trailers, Version};
pub use limits::Limits;

/// Why a message is not acceptable, and what its sender is told.
///
/// After it the connection that the bytes came from must be closed: where the next message begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// Status for the answer: 400, 414, 417, 431, 501 or 505 for a request, always 502 for an upstream's response.
    pub status: u16,
    /// What is wrong, for the log and the access log; never holds received bytes.
    pub reason: &'static str,
}

impl Refused {
    pub(crate) const fn bad_request(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }

    /// The same fault found in an upstream's response: what the client is told then.
    #[must_use]
    pub const fn as_bad_gateway(self) -> Self {
        Self { status: 502, reason: self.reason }
    }
}
