//! The node's own network namespace, in which the supervisor itself runs.

use std::{fs, io};

use super::run;
use crate::layout::{NODE_ADDRESS, SERVICE_CIDR};

/// Sets up the namespace that this process is in: loopback, the node's address, forwarding.
///
/// # Errors
/// What a system program or the kernel said.
pub fn set_up() -> io::Result<()> {
    run("ip", &["link", "set", "lo", "up"], None)?;
    // Each pod's link gets this address as well (it is the pods' gateway); on `lo` it is there before the first pod is.
    run("ip", &["address", "add", &format!("{NODE_ADDRESS}/32"), "dev", "lo"], None)?;
    // The node's own calls to Services are routed before they are translated: any route will do, as long as there is one.
    run("ip", &["route", "add", SERVICE_CIDR, "dev", "lo", "src", &NODE_ADDRESS.to_string()], None)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
}
