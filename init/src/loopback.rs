//! What the redirect needs of `lo`: that it is up, and that the proxy can call its application from `::6`.
//!
//! 127.0.0.6 needs nothing (all of 127.0.0.0/8 is local), but of IPv6 only `::1` is.

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use weir_mesh::names::APP_SOURCE_V6;

use crate::{
    error::Error,
    netlink::{Failure, Messages, Protocol, Socket, flags},
    nft::LOOPBACK_INDEX,
};

/// `RTM_NEWLINK`
const NEW_LINK: u16 = 16;
/// `RTM_NEWADDR`
const NEW_ADDRESS: u16 = 20;
/// `RTM_DELADDR`
const DELETE_ADDRESS: u16 = 21;
/// `IFF_UP`
const UP: u32 = 1;
/// `IFA_F_NODAD | IFA_F_PERMANENT`: usable at once.
const ADDRESS_FLAGS: u8 = 0x02 | 0x80;
/// `RT_SCOPE_HOST`
const SCOPE_HOST: u8 = 254;
/// `IFA_ADDRESS`
const ADDRESS: u16 = 1;
/// `IFA_LOCAL`
const LOCAL: u16 = 2;

/// Does this kernel speak IPv6 at all?
pub(crate) fn has_ipv6() -> bool {
    let opened = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    !matches!(opened, Err(Errno::EAFNOSUPPORT))
}

/// Brings `lo` up and gives it `::6/128`. Both may be so already. Where the namespace has IPv6 switched off on `lo` there is
/// no IPv6 call to an application that could need the address.
pub(crate) fn prepare(ipv6: bool) -> Result<(), Error> {
    let socket = Socket::open(Protocol::Route).map_err(|errno| Error::Netlink(errno.into()))?;
    let mut up = Messages::default();
    up.push(NEW_LINK, flags::ACK, &link_header(), |_| {});
    refused(socket.transact(&up, 0), "bringing lo up", &[])?;
    if ipv6 {
        let mut add = Messages::default();
        let create = flags::ACK | flags::CREATE | flags::REPLACE;
        add.push(NEW_ADDRESS, create, &address_header(), |w| {
            w.bytes(LOCAL, &APP_SOURCE_V6.octets()).bytes(ADDRESS, &APP_SOURCE_V6.octets());
        });
        refused(socket.transact(&add, 0), "adding ::6/128 to lo", &[Errno::EEXIST, Errno::EACCES])?;
    }
    Ok(())
}

/// Takes `::6/128` from `lo`, if it is there.
pub(crate) fn clean(ipv6: bool) -> Result<(), Error> {
    if !ipv6 {
        return Ok(());
    }
    let socket = Socket::open(Protocol::Route).map_err(|errno| Error::Netlink(errno.into()))?;
    let mut delete = Messages::default();
    delete.push(DELETE_ADDRESS, flags::ACK, &address_header(), |w| {
        w.bytes(LOCAL, &APP_SOURCE_V6.octets());
    });
    let gone = [Errno::EADDRNOTAVAIL, Errno::ENODEV, Errno::ENXIO];
    refused(socket.transact(&delete, 0), "taking ::6/128 from lo", &gone)
}

fn refused(result: Result<(), Failure>, step: &str, harmless: &[Errno]) -> Result<(), Error> {
    match result {
        Ok(()) => Ok(()),
        Err(Failure::Io(source)) => Err(Error::Netlink(source)),
        Err(Failure::Refused(refusal)) if harmless.contains(&refusal.errno) => Ok(()),
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::EPERM => Err(Error::Permission),
        Err(Failure::Refused(refusal)) => {
            Err(Error::Refused { step: step.into(), errno: refusal.errno, text: refusal.text })
        }
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags, which flags change.
fn link_header() -> [u8; 16] {
    let mut header = [0; 16];
    let fields = [0, LOOPBACK_INDEX, UP, UP];
    for (to, from) in header.chunks_exact_mut(4).zip(fields) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    header
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_header() -> [u8; 8] {
    let [a, b, c, d] = LOOPBACK_INDEX.to_ne_bytes();
    let inet6 = u8::try_from(libc::AF_INET6).unwrap_or_default();
    [inet6, 128, ADDRESS_FLAGS, SCOPE_HOST, a, b, c, d]
}
