//! The back end by the programs `iptables-restore` and `iptables-save`, for kernels without nf_tables' own redirect and for
//! sites whose tooling looks at iptables.
//!
//! ```text
//! Table -> render -> Parts (lines) -> transition -> iptables-restore --noflush -> kernel
//! Table <- parse  <- Parts         <- saved      <- iptables-save              <-
//! ```
//! Only chains whose names begin with [`PREFIX`], and the jumps to them, are ever written. A table changes in one transaction;
//! where one of several refuses, those before it get back what they had.

mod child;
mod parse;
mod parts;
mod programs;
mod render;
mod traces;
mod transition;

use std::fmt::{self, Write as _};

use self::{
    parse::table,
    parts::Parts,
    programs::{Programs, find},
    render::render,
    transition::transition,
};
pub(crate) use self::{
    render::{chain_name, rule_text},
    traces::{Traces, traces},
};
use crate::{
    error::Error,
    rules::{Family, RuleSet},
};

/// What the names of our chains begin with.
pub(crate) const PREFIX: &str = "WEIR_";

/// Which of the kernel's two interfaces the programs speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// nf_tables, with the matches of iptables.
    Nft,
    /// The older interface (`ip_tables`).
    Legacy,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

/// One variant in the current namespace: its programs, and what of ours is in force by it.
pub(crate) struct Iptables {
    pub(crate) variant: Variant,
    programs: Programs,
    families: &'static [Family],
    now: Vec<Parts>,
    others: bool,
}

impl Iptables {
    /// Reads what is in force; `None` where the programs are not installed. A variant without a trace in the namespace is not
    /// asked, which would load its modules.
    pub(crate) fn open(variant: Variant, families: &'static [Family], traces: &Traces) -> Result<Option<Self>, Error> {
        let Some(programs) = find(variant) else { return Ok(None) };
        let (mut now, mut others) = (Vec::new(), false);
        for family in families.iter().copied() {
            if traces.any(variant) {
                let saved = programs.save(family)?;
                others |= parts::has_others(&saved);
                now.push(parts::read(family, &saved));
            } else {
                now.push(Parts::none(family));
            }
        }
        Ok(Some(Self { variant, programs, families, now, others }))
    }

    /// Is something of ours in force by this variant?
    pub(crate) fn has_ours(&self) -> bool {
        self.now.iter().any(|parts| !parts.is_empty())
    }

    /// Are rules of others in force by this variant?
    pub(crate) fn has_others(&self) -> bool {
        self.others
    }

    /// What is in force.
    pub(crate) fn parts(&self) -> &[Parts] {
        &self.now
    }

    /// Puts the rules in force in place of those of ours that are. Returns their number.
    pub(crate) fn apply(&self, rules: &RuleSet) -> Result<usize, Error> {
        let mut want = Vec::new();
        for family in self.families.iter().copied() {
            want.push(match rules.table(family) {
                Some(table) => render(table)?,
                None => Parts::none(family),
            });
        }
        self.change(&want)?;
        Ok(want.iter().map(Parts::rules).sum())
    }

    /// Takes our chains and the jumps to them away.
    pub(crate) fn clean(&self) -> Result<(), Error> {
        self.change(&self.families.iter().copied().map(Parts::none).collect::<Vec<_>>())
    }

    fn change(&self, want: &[Parts]) -> Result<(), Error> {
        for (now, want) in self.now.iter().zip(want) {
            let text = transition(now, want);
            if text.is_empty() {
                continue;
            }
            if let Err(error) = self.programs.restore(now.family, &text) {
                return Err(self.roll_back(error));
            }
        }
        Ok(())
    }

    /// Each table, of each family, is a transaction of its own: those before the failed one are in force already.
    fn roll_back(&self, error: Error) -> Error {
        for before in &self.now {
            let saved = match self.programs.save(before.family) {
                // A family whose interface can not even be read has nothing of ours.
                Err(_) if before.is_empty() => continue,
                saved => saved,
            };
            let back = saved.and_then(|saved| {
                let text = transition(&parts::read(before.family, &saved), before);
                if text.is_empty() { Ok(()) } else { self.programs.restore(before.family, &text) }
            });
            if let Err(second) = back {
                return Error::NotRolledBack { first: Box::new(error), second: Box::new(second) };
            }
        }
        error
    }
}

/// The rules that the lines mean, for comparison and for the check.
pub(crate) fn rules(parts: &[Parts]) -> RuleSet {
    RuleSet::from_tables(parts.iter().filter(|parts| !parts.is_empty()).map(table).collect())
}

/// The rules as they come back from the kernel: iptables orders conditions in its own way, and leaves out what is always true.
pub(crate) fn canonical(rules: &RuleSet, families: &[Family]) -> Result<RuleSet, Error> {
    let tables = rules.tables().iter().filter(|table| families.contains(&table.family));
    Ok(self::rules(&tables.map(render).collect::<Result<Vec<_>, _>>()?))
}

/// The lines as `iptables-save` would print them.
pub(crate) fn text(variant: Variant, parts: &[Parts]) -> String {
    parts.iter().filter(|parts| !parts.is_empty()).fold(String::new(), |mut text, parts| {
        let _ = write!(text, "# {}-{variant}-save\n{parts}", program(parts.family)); // a text takes everything
        text
    })
}

/// What the programs are given in a namespace that has nothing of ours.
pub(crate) fn input(rules: &RuleSet) -> Result<String, Error> {
    let mut text = String::new();
    for table in rules.tables() {
        let input = transition(&Parts::none(table.family), &render(table)?);
        let _ = write!(text, "# {}-restore --noflush\n{input}", program(table.family));
    }
    Ok(text)
}

fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}
