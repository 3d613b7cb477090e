//! Interfaces and their addresses by rtnetlink, in the calling thread's network namespace: as much as the redirect and its
//! check need.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::errno::Errno;

use crate::{
    error::Error,
    netlink::{Failure, Messages, Protocol, Socket, flags},
};

/// `RTM_NEWLINK`
const NEW_LINK: u16 = 16;
/// `RTM_DELLINK`
const DELETE_LINK: u16 = 17;
/// `RTM_NEWADDR`
const NEW_ADDRESS: u16 = 20;
/// `RTM_DELADDR`
const DELETE_ADDRESS: u16 = 21;
/// `IFF_UP`
const UP: u32 = 1;
/// `IFA_F_NODAD | IFA_F_PERMANENT`: usable at once.
const ADDRESS_FLAGS: u8 = 0x02 | 0x80;

/// `struct ifa_cacheinfo`: preferred for no time, valid for ever; the two time stamps are the kernel's to fill in.
const DEPRECATED: [u8; 16] = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];

/// Attributes (`linux/if_addr.h`, `linux/if_link.h`, `linux/veth.h`).
mod attr {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
    pub(super) const NAME: u16 = 3;
    pub(super) const CACHE_INFO: u16 = 6;
    pub(super) const LINK_INFO: u16 = 18;
    pub(super) const NETNS_FD: u16 = 28;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const VETH_PEER: u16 = 1;
}

/// How far an address reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope {
    /// Everywhere (`RT_SCOPE_UNIVERSE`).
    Global = 0,
    /// Within the namespace (`RT_SCOPE_HOST`).
    Host = 254,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) scope: Scope,
    /// Never chosen as source by the kernel itself (IPv6 only): it must be asked for.
    pub(crate) deprecated: bool,
}

/// Brings an interface up.
pub(crate) fn up(index: u32) -> Result<(), Error> {
    let mut messages = Messages::default();
    messages.push(NEW_LINK, flags::ACK, &link_header(index, UP), |_| {});
    send(&messages, "bringing an interface up", &[])
}

/// Adds an address, without duplicate address detection; it may be there already. An error among `harmless` is none.
pub(crate) fn add_address(address: Address, harmless: &[Errno]) -> Result<(), Error> {
    let mut messages = Messages::default();
    let create = flags::ACK | flags::CREATE | flags::REPLACE;
    messages.push(NEW_ADDRESS, create, &address_header(address), |w| {
        let bytes = octets(address.ip);
        w.bytes(attr::LOCAL, &bytes).bytes(attr::ADDRESS, &bytes);
        if address.deprecated {
            w.bytes(attr::CACHE_INFO, &DEPRECATED);
        }
    });
    send(&messages, &format!("adding {}/{} to an interface", address.ip, address.prefix), harmless)
}

/// Takes an address away, if it is there.
pub(crate) fn delete_address(address: Address) -> Result<(), Error> {
    let mut messages = Messages::default();
    messages.push(DELETE_ADDRESS, flags::ACK, &address_header(address), |w| {
        w.bytes(attr::LOCAL, &octets(address.ip));
    });
    let gone = [Errno::EADDRNOTAVAIL, Errno::ENODEV, Errno::ENXIO];
    send(&messages, &format!("taking {}/{} from an interface", address.ip, address.prefix), &gone)
}

/// Makes a pair of interfaces of the same name, one end here and one in the other namespace.
pub(crate) fn add_veth(name: &str, other: BorrowedFd<'_>) -> Result<(), Error> {
    let mut messages = Messages::default();
    let create = flags::ACK | flags::CREATE | flags::EXCLUSIVE;
    messages.push(NEW_LINK, create, &link_header(0, 0), |w| {
        w.text(attr::NAME, name).nested(attr::LINK_INFO, |w| {
            w.text(attr::INFO_KIND, "veth").nested(attr::INFO_DATA, |w| {
                w.headed(attr::VETH_PEER, &link_header(0, 0), |w| {
                    w.text(attr::NAME, name).bytes(attr::NETNS_FD, &other.as_raw_fd().to_ne_bytes());
                });
            });
        });
    });
    send(&messages, "making a pair of interfaces", &[])
}

/// Takes an interface away.
pub(crate) fn delete(name: &str) -> Result<(), Error> {
    let mut messages = Messages::default();
    messages.push(DELETE_LINK, flags::ACK, &link_header(0, 0), |w| {
        w.text(attr::NAME, name);
    });
    send(&messages, "taking an interface away", &[Errno::ENODEV])
}

/// The calling thread's network namespace, held open.
pub(crate) fn current_namespace() -> Result<File, Error> {
    let path = "/proc/thread-self/ns/net";
    File::open(path).map_err(|source| Error::NamespaceGone { path: path.into(), source })
}

fn send(messages: &Messages, step: &str, harmless: &[Errno]) -> Result<(), Error> {
    let socket = Socket::open(Protocol::Route).map_err(|errno| Error::Netlink(errno.into()))?;
    match socket.transact(messages, 0) {
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
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    for (to, from) in header.chunks_exact_mut(4).zip([0, index, flags, flags]) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    header
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_header(address: Address) -> [u8; 8] {
    let family = if address.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let [a, b, c, d] = address.index.to_ne_bytes();
    [u8::try_from(family).unwrap_or_default(), address.prefix, ADDRESS_FLAGS, address.scope as u8, a, b, c, d]
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
