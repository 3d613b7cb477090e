//! HTTP/1.1 on the wire (RFC 9112), strictly: what two parsers could read in two ways is refused, never repaired.
//!
//! [`RequestDecoder`] and [`ResponseDecoder`] take heads out of a read buffer, [`BodyScanner`] says how many of the following
//! bytes belong to the body, [`write_request`] and [`write_response`] write a head with its edits.

mod body;
mod framing;
mod lines;
mod request;
mod response;
mod write;

pub use body::{BodyScanner, Piece, Scanned};
pub use request::RequestDecoder;
pub use response::ResponseDecoder;
pub use write::{
    CONTINUE, ForwardRequest, ForwardResponse, LAST_CHUNK, LocalResponse, write_chunk_size, write_local_response,
    write_request, write_response,
};

#[cfg(test)]
mod tests;
