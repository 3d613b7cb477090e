//! The redirect of a pod's traffic: the typed rule set, its two ways into the kernel, and the check that it works.
//!
//! ```text
//! CaptureSettings -> rules (data) -> nft (one netlink batch)        -> kernel
//!                                 -> iptables (iptables-restore)    ->
//!                                 <- nft (dump), iptables (-save)   <-
//! ```
//! All calls are blocking. By netlink they start no program and need no file of the node but the namespace itself, as long as
//! the namespace shows no rules of iptables. What they do, they do in the calling thread's network namespace; [`in_netns`] and
//! [`apply_in_netns`] do it in another.

mod backend;
mod check;
pub mod command;
mod decide;
mod difference;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod in_force;
mod iptables;
mod link;
mod lock;
mod loopback;
mod netlink;
mod netns;
mod nft;
pub mod rules;
mod sys;
mod text;

use std::{path::Path, time::Duration};

pub use backend::{Backend, By};
pub use check::{
    CheckError, Direction, INBOUND_BANNER, Line, OUTBOUND_BANNER, Outcome, check_as_proxy, check_in_current_netns,
};
pub use error::Error;
pub use in_force::{InForce, in_force};
pub use iptables::Variant;
pub use netns::in_netns;
pub use rules::RuleSet;

use crate::rules::Family;

/// What [`apply_in_current_netns`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Rules now in force, of both families.
    pub rules: usize,
    /// False where the kernel has no IPv6.
    pub ipv6: bool,
    /// The way they took.
    pub by: By,
    /// Why that way, in words.
    pub reason: String,
    /// How long it took.
    pub elapsed: Duration,
}

/// Puts the rules in force in the calling thread's network namespace, by netlink; see [`Backend::apply`] for other ways.
///
/// # Errors
/// [`Error`]; then the rules are as before.
pub fn apply_in_current_netns(rules: &RuleSet) -> Result<Applied, Error> {
    Backend::Nft.apply(rules)
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

/// Takes our rules, by whichever way they came, and `::6` out of the calling thread's network namespace. Succeeds where there is
/// nothing.
///
/// # Errors
/// [`Error`]
pub fn clean_in_current_netns() -> Result<(), Error> {
    in_force::clean()
}

/// Reads the rules in force in the calling thread's network namespace. Their text form is what `nft` would print; that of
/// [`in_force`] is the back end's own.
///
/// # Errors
/// [`Error`]
pub fn show_in_current_netns() -> Result<RuleSet, Error> {
    Ok(in_force()?.into_iter().next().map_or_else(|| RuleSet::from_tables(Vec::new()), |set| set.rules))
}

/// Compares the rules in force in the calling thread's network namespace, by whichever way they came, with those that should be.
/// It proves that they are there; [`check_in_current_netns`] proves that they work.
///
/// # Errors
/// [`Error::Differs`] names the first difference.
pub fn verify_in_current_netns(rules: &RuleSet) -> Result<(), Error> {
    in_force::verify(rules)
}

/// What `iptables-restore` would be given for the rules.
///
/// # Errors
/// [`Error::Inexpressible`]
pub fn iptables_input(rules: &RuleSet) -> Result<String, Error> {
    iptables::input(rules)
}

/// The families that this kernel has.
fn families() -> &'static [Family] {
    if loopback::has_ipv6() { &[Family::V4, Family::V6] } else { &[Family::V4] }
}
