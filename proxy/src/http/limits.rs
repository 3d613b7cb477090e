//! How much of a message's head is read before it is refused.

/// Limits of one message head. The defaults are generous to applications and small to attackers: a connection can hold at most
/// one head in memory before it is routed or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest head in bytes, request line to empty line: else 431. 16 bits wide, so that a range in a head is four bytes and
    /// the whole head with 24 fields stays in a few cache lines. Envoy's default is 60 KiB, nginx' 32 KiB.
    pub max_head: u16,
    /// Most header lines: else 431. Envoy's and hyper's default, and [`MAX_FIELDS`] at most.
    pub max_headers: usize,
    /// Longest request target in bytes: else 414. RFC 9112 asks for 8,000 at least.
    pub max_target: u16,
}

/// What [`Limits::max_headers`] cannot exceed: parsing keeps an array of this size on the stack.
pub const MAX_FIELDS: usize = 128;

/// Longest method and version, with their spaces, beside the target in the request line. No registered method is longer than
/// 17 bytes (`UPDATEREDIRECTREF`).
pub(crate) const MAX_METHOD_AND_VERSION: usize = 64;

/// Empty lines tolerated before a request line (RFC 9112, 2.2: old clients end a body with one that is not counted).
pub(crate) const MAX_EMPTY_LINES: u8 = 4;

/// Most field names that a `Connection` header may nominate. Real ones name two; each is compared with every field.
pub(crate) const MAX_NOMINATED: usize = 16;

impl Default for Limits {
    fn default() -> Self {
        Self { max_head: u16::MAX, max_headers: 100, max_target: 16 * 1024 }
    }
}
