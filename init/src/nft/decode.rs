//! Netlink attributes back into chains and rules.
//!
//! Only what `encode` writes is understood. Anything else becomes a rule that can equal none of ours and says what it could
//! not read, so that a foreign rule in our table is seen and never mistaken.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;

use super::{
    NamedChain,
    encode::{address_place, hook_number, kind_name, port_offset, priority_number},
    numbers::{
        CMP_EQUAL, CMP_NOT_EQUAL, CT_STATE, CT_STATE_INVALID, CT_ZONE, LOOPBACK_INDEX, META_IIFNAME, META_L4PROTO,
        META_OIF, META_OIFNAME, META_SKUID, PAYLOAD_NETWORK, PAYLOAD_TRANSPORT, PROTO_TCP, PROTO_UDP, USERDATA_COMMENT,
        VERDICT_DROP, VERDICT_GOTO, VERDICT_RETURN, attr,
    },
};
use crate::{
    netlink::attributes::{self, Reader},
    rules::{Action, Base, Chain, Family, Hook, Kind, Match, Priority, Protocol, Rule, Side, TABLE},
};

/// A chain, without its rules; `None` if it is not of our table.
pub(super) fn chain(reader: Reader<'_>) -> Option<Chain> {
    if reader.text(attr::chain::TABLE)? != TABLE {
        return None;
    }
    let name = reader.text(attr::chain::NAME)?.to_owned();
    let base = reader.nested(attr::chain::HOOK).and_then(|hook| base(hook, reader.text(attr::chain::TYPE)?));
    Some(Chain { name: name.into(), base, rules: Vec::new() })
}

/// The names of a chain and its table.
pub(super) fn named_chain(reader: Reader<'_>) -> Option<NamedChain> {
    let text = |attribute| reader.text(attribute).map(str::to_owned);
    Some(NamedChain { table: text(attr::chain::TABLE)?, name: text(attr::chain::NAME)? })
}

fn base(reader: Reader<'_>, kind: &str) -> Option<Base> {
    let number = reader.be32(attr::hook::NUMBER)?;
    let priority = reader.be32(attr::hook::PRIORITY)?.cast_signed();
    Some(Base {
        kind: [Kind::Filter, Kind::Nat].into_iter().find(|k| kind_name(*k) == kind)?,
        hook: [Hook::Prerouting, Hook::Output].into_iter().find(|h| hook_number(*h) == number)?,
        priority: [Priority::Raw, Priority::Mangle, Priority::Dstnat]
            .into_iter()
            .find(|p| priority_number(*p) == priority)?,
    })
}

/// A rule and the chain it is in; `None` if it is not of our table.
pub(crate) fn rule(family: Family, reader: Reader<'_>) -> Option<(String, Rule)> {
    if reader.text(attr::rule::TABLE)? != TABLE {
        return None;
    }
    let chain = reader.text(attr::rule::CHAIN)?.to_owned();
    let comment = reader.get(attr::rule::USERDATA).and_then(comment).unwrap_or_default();
    let mut parser = Parser { family, loaded: Loaded::Nothing, mask: None, matches: Vec::new(), action: None };
    let expressions = reader.nested(attr::rule::EXPRESSIONS).unwrap_or(Reader::new(&[]));
    for (_, element) in expressions {
        let element = Reader::new(element);
        let name = element.text(attr::expr::NAME).unwrap_or("?");
        let data = element.nested(attr::expr::DATA).unwrap_or(Reader::new(&[]));
        if parser.expression(name, data).is_none() {
            return Some((chain, unreadable(name)));
        }
    }
    let Parser { matches, action: Some(action), .. } = parser else { return Some((chain, unreadable("no action"))) };
    Some((chain, Rule { matches, action, comment: Cow::Owned(comment.to_owned()) }))
}

/// Ours never return without a condition and a reason.
fn unreadable(what: &str) -> Rule {
    let what: String = what.chars().filter(char::is_ascii_graphic).take(32).collect();
    Rule { matches: Vec::new(), action: Action::Return, comment: Cow::Owned(format!("unreadable: {what}")) }
}

