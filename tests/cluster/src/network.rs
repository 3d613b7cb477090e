//! The nodes' network: a bridge in a place of its own, and one veth pair to each node and to the control plane.
//!
//! The pods of each node have a network of their own, with a route to it on every other machine: no overlay, as clouds do it.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    address::Host,
    place::{Place, ip},
};

/// Settings of a machine that forwards for its pods.
const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// The bridge that all machines hang on.
#[derive(Debug)]
pub(crate) struct Switch {
    place: Place,
    nodes: u8,
    dual_stack: bool,
}

impl Switch {
    pub(crate) fn new(nodes: u8, dual_stack: bool) -> Result<Self> {
        let place = Place::new(|| Ok(()))?;
        place.run(|| ip(&["link add sw type bridge".to_owned(), "link set sw up".to_owned()])).context("a bridge")?;
        Ok(Self { place, nodes, dual_stack })
    }

    /// Gives a machine its link, addresses and routes.
    pub(crate) fn attach(&self, host: Host, machine: &Place) -> Result<()> {
        let port = format!("p{}", host.0);
        machine.run(|| {
            fs::write(FORWARD_V4, "1").context(FORWARD_V4)?;
            ip(&[
                format!("link add eth0 type veth peer name {port} netns {}", self.place.net_path().display()),
                format!("addr add {}/24 dev eth0", host.v4()),
                "link set eth0 up".to_owned(),
            ])
        })?;
        self.place.run(|| ip(&[format!("link set {port} master sw up")]))?;
        machine.run(|| ip(&self.routes(host, Host::v4, Host::pods_v4)))?;
        if self.dual_stack {
            machine.run(|| {
                fs::write(FORWARD_V6, "1").context("IPv6 is off on this machine: a dual-stack cluster needs it")?;
                // Nobody else is there who could have the address.
                ip(&[format!("addr add {}/64 dev eth0 nodad", host.v6())])?;
                ip(&self.routes(host, Host::v6, Host::pods_v6))
            })?;
        }
        Ok(())
    }

    fn routes(&self, host: Host, address: fn(Host) -> String, pods: fn(Host) -> String) -> Vec<String> {
        let others = (1..=self.nodes).filter(|other| *other != host.0).map(Host);
        let mut routes: Vec<String> =
            others.map(|other| format!("route add {} via {}", pods(other), address(other))).collect();
        if host.0 != 0 {
            // Nothing answers behind it; a machine without a default route refuses some Service addresses at once.
            routes.push(format!("route add default via {}", address(Host(0))));
        }
        routes
    }
}
