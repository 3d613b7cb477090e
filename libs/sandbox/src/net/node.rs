//! The node's own network namespace, in which the supervisor itself runs.

use std::{
    fs, io,
    net::Ipv6Addr,
    path::Path,
    time::{Duration, Instant},
};

use super::run;
use crate::layout::{NODE_ADDRESS, NODE_ADDRESS_V6, SERVICE_CIDR, SERVICE_CIDR_V6};

/// Longest time until an address is usable.
const SETTLED: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Sets up the namespace that this process is in: loopback, the node's address, forwarding.
///
/// # Errors
/// What a system program or the kernel said.
pub fn set_up(ipv6: bool) -> io::Result<()> {
    run("ip", &["link", "set", "lo", "up"], None)?;
    // Each pod's link gets this address as well (it is the pods' gateway); on `lo` it is there before the first pod is.
    run("ip", &["address", "add", &format!("{NODE_ADDRESS}/32"), "dev", "lo"], None)?;
    // The node's own calls to Services are routed before they are translated: any route will do, as long as there is one.
    run("ip", &["route", "add", SERVICE_CIDR, "dev", "lo", "src", &NODE_ADDRESS.to_string()], None)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    if !ipv6 {
        return Ok(());
    }
    usable_at_once()?;
    run("ip", &["address", "add", &format!("{NODE_ADDRESS_V6}/128"), "dev", "lo"], None)?;
    settled(NODE_ADDRESS_V6)?;
    run("ip", &["route", "add", SERVICE_CIDR_V6, "dev", "lo", "src", &NODE_ADDRESS_V6.to_string()], None)?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
}

/// Waits until the kernel lets an address of this namespace be used: it decides on that a moment after it took the address.
fn settled(address: Ipv6Addr) -> io::Result<()> {
    let wanted = format!("{:032x}", u128::from(address));
    let begun = Instant::now();
    loop {
        // Address, interface, length of the prefix, scope, flags, name.
        let text = fs::read_to_string("/proc/net/if_inet6")?;
        let line = text.lines().find(|line| line.starts_with(&wanted)).unwrap_or_default();
        let flags = line.split_ascii_whitespace().nth(4).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        if flags.is_some_and(|flags| flags & libc::IFA_F_TENTATIVE == 0) {
            return Ok(());
        }
        if begun.elapsed() > SETTLED {
            return Err(io::Error::other(format!("address {address} does not become usable")));
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether this kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/default").is_dir()
}

/// Makes addresses of IPv6 usable as soon as an interface of this namespace has them: nobody else is on a pod's link who could
/// have the same one, and looking for it would take a second.
///
/// # Errors
/// What the kernel said.
pub(super) fn usable_at_once() -> io::Result<()> {
    for which in ["all", "default"] {
        let folder = Path::new("/proc/sys/net/ipv6/conf").join(which);
        fs::write(folder.join("disable_ipv6"), "0")?;
        fs::write(folder.join("accept_dad"), "0")?;
    }
    Ok(())
}
