//! The one system call that no safe wrapper has: taking a capability out of the bounding set.
#![allow(unsafe_code)] // prctl(2) is variadic and has no safe binding for this operation

use std::io;

/// Takes a capability away from this process and all that it starts, for good.
///
/// # Errors
/// Without CAP_SETPCAP, or for a number that the kernel does not know.
pub fn drop_from_bounding_set(capability: u8) -> io::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes one integer and touches no memory of ours.
    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
