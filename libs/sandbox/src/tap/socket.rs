//! A packet socket on one interface.
#![allow(unsafe_code)] // no safe wrapper can build a sockaddr_ll or attach a filter

use std::{
    io,
    mem::{size_of, size_of_val},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    net::if_::if_nametoindex,
    sys::{
        socket::{MsgFlags, recv, setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

/// Memory for packets that were not looked at yet, in bytes.
const BUFFER: usize = 16 * 1024 * 1024;
/// BPF's instruction that ends a filter with a constant: how many bytes of the packet to take.
const RETURN: u16 = 0x06;
/// How long a receive waits, in milliseconds.
const WAIT_MS: i64 = 50;

/// Opens a socket that gets every packet of the interface, in both directions, without link headers.
pub(super) fn open(interface: &str) -> io::Result<OwnedFd> {
    let index = i32::try_from(if_nametoindex(interface)?).map_err(io::Error::other)?;
    // Only this protocol number makes the kernel hand over outgoing packets as well.
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    // SAFETY: socket(2) takes integers and gives a new descriptor, which nobody else has.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(protocol));
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // Without CAP_NET_ADMIN outside, the usual size has to do.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(WAIT_MS))?;
    // SAFETY: an all-zero sockaddr_ll is a valid value; the length given is its size.
    let bound = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        address.sll_protocol = protocol;
        address.sll_ifindex = index;
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Takes no more packets; those that wait can still be received.
pub(super) fn close_to_new(socket: &OwnedFd) {
    // Accepts no byte of any packet.
    let mut nothing = libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    let length = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    // SAFETY: the kernel copies a program of one instruction, which lives until after the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        );
    }
}

/// The next packet; nothing where none came for a while.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    use nix::errno::Errno;
    match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
        Ok(n) => Ok(Some(n)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
