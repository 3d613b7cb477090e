//! Which route a request takes: immutable match tables over the codec-neutral head.
//!
//! The configuration gives [`RouteSpec`]s in order of precedence; [`RouteTable::find`] answers with the first that matches. A route
//! carries what is done with the request ([`Action`]) and the header edits; [`Split`] spreads requests over weighted clusters. What
//! a cluster is, the caller decides (`C`). Tables are built off the request path and swapped whole; only the counters of splits
//! outlive a swap.

mod index;
mod matching;
mod pattern;
mod spec;
mod split;
mod table;

pub use spec::{ActionSpec, HeaderSpec, MatchSpec, PathSpec, QuerySpec, RouteSpec, TargetSpec, TextSpec};
pub use split::{Split, Target};
pub use table::{Action, Route, RouteError, RouteTable};

#[cfg(test)]
mod tests;
