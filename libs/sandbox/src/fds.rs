//! Open files over a Unix socket (`SCM_RIGHTS`).
#![allow(unsafe_code)] // received descriptors come as numbers, and only the caller of recvmsg(2) knows that they are ours

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most open files in one message.
const MAX_FILES: usize = 3;

/// Sends bytes and open files.
///
/// # Errors
/// Whatever the kernel says.
pub(crate) fn send(socket: RawFd, bytes: &[u8], files: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(files)];
    let messages: &[ControlMessage<'_>] = if files.is_empty() { &[] } else { &rights };
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], messages, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes and the open files that came with them.
///
/// # Errors
/// Whatever the kernel says.
pub(crate) fn receive(socket: RawFd, buffers: &mut [IoSliceMut<'_>]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FILES]);
    let message = recvmsg::<()>(socket, buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just opened these descriptors for this process, and nothing else knows their numbers.
            files.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok((message.bytes, files))
}
