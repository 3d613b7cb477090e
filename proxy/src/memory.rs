//! Memory that nobody uses goes back to the kernel.
#![allow(unsafe_code)] // mimalloc's crate has no safe call for this

use mimalloc as _; // links the library

unsafe extern "C" {
    /// Of mimalloc: gives back pages that are empty; those of the calling thread's heap, and what other threads freed in them.
    fn mi_collect(force: bool);
}

/// Gives back what this thread's heap keeps for nothing. An allocator does so by itself only while it is used: after a wave of
/// requests an idle worker would keep what the wave needed.
pub(crate) fn give_back() {
    // SAFETY: may be called at any time from any thread; it takes no pointer and invalidates none that is in use.
    unsafe { mi_collect(true) }
}
