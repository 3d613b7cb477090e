//! What the redirect needs of `lo`: that it is up, and that the proxy can call its application from `::6`.
//!
//! 127.0.0.6 needs nothing (all of 127.0.0.0/8 is local), but of IPv6 only `::1` is.

use std::net::IpAddr;

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use weir_mesh::names::APP_SOURCE_V6;

use crate::{
    error::Error,
    link::{self, Address, Scope},
    nft::LOOPBACK_INDEX,
};

/// Deprecated, so that no application's call ever goes out from it: it is for the proxy, which asks for it.
const APP_SOURCE: Address =
    Address { index: LOOPBACK_INDEX, ip: IpAddr::V6(APP_SOURCE_V6), prefix: 128, scope: Scope::Host, deprecated: true };

/// Does this kernel speak IPv6 at all?
pub(crate) fn has_ipv6() -> bool {
    let opened = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    !matches!(opened, Err(Errno::EAFNOSUPPORT))
}

/// Brings `lo` up and gives it `::6/128`. Both may be so already. Where the namespace has IPv6 switched off on `lo` (the
/// kernel says `EACCES`) there is no IPv6 call to an application that could need the address.
pub(crate) fn prepare(ipv6: bool) -> Result<(), Error> {
    link::up(LOOPBACK_INDEX)?;
    if ipv6 { link::add_address(APP_SOURCE, &[Errno::EEXIST, Errno::EACCES]) } else { Ok(()) }
}

/// Takes `::6/128` from `lo`, if it is there.
pub(crate) fn clean(ipv6: bool) -> Result<(), Error> {
    if ipv6 { link::delete_address(APP_SOURCE) } else { Ok(()) }
}
