//! Chains and rules as netlink attributes. Each condition loads a register and compares it, as the `nft` program does it, so
//! that `nft list ruleset` shows the rules as they were meant.

use std::net::IpAddr;

use ipnet::IpNet;

use super::numbers::{
    ACCEPT, CMP_EQUAL, CMP_NOT_EQUAL, CT_STATE, CT_STATE_INVALID, CT_ZONE, INTERFACE_NAME_BYTES, LOOPBACK_INDEX,
    META_IIFNAME, META_L4PROTO, META_OIF, META_OIFNAME, META_SKUID, PAYLOAD_NETWORK, PAYLOAD_TRANSPORT, PROTO_TCP,
    PROTO_UDP, REG, REG_VERDICT, SUBSYSTEM, USERDATA_COMMENT, VERDICT_DROP, VERDICT_GOTO, VERDICT_RETURN, attr,
};
use crate::{
    netlink::attributes::Writer,
    rules::{Action, Chain, Family, Hook, Kind, MAX_COMMENT, Match, Priority, Protocol, Rule, Side, TABLE},
};

/// Bytes of `struct nfgenmsg`.
pub(super) const FAMILY_HEADER: usize = 4;

/// Header of the messages that begin and end a batch: no family, version 0, the subsystem.
pub(super) const BATCH_HEADER: [u8; FAMILY_HEADER] = {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
};

/// Header of a message about a table of this family.
pub(super) fn family_header(family: Family) -> [u8; FAMILY_HEADER] {
    let number = match family {
        Family::V4 => 2,  // NFPROTO_IPV4
        Family::V6 => 10, // NFPROTO_IPV6
    };
    [number, 0, 0, 0]
}

pub(super) fn chain(chain: &Chain, w: &mut Writer<'_>) {
    w.text(attr::chain::TABLE, TABLE).text(attr::chain::NAME, &chain.name);
    if let Some(base) = chain.base {
        w.nested(attr::chain::HOOK, |w| {
            w.be32(attr::hook::NUMBER, hook_number(base.hook));
            w.be32(attr::hook::PRIORITY, priority_number(base.priority).cast_unsigned());
        });
        w.be32(attr::chain::POLICY, ACCEPT);
        w.text(attr::chain::TYPE, kind_name(base.kind));
    }
}

pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
    }
}

pub(super) fn priority_number(priority: Priority) -> i32 {
    match priority {
        Priority::Raw => -300,
        Priority::Mangle => -150,
        Priority::Dstnat => -100,
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Filter => "filter",
        Kind::Nat => "nat",
    }
}

pub(crate) fn rule(family: Family, chain: &str, rule: &Rule, w: &mut Writer<'_>) {
    w.text(attr::rule::TABLE, TABLE).text(attr::rule::CHAIN, chain);
    w.nested(attr::rule::EXPRESSIONS, |w| {
        for one in &rule.matches {
            condition(family, one, w);
        }
        action(&rule.action, w);
    });
    let comment = rule.comment.as_bytes();
    let comment = comment.get(..comment.len().min(MAX_COMMENT)).unwrap_or_default();
    if !comment.is_empty() {
        let len = u8::try_from(comment.len()).unwrap_or_default().saturating_add(1);
        let mut userdata = vec![USERDATA_COMMENT, len];
        userdata.extend_from_slice(comment);
        userdata.push(0);
        w.bytes(attr::rule::USERDATA, &userdata);
    }
}

fn condition(family: Family, one: &Match, w: &mut Writer<'_>) {
    match one {
        Match::User(uid) => {
            meta(META_SKUID, w);
            compare(CMP_EQUAL, &uid.to_ne_bytes(), w);
        }
        Match::OutLoopback => {
            meta(META_OIF, w);
            compare(CMP_EQUAL, &LOOPBACK_INDEX.to_ne_bytes(), w);
        }
        Match::InInterface(name) => interface(META_IIFNAME, name, w),
        Match::OutInterface(name) => interface(META_OIFNAME, name, w),
        Match::Protocol(protocol) => transport(*protocol, w),
        Match::Port(protocol, side, port) => {
            transport(*protocol, w);
            payload(PAYLOAD_TRANSPORT, port_offset(*side), 2, w);
            compare(CMP_EQUAL, &port.to_be_bytes(), w);
        }
        Match::Address(side, net) => address(family, *side, *net, CMP_EQUAL, w),
        Match::NotAddress(side, net) => address(family, *side, *net, CMP_NOT_EQUAL, w),
        Match::Invalid => {
            expression("ct", w, |w| {
                w.be32(attr::ct::DREG, REG).be32(attr::ct::KEY, CT_STATE);
            });
            mask(&CT_STATE_INVALID.to_ne_bytes(), w);
            compare(CMP_NOT_EQUAL, &0u32.to_ne_bytes(), w);
        }
    }
}

