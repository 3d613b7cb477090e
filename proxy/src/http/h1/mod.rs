//! HTTP/1.1 on the wire (RFC 9112), strictly: what two parsers could read in two ways is refused, never repaired.
//!
//! [`RequestDecoder`] and [`ResponseDecoder`] take heads out of a read buffer, [`BodyScanner`] says how many of the following
//! bytes belong to the body, [`write_request`] and [`write_response`] write a head with its edits.
//!
//! Where the RFC leaves a choice: header names with underscores pass (as by default in Envoy), but are never taken for their
//! namesakes with hyphens; bytes above ASCII pass in header values and reasons, not in targets; a wish to upgrade to `h2c` is
//! passed over; `Connection` cannot take away headers that say who asks. What is refused although other readers take it is
//! listed, with reasons, in `fuzz-corpus/` and `tests/http_hyper.rs`.

mod body;
mod framing;
mod lines;
mod request;
mod response;
mod write;

pub use body::{BodyScanner, Piece, Scanned};
pub(super) use framing::read as read_framing;
pub use request::RequestDecoder;
pub(super) use request::of_lines;
pub use response::ResponseDecoder;
pub use write::{
    CONTINUE, ForwardRequest, ForwardResponse, LAST_CHUNK, LocalResponse, write_chunk_size, write_local_response,
    write_request, write_response,
};

#[cfg(test)]
mod tests;
