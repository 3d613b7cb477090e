//! What differs between the rules that should be and those that are, for a person.

use crate::{
    iptables,
    rules::{Chain, Family, Rule, RuleSet, TABLE},
    text::RuleText,
};

/// How a difference is said: as the tools of the back end say it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Language {
    Nft,
    Iptables,
}

impl Language {
    fn table(self, family: Family) -> String {
        match (self, family) {
            (Self::Nft, family) => format!("table {family} {TABLE}"),
            (Self::Iptables, Family::V4) => "iptables".into(),
            (Self::Iptables, Family::V6) => "ip6tables".into(),
        }
    }

    fn chain(self, family: Family, chain: &Chain) -> String {
        match self {
            Self::Nft => format!("chain {} of {}", chain.name, self.table(family)),
            Self::Iptables => {
                format!("chain {} of {}", iptables::chain_name(&chain.name), self.table(family))
            }
        }
    }

    fn rule(self, family: Family, rule: &Rule) -> String {
        match self {
            Self::Nft => RuleText { rule, family, indent: "" }.to_string(),
            Self::Iptables => iptables::rule_text(family, rule),
        }
    }
}

/// What differs between what should be and what is, for a person; `None` where nothing does.
pub(crate) fn difference(want: &RuleSet, have: &RuleSet, language: Language) -> Option<String> {
    for table in want.tables() {
        let family = table.family;
        let Some(other) = have.table(family) else { return Some(format!("{} is missing", language.table(family))) };
        for chain in &table.chains {
            let Some(found) = other.chains.iter().find(|c| c.name == chain.name) else {
                return Some(format!("{} is missing", language.chain(family, chain)));
            };
            if let Some(text) = chain_difference(family, chain, found, language) {
                return Some(text);
            }
        }
        if let Some(extra) = other.chains.iter().find(|c| !table.chains.iter().any(|want| want.name == c.name)) {
            return Some(format!("{} should not be there", language.chain(family, extra)));
        }
    }
    None
}

fn chain_difference(family: Family, want: &Chain, have: &Chain, language: Language) -> Option<String> {
    let place = language.chain(family, want);
    if want.base != have.base {
        return Some(match language {
            Language::Nft => format!("{place} hangs elsewhere"),
            Language::Iptables => format!("not exactly one jump leads to {place}"),
        });
    }
    let text = |rule: &Rule| language.rule(family, rule);
    for n in 0..want.rules.len().max(have.rules.len()) {
        let number = n.saturating_add(1);
        match (want.rules.get(n), have.rules.get(n)) {
            (Some(want), Some(have)) if want == have => {}
            (Some(want), Some(have)) => {
                return Some(format!("{place}, rule {number}: is `{}`, should be `{}`", text(have), text(want)));
            }
            (Some(want), None) => return Some(format!("{place}, rule {number} is missing: `{}`", text(want))),
            (None, Some(have)) => return Some(format!("{place}, rule {number} is not ours: `{}`", text(have))),
            (None, None) => {}
        }
    }
    None
}