/// Userdata is a list of (type, length, value) with one byte each for type and length.
fn comment(mut userdata: &[u8]) -> Option<&str> {
    loop {
        let (kind, len) = (*userdata.first()?, usize::from(*userdata.get(1)?));
        let value = userdata.get(2..len.checked_add(2)?)?;
        if kind == USERDATA_COMMENT {
            return attributes::text(value);
        }
        userdata = userdata.get(len.checked_add(2)?..)?;
    }
}

/// What the last expression left in the register.
#[derive(Clone)]
enum Loaded {
    Nothing,
    Meta(u32),
    State,
    Payload { base: u32, offset: u32, len: u32 },
    Value(Vec<u8>),
}

struct Parser {
    family: Family,
    loaded: Loaded,
    mask: Option<Vec<u8>>,
    matches: Vec<Match>,
    action: Option<Action>,
}

impl Parser {
    /// Takes one expression; `None` if it is none of ours.
    fn expression(&mut self, name: &str, data: Reader<'_>) -> Option<()> {
        if self.action.is_some() {
            return None;
        }
        match name {
            "meta" => self.loaded = Loaded::Meta(data.be32(attr::meta::KEY)?),
            "payload" => {
                self.loaded = Loaded::Payload {
                    base: data.be32(attr::payload::BASE)?,
                    offset: data.be32(attr::payload::OFFSET)?,
                    len: data.be32(attr::payload::LEN)?,
                };
            }
            "ct" => match data.be32(attr::ct::KEY)? {
                CT_STATE if data.get(attr::ct::DREG).is_some() => self.loaded = Loaded::State,
                CT_ZONE if data.get(attr::ct::SREG).is_some() => {
                    self.action = Some(Action::Zone(u16::from_ne_bytes(self.value()?)));
                }
                _ => return None,
            },
            "bitwise" => {
                let xor = data.nested(attr::bitwise::XOR)?.get(attr::data::VALUE)?;
                if xor.iter().any(|b| *b != 0) {
                    return None;
                }
                self.mask = Some(data.nested(attr::bitwise::MASK)?.get(attr::data::VALUE)?.to_vec());
            }
            "cmp" => {
                let value = data.nested(attr::cmp::DATA)?.get(attr::data::VALUE)?;
                let one = self.compared(data.be32(attr::cmp::OP)?, value)?;
                self.matches.push(one);
                (self.loaded, self.mask) = (Loaded::Nothing, None);
            }
            "immediate" => {
                let data = data.nested(attr::immediate::DATA)?;
                match data.nested(attr::data::VERDICT) {
                    Some(verdict) => self.action = Some(action(verdict)?),
                    None => self.loaded = Loaded::Value(data.get(attr::data::VALUE)?.to_vec()),
                }
            }
            "redir" => self.action = Some(Action::Redirect(u16::from_be_bytes(self.value()?))),
            _ => return None,
        }
        Some(())
    }

    /// The two bytes that an immediate loaded.
    fn value(&self) -> Option<[u8; 2]> {
        let Loaded::Value(bytes) = &self.loaded else { return None };
        bytes.as_slice().try_into().ok()
    }

