//! Lines of iptables back into rules.
//!
//! Only what `render` writes is understood. Anything else becomes a rule that can equal none of ours and says what it could not
//! read, so that a foreign rule in one of our chains is seen and never mistaken.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;

use super::{
    parts::{Part, Parts},
    render::{base, plain_name},
};
use crate::rules::{Action, Base, Chain, Family, Match, Protocol, Rule, Side, Table};

/// The rules that the lines mean.
pub(super) fn table(parts: &Parts) -> Table {
    let mut chains: Vec<Chain> = Vec::new();
    for part in &parts.tables {
        for lines in &part.chains {
            chains.push(Chain {
                name: Cow::Owned(plain_name(&lines.chain)),
                base: hanging(part, &lines.chain),
                rules: lines.rules.iter().map(|line| rule(parts.family, line)).collect(),
            });
        }
    }
    Table { family: parts.family, chains }
}

/// A chain hangs where exactly one jump without conditions leads to it.
fn hanging(part: &Part, chain: &str) -> Option<Base> {
    let jump = format!("-j {chain}");
    let mut leading = part.jumps.iter().filter(|one| one.rule.ends_with(&format!(" {chain}")));
    match (leading.next(), leading.next()) {
        (Some(only), None) if only.rule == jump => base(&part.table, &only.from),
        _ => None,
    }
}

fn rule(family: Family, line: &str) -> Rule {
    words(line).and_then(|words| Fields::read(family, &words)?.rule()).unwrap_or_else(|| {
        let line: String = line.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(100).collect();
        // Ours never return without a condition and a reason.
        Rule { matches: Vec::new(), action: Action::Return, comment: Cow::Owned(format!("unreadable: {line}")) }
    })
}

/// Splits as `iptables-restore` does: by blanks, with `"…"` and `\` in it. `None` where a quote has no end.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(characters.next()?),
            ' ' | '\t' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

/// What a line says, each at most once.
#[derive(Default)]
struct Fields {
    source: Option<Match>,
    destination: Option<Match>,
    input: Option<Match>,
    output: Option<Match>,
    protocol: Option<Protocol>,
    port: Option<(Side, u16)>,
    user: Option<Match>,
    state: Option<Match>,
    comment: Option<String>,
    target: Option<(String, String)>,
    argument: Option<(String, u16)>,
}

impl Fields {
    fn read(family: Family, words: &[String]) -> Option<Self> {
        let mut fields = Self::default();
        let mut rest = words.iter().map(String::as_str);
        while let Some(word) = rest.next() {
            let (not, option) = if word == "!" { (true, rest.next()?) } else { (false, word) };
            let value = rest.next()?;
            if not && !matches!(option, "-s" | "-d") {
                return None;
            }
            let fresh = match option {
                "-s" => fields.source.replace(address(family, Side::Source, not, value)?).is_none(),
                "-d" => fields.destination.replace(address(family, Side::Destination, not, value)?).is_none(),
                "-i" => fields.input.replace(Match::InInterface(interface(value)?)).is_none(),
                "-o" => fields.output.replace(output(value)?).is_none(),
                "-p" => fields.protocol.replace(protocol(value)?).is_none(),
                "-m" => matches!(value, "tcp" | "udp" | "owner" | "conntrack" | "comment"),
                "--sport" => fields.port.replace((Side::Source, value.parse().ok()?)).is_none(),
                "--dport" => fields.port.replace((Side::Destination, value.parse().ok()?)).is_none(),
                "--uid-owner" => fields.user.replace(Match::User(value.parse().ok()?)).is_none(),
                "--ctstate" => value == "INVALID" && fields.state.replace(Match::Invalid).is_none(),
                "--comment" => fields.comment.replace(value.to_owned()).is_none(),
                "-j" | "-g" => fields.target.replace((option.to_owned(), value.to_owned())).is_none(),
                "--to-ports" | "--zone" => fields.argument.replace((option.to_owned(), value.parse().ok()?)).is_none(),
                _ => false,
            };
            if !fresh {
                return None;
            }
        }
        Some(fields)
    }

    fn rule(self) -> Option<Rule> {
        let (how, target) = self.target?;
        let argument = self.argument.as_ref().map(|(option, value)| (option.as_str(), *value));
        let action = match (how.as_str(), target.as_str(), argument) {
            ("-j", "RETURN", None) => Action::Return,
            ("-j", "DROP", None) => Action::Drop,
            ("-j", "REDIRECT", Some(("--to-ports", port))) => Action::Redirect(port),
            ("-j", "CT", Some(("--zone", zone))) => Action::Zone(zone),
            ("-g", chain, None) => Action::Goto(Cow::Owned(plain_name(chain))),
            _ => return None,
        };
        let transport = match (self.protocol, self.port) {
            (Some(protocol), Some((side, port))) => Some(Match::Port(protocol, side, port)),
            (Some(protocol), None) => Some(Match::Protocol(protocol)),
            (None, None) => None,
            (None, Some(_)) => return None,
        };
        let matches = [self.source, self.destination, self.input, self.output, transport, self.user, self.state];
        let comment = Cow::Owned(self.comment.unwrap_or_default());
        Some(Rule { matches: matches.into_iter().flatten().collect(), action, comment })
    }
}

