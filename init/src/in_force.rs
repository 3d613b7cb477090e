//! What of ours is in force in a namespace, whichever way it came: reading, comparing, taking away.

use std::fmt;

use crate::{
    backend::By,
    difference::{Language, difference},
    error::Error,
    families, iptables,
    iptables::{Iptables, Traces, Variant, traces},
    lock::lock,
    loopback, nft,
    rules::{Family, RuleSet},
};

/// Our rules that iptables holds, by variant.
pub(crate) fn left_by_iptables(families: &'static [Family], traces: &Traces) -> Result<Vec<Iptables>, Error> {
    let mut left = Vec::new();
    for variant in Variant::ALL {
        let certain = variant == Variant::Nft && traces.ours_by_nft;
        if !certain && (variant == Variant::Nft || !traces.any(variant)) {
            continue;
        }
        match Iptables::open(variant, families, traces)? {
            None if certain => return Err(Error::NoIptablesForOurs),
            None => {}
            Some(one) => left.extend(one.has_ours().then_some(one)),
        }
    }
    Ok(left)
}

/// A set of our rules that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The way it took.
    pub by: By,
    /// The rules.
    pub rules: RuleSet,
    text: String,
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// All sets of our rules in the calling thread's network namespace: one, as a rule, or none.
///
/// # Errors
/// [`Error`]
pub fn in_force() -> Result<Vec<InForce>, Error> {
    let families = families();
    let mut all = Vec::new();
    match nft::read(families) {
        // Where the kernel has no nf_tables there is nothing by it.
        Err(Error::NoNetfilter | Error::Unsupported { .. }) => {}
        Err(error) => return Err(error),
        Ok(rules) if rules.tables().is_empty() => {}
        Ok(rules) => {
            let text = rules.to_string();
            all.push(InForce { by: By::Netlink, rules, text });
        }
    }
    for one in left_by_iptables(families, &traces(families)?)? {
        let text = iptables::text(one.variant, one.parts());
        all.push(InForce { by: By::Iptables(one.variant), rules: iptables::rules(one.parts()), text });
    }
    Ok(all)
}

/// Compares what is in force with what should be.
pub(crate) fn verify(rules: &RuleSet) -> Result<(), Error> {
    let families = families();
    let sets = in_force()?;
    let (by, have) = match sets.as_slice() {
        [] => (By::Netlink, &RuleSet::from_tables(Vec::new())),
        [one] => (one.by, &one.rules),
        several => {
            let all: Vec<String> = several.iter().map(|one| one.by.to_string()).collect();
            return Err(Error::Differs(format!("there is more than one set of rules: by {}", all.join(" and by "))));
        }
    };
    let (want, language) = match by {
        By::Netlink => {
            let tables = rules.tables().iter().filter(|table| families.contains(&table.family)).cloned().collect();
            (RuleSet::from_tables(tables), Language::Nft)
        }
        By::Iptables(_) => (iptables::canonical(rules, families)?, Language::Iptables),
    };
    match difference(&want, have, language) {
        None => Ok(()),
        Some(difference) => Err(Error::Differs(difference)),
    }
}

/// Takes our rules away, whichever way they came.
pub(crate) fn clean() -> Result<(), Error> {
    let families = families();
    let traces = traces(families)?;
    if traces.may_be_ours() {
        let _lock = lock()?;
        left_by_iptables(families, &traces)?.iter().try_for_each(Iptables::clean)?;
    }
    if traces.ours_by_netlink {
        nft::clean(families)?;
    }
    loopback::clean(families.contains(&Family::V6))
}
