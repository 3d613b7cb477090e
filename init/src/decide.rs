//! What a table does with a packet, worked out from the data alone: for the check, which must not expect a connection to be
//! redirected that the rules leave alone, and for tests of the order of the rules.

use std::net::IpAddr;

use crate::rules::{Action, Match, Protocol, Side, Table};

/// The first packet of a connection, as far as rules look at it.
#[derive(Debug, Clone)]
pub(crate) struct Packet<'a> {
    /// Owner of the sending socket; nobody for what comes in.
    pub(crate) user: Option<u32>,
    /// Interface that it comes in by or leaves by.
    pub(crate) interface: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

/// What the chain does with the packet; [`Action::Return`] where no rule speaks of it.
pub(crate) fn decide<'t>(table: &'t Table, chain: &str, packet: &Packet<'_>) -> &'t Action {
    let rules = table.chains.iter().find(|c| c.name == chain).map(|c| c.rules.as_slice()).unwrap_or_default();
    match rules.iter().find(|rule| rule.matches.iter().all(|one| holds(one, packet))).map(|rule| &rule.action) {
        None => &Action::Return,
        // A chain that goes to itself is none that the kernel takes.
        Some(Action::Goto(next)) if next != chain => decide(table, next, packet),
        Some(action) => action,
    }
}

fn holds(one: &Match, packet: &Packet<'_>) -> bool {
    let address = |side: &Side| match side {
        Side::Source => packet.source,
        Side::Destination => packet.destination,
    };
    match one {
        Match::User(user) => packet.user == Some(*user),
        Match::OutLoopback => packet.interface == "lo",
        Match::InInterface(name) | Match::OutInterface(name) => packet.interface == name,
        Match::Protocol(protocol) => packet.protocol == *protocol,
        Match::Port(protocol, side, port) => {
            packet.protocol == *protocol && *side == Side::Destination && packet.port == *port
        }
        Match::Address(side, net) => net.contains(&address(side)),
        Match::NotAddress(side, net) => !net.contains(&address(side)),
        Match::Invalid => false,
    }
}
