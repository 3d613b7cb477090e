//! HPACK (RFC 7541): lists of headers, compressed by what both sides of a connection have seen.

mod decode;
mod encode;
mod fixed;
mod huffman;

pub(super) use decode::{Decoder, HpackError};
pub(super) use encode::{Encoder, Field};

/// What an entry of a table counts beside its name and value (RFC 7541, 4.1).
const ENTRY: usize = 32;
/// Size of the table that a peer may fill: the protocol's own default, of which nothing has to be said.
const TABLE: usize = 4096;