    fn compared(&mut self, op: u32, value: &[u8]) -> Option<Match> {
        let number = || value.try_into().ok().map(u32::from_ne_bytes);
        match (self.loaded.clone(), op) {
            (Loaded::State, CMP_NOT_EQUAL) => {
                let invalid = self.mask.as_deref() == Some(&CT_STATE_INVALID.to_ne_bytes()[..]) && number() == Some(0);
                invalid.then_some(Match::Invalid)
            }
            (Loaded::Meta(key), CMP_EQUAL) if self.mask.is_none() => match key {
                META_SKUID => Some(Match::User(number()?)),
                META_OIF => (number()? == LOOPBACK_INDEX).then_some(Match::OutLoopback),
                META_IIFNAME => Some(Match::InInterface(attributes::text(value)?.to_owned())),
                META_OIFNAME => Some(Match::OutInterface(attributes::text(value)?.to_owned())),
                META_L4PROTO => match value {
                    [PROTO_TCP] => Some(Match::Protocol(Protocol::Tcp)),
                    [PROTO_UDP] => Some(Match::Protocol(Protocol::Udp)),
                    _ => None,
                },
                _ => None,
            },
            (Loaded::Payload { base: PAYLOAD_TRANSPORT, offset, len: 2 }, CMP_EQUAL) if self.mask.is_none() => {
                let side = sides().find(|side| port_offset(*side) == offset)?;
                let Some(Match::Protocol(protocol)) = self.matches.pop() else { return None };
                Some(Match::Port(protocol, side, u16::from_be_bytes(value.try_into().ok()?)))
            }
            (Loaded::Payload { base: PAYLOAD_NETWORK, offset, len }, op) => {
                let side = sides().find(|side| address_place(self.family, *side) == (offset, len))?;
                let net = self.network(value)?;
                match op {
                    CMP_EQUAL => Some(Match::Address(side, net)),
                    CMP_NOT_EQUAL => Some(Match::NotAddress(side, net)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn network(&self, value: &[u8]) -> Option<IpNet> {
        let ip = address(self.family, value)?;
        match &self.mask {
            None => Some(IpNet::from(ip)),
            // Bits behind the prefix: such a rule matches nothing, and is no network.
            Some(mask) => {
                IpNet::with_netmask(ip, address(self.family, mask)?).ok().filter(|net| net.addr() == net.network())
            }
        }
    }
}

fn sides() -> impl Iterator<Item = Side> {
    [Side::Source, Side::Destination].into_iter()
}

fn address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn action(verdict: Reader<'_>) -> Option<Action> {
    match verdict.be32(attr::verdict::CODE)? {
        VERDICT_RETURN => Some(Action::Return),
        VERDICT_DROP => Some(Action::Drop),
        VERDICT_GOTO => Some(Action::Goto(Cow::Owned(verdict.text(attr::verdict::CHAIN)?.to_owned()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_mesh::CaptureSettings;

    use super::*;
    use crate::{netlink::attributes::Writer, nft::encode, rules::RuleSet};

    fn settings() -> CaptureSettings {
        CaptureSettings::from_json(
            r#"{"version":1,"excludeInboundPorts":[22],"excludeOutboundPorts":[25],"skipInterfaces":["net1"],
                "includeOutboundCidrs":["198.18.0.0/16","fd00::/8","198.19.1.1/32"],
                "excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32","0.0.0.0/0"],
                "dnsServers":["198.19.0.10","fd00:1::a"]}"#,
        )
        .unwrap()
    }

    #[test]
    fn every_rule_and_chain_comes_back_as_it_was_written() {
        for table in RuleSet::new(&settings()).tables() {
            for want in &table.chains {
                let mut bytes = Vec::new();
                encode::chain(want, &mut Writer::new(&mut bytes));
                let got = chain(Reader::new(&bytes)).unwrap();
                assert_eq!((&got.name, got.base), (&want.name, want.base));
                for one in &want.rules {
                    let mut bytes = Vec::new();
                    encode::rule(table.family, &want.name, one, &mut Writer::new(&mut bytes));
                    assert_eq!(rule(table.family, Reader::new(&bytes)), Some((want.name.to_string(), one.clone())));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            for family in [Family::V4, Family::V6] {
                let _ = rule(family, Reader::new(&bytes));
            }
            let _ = (chain(Reader::new(&bytes)), named_chain(Reader::new(&bytes)), comment(&bytes));
        }

        /// A real rule with some bytes changed reaches deeper than noise.
        #[test]
        fn a_damaged_rule_is_decoded_without_panic(
            pick in any::<prop::sample::Index>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let set = RuleSet::new(&settings());
            let all: Vec<_> = set.tables().iter().flat_map(|t| t.chains.iter().flat_map(move |c| {
                c.rules.iter().map(move |r| (t.family, c.name.clone(), r.clone()))
            })).collect();
            let (family, name, one) = &all[pick.index(all.len())];
            let mut bytes = Vec::new();
            encode::rule(*family, name, one, &mut Writer::new(&mut bytes));
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = rule(*family, Reader::new(&bytes));
        }
    }
}