fn address(family: Family, side: Side, not: bool, value: &str) -> Option<Match> {
    let net = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))?;
    if !family.has(net.addr()) {
        return None;
    }
    Some(if not { Match::NotAddress(side, net) } else { Match::Address(side, net) })
}

/// `iptables-save` has names where it knows them.
fn protocol(word: &str) -> Option<Protocol> {
    match word {
        "tcp" | "6" => Some(Protocol::Tcp),
        "udp" | "17" => Some(Protocol::Udp),
        _ => None,
    }
}

/// One with a `+` stands for many.
fn interface(name: &str) -> Option<String> {
    (!name.ends_with('+')).then(|| name.to_owned())
}

fn output(name: &str) -> Option<Match> {
    if name == "lo" { Some(Match::OutLoopback) } else { interface(name).map(Match::OutInterface) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_mesh::CaptureSettings;

    use super::*;
    use crate::{
        iptables::{parts::read, render},
        rules::RuleSet,
    };

    #[test]
    fn what_was_rendered_comes_back() {
        let settings = CaptureSettings::from_json(
            r#"{"version":1,"excludeInboundPorts":[22],"excludeOutboundPorts":[25],"skipInterfaces":["net1","lo"],
                "includeOutboundCidrs":["198.18.0.0/16","fd00::/8","198.19.1.1/32"],"blockUdp":true,
                "excludeOutboundCidrs":["198.18.9.0/24","fd00:9::/32"],"dnsServers":["198.19.0.10","fd00:1::a"]}"#,
        )
        .unwrap();
        for want in RuleSet::new(&settings).tables() {
            let parts = render(want).unwrap();
            let got = table(&parts);
            assert_eq!(got, table(&read(want.family, &parts.to_string())), "printed and read");
            assert_eq!(got.chains.len(), want.chains.len());
            for chain in &want.chains {
                let found = got.chains.iter().find(|found| found.name == chain.name).unwrap();
                assert_eq!(found.base, chain.base, "{}", chain.name);
                for (found, rule) in found.rules.iter().zip(&chain.rules) {
                    assert_eq!((&found.action, &found.comment), (&rule.action, &rule.comment));
                    assert_eq!(found.matches.len(), rule.matches.len(), "{rule:?}");
                }
                assert_eq!(found.rules.len(), chain.rules.len());
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_never_mistaken() {
        for line in [
            "-j ACCEPT",
            "-p tcp -j REDIRECT --to-ports 15001 --random",
            "-p tcp -m tcp --dport 80:90 -j RETURN",
            "-m owner ! --uid-owner 1337 -j RETURN",
            "-m owner --gid-owner 1337 -j RETURN",
            "-i eth+ -j RETURN",
            "-m conntrack --ctstate INVALID,NEW -j DROP",
            "-d fd00::/8 -j RETURN",
            "-d 198.18.0.0/16 -d 198.18.0.0/16 -j RETURN",
            "-m mark --mark 0x1 -j RETURN",
            "-m comment --comment \"no end -j RETURN",
            "-p tcp",
            "",
        ] {
            let rule = rule(Family::V4, line);
            assert!(rule.matches.is_empty() && rule.comment.starts_with("unreadable: "), "{line}: {rule:?}");
        }
    }

    #[test]
    fn a_chain_hangs_by_one_jump() {
        let hangs = |jumps: &str| {
            let text = format!("*nat\n:WEIR_OUTPUT - [0:0]\n{jumps}-A WEIR_OUTPUT -p tcp -j RETURN\nCOMMIT\n");
            table(&read(Family::V4, &text)).chains[0].base.is_some()
        };
        assert!(hangs("-A OUTPUT -j WEIR_OUTPUT\n"));
        assert!(!hangs(""));
        assert!(!hangs("-A OUTPUT -j WEIR_OUTPUT\n-A OUTPUT -j WEIR_OUTPUT\n"));
        assert!(!hangs("-A OUTPUT -p tcp -j WEIR_OUTPUT\n"));
        assert!(!hangs("-A POSTROUTING -j WEIR_OUTPUT\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}") {
            for family in [Family::V4, Family::V6] {
                let _ = rule(family, &text);
                let _ = table(&read(family, &format!("*nat\n{text}\n-A WEIR_X {text}\n")));
            }
        }
    }
}
