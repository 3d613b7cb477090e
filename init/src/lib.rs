//! The redirect of a pod's traffic: the typed rule set, nf_tables by netlink, and the check that it works.
//!
//! ```text
//! CaptureSettings -> rules (data) -> nft (one netlink batch) -> kernel
//!                                 <- nft (dump)              <-
//! ```
//! All calls are blocking, start no program and need no file of the node but the namespace itself. What they do, they do in
//! the calling thread's network namespace; [`in_netns`] and [`apply_in_netns`] do it in another.

mod check;
pub mod command;
mod decide;
mod error;
mod link;
mod loopback;
mod netlink;
mod netns;
mod nft;
pub mod rules;
mod sys;
mod text;

use std::{
    path::Path,
    time::{Duration, Instant},
};

pub use check::{
    CheckError, Direction, INBOUND_BANNER, Line, OUTBOUND_BANNER, Outcome, check_as_proxy, check_in_current_netns,
};
pub use error::Error;
pub use netns::in_netns;
pub use rules::RuleSet;

use crate::rules::Family;

/// What [`apply_in_current_netns`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Rules now in force, of both families.
    pub rules: usize,
    /// False where the kernel has no IPv6.
    pub ipv6: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// Puts the rules in force in the calling thread's network namespace: all of them or none. Rules of an earlier call are
/// replaced, so that the same input gives the same state; tables of others are not touched.
///
/// # Errors
/// [`Error`]; then the rules are as before.
pub fn apply_in_current_netns(rules: &RuleSet) -> Result<Applied, Error> {
    let start = Instant::now();
    let families = families();
    let ipv6 = families.contains(&Family::V6);
    loopback::prepare(ipv6)?;
    let rules = nft::apply(rules, families)?;
    Ok(Applied { rules, ipv6, elapsed: start.elapsed() })
}

/// [`apply_in_current_netns`] in the network namespace of the file `path`; the caller's namespace does not change.
///
/// # Errors
/// [`Error`]; then the rules are as before.
pub fn apply_in_netns(path: &Path, rules: &RuleSet) -> Result<Applied, Error> {
    in_netns(path, || apply_in_current_netns(rules))
}

/// Tries the rules in a network namespace made for it, which ends with the call: does this kernel take them? The caller's
/// namespace does not change. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// [`Error`]
pub fn try_in_new_netns(rules: &RuleSet) -> Result<Applied, Error> {
    netns::in_new_netns(|| apply_in_current_netns(rules))
}

/// Takes our tables and `::6` out of the calling thread's network namespace. Succeeds where there is nothing.
///
/// # Errors
/// [`Error`]
pub fn clean_in_current_netns() -> Result<(), Error> {
    let families = families();
    nft::clean(families)?;
    loopback::clean(families.contains(&Family::V6))
}

/// Reads the rules in force in the calling thread's network namespace. Its text form is what `nft` would print.
///
/// # Errors
/// [`Error`]
pub fn show_in_current_netns() -> Result<RuleSet, Error> {
    nft::read(families())
}

/// Compares the rules in force in the calling thread's network namespace with those that should be. It proves that they are
/// there; [`check_in_current_netns`] proves that they work.
///
/// # Errors
/// [`Error::Differs`] names the first difference.
pub fn verify_in_current_netns(rules: &RuleSet) -> Result<(), Error> {
    let families = families();
    let have = nft::read(families)?;
    let tables = rules.tables().iter().filter(|table| families.contains(&table.family)).cloned().collect();
    match text::difference(&RuleSet::from_tables(tables), &have) {
        None => Ok(()),
        Some(difference) => Err(Error::Differs(difference)),
    }
}

/// The families that this kernel has.
fn families() -> &'static [Family] {
    if loopback::has_ipv6() { &[Family::V4, Family::V6] } else { &[Family::V4] }
}
