//! The one system call that no safe wrapper offers.
#![allow(unsafe_code)]

use std::{mem::size_of_val, os::fd::RawFd};

/// Asks the kernel to explain its errors in words, and not to repeat the request in them (`NETLINK_EXT_ACK`,
/// `NETLINK_CAP_ACK`). Kernels before 4.12 do not know how; then errors come as numbers alone.
pub(crate) fn explain_errors(netlink: RawFd) {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        // SAFETY: `on` outlives the call and `len` is its size; the kernel only reads it.
        unsafe { libc::setsockopt(netlink, libc::SOL_NETLINK, option, (&raw const on).cast(), len) };
    }
}
