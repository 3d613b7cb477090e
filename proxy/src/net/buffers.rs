//! Read buffers of one worker: a connection has one only while bytes are in it.
//!
//! An idle connection holds no buffer, so that memory follows the requests in flight and not the number of connections.

use std::cell::RefCell;

use bytes::BytesMut;

/// Size of a buffer, in bytes: one TLS record's worth of payload, and most messages whole.
pub const SIZE: usize = 16 * 1024;
/// Size for streams that move much: several records in one system call.
pub const BULK: usize = 64 * 1024;
/// How many unused buffers a worker keeps: beyond the requests that are in one poll at the same time, more are of no use.
const KEPT: usize = 32;
/// The same for large ones.
const KEPT_BULK: usize = 4;

thread_local! {
    static FREE: RefCell<(Vec<BytesMut>, Vec<BytesMut>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// An empty buffer with room for [`SIZE`] bytes, or [`BULK`].
pub fn take(bulk: bool) -> BytesMut {
    FREE.with_borrow_mut(|(small, large)| if bulk { large.pop() } else { small.pop() })
        .unwrap_or_else(|| BytesMut::with_capacity(if bulk { BULK } else { SIZE }))
}

/// Gives a buffer back. Kept only if it is empty and its whole room can be had again without a copy.
pub fn give(mut buffer: BytesMut) {
    if !buffer.is_empty() || !buffer.try_reclaim(SIZE) {
        return;
    }
    FREE.with_borrow_mut(|(small, large)| {
        let (list, kept) = if buffer.try_reclaim(BULK) { (large, KEPT_BULK) } else { (small, KEPT) };
        if list.len() < kept {
            list.push(buffer);
        }
    });
}