fn action(action: &Action, w: &mut Writer<'_>) {
    match action {
        Action::Return => verdict(VERDICT_RETURN, None, w),
        Action::Drop => verdict(VERDICT_DROP, None, w),
        Action::Goto(chain) => verdict(VERDICT_GOTO, Some(chain), w),
        Action::Redirect(port) => {
            load(&port.to_be_bytes(), w);
            expression("redir", w, |w| {
                w.be32(attr::redir::PORT_MIN, REG);
            });
        }
        Action::Zone(zone) => {
            load(&zone.to_ne_bytes(), w);
            expression("ct", w, |w| {
                w.be32(attr::ct::KEY, CT_ZONE).be32(attr::ct::SREG, REG);
            });
        }
    }
}

fn expression(name: &str, w: &mut Writer<'_>, fill: impl FnOnce(&mut Writer<'_>)) {
    w.nested(attr::list::ELEMENT, |w| {
        w.text(attr::expr::NAME, name).nested(attr::expr::DATA, fill);
    });
}

fn meta(key: u32, w: &mut Writer<'_>) {
    expression("meta", w, |w| {
        w.be32(attr::meta::KEY, key).be32(attr::meta::DREG, REG);
    });
}

fn compare(op: u32, value: &[u8], w: &mut Writer<'_>) {
    expression("cmp", w, |w| {
        w.be32(attr::cmp::SREG, REG).be32(attr::cmp::OP, op).nested(attr::cmp::DATA, |w| {
            w.bytes(attr::data::VALUE, value);
        });
    });
}

fn payload(base: u32, offset: u32, len: u32, w: &mut Writer<'_>) {
    expression("payload", w, |w| {
        w.be32(attr::payload::DREG, REG).be32(attr::payload::BASE, base);
        w.be32(attr::payload::OFFSET, offset).be32(attr::payload::LEN, len);
    });
}

fn mask(mask: &[u8], w: &mut Writer<'_>) {
    expression("bitwise", w, |w| {
        w.be32(attr::bitwise::SREG, REG).be32(attr::bitwise::DREG, REG);
        w.be32(attr::bitwise::LEN, u32::try_from(mask.len()).unwrap_or_default());
        w.nested(attr::bitwise::MASK, |w| {
            w.bytes(attr::data::VALUE, mask);
        });
        w.nested(attr::bitwise::XOR, |w| {
            w.bytes(attr::data::VALUE, &vec![0; mask.len()]);
        });
    });
}

fn load(value: &[u8], w: &mut Writer<'_>) {
    expression("immediate", w, |w| {
        w.be32(attr::immediate::DREG, REG).nested(attr::immediate::DATA, |w| {
            w.bytes(attr::data::VALUE, value);
        });
    });
}

fn verdict(code: u32, chain: Option<&str>, w: &mut Writer<'_>) {
    expression("immediate", w, |w| {
        w.be32(attr::immediate::DREG, REG_VERDICT).nested(attr::immediate::DATA, |w| {
            w.nested(attr::data::VERDICT, |w| {
                w.be32(attr::verdict::CODE, code);
                if let Some(chain) = chain {
                    w.text(attr::verdict::CHAIN, chain);
                }
            });
        });
    });
}

fn interface(key: u32, name: &str, w: &mut Writer<'_>) {
    let mut padded = [0u8; INTERFACE_NAME_BYTES];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    meta(key, w);
    compare(CMP_EQUAL, &padded, w);
}

fn transport(protocol: Protocol, w: &mut Writer<'_>) {
    let number = match protocol {
        Protocol::Tcp => PROTO_TCP,
        Protocol::Udp => PROTO_UDP,
    };
    meta(META_L4PROTO, w);
    compare(CMP_EQUAL, &[number], w);
}

pub(super) fn port_offset(side: Side) -> u32 {
    match side {
        Side::Source => 0,
        Side::Destination => 2,
    }
}

/// Where the address stands in the network header, and its length.
pub(super) fn address_place(family: Family, side: Side) -> (u32, u32) {
    match (family, side) {
        (Family::V4, Side::Source) => (12, 4),
        (Family::V4, Side::Destination) => (16, 4),
        (Family::V6, Side::Source) => (8, 16),
        (Family::V6, Side::Destination) => (24, 16),
    }
}

fn address(family: Family, side: Side, net: IpNet, op: u32, w: &mut Writer<'_>) {
    let (offset, len) = address_place(family, side);
    payload(PAYLOAD_NETWORK, offset, len, w);
    if net.prefix_len() < net.max_prefix_len() {
        mask(&octets(net.netmask()), w);
    }
    compare(op, &octets(net.network()), w);
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
