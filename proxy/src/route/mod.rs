//! Which route a request takes: immutable match tables over the codec-neutral head.
//!
//! The configuration gives [`RouteSpec`]s in order of precedence; [`RouteTable::find`] answers with the first that matches. A route
//! carries what is done with the request ([`Action`]), the header edits, and what else is asked ([`Policy`]); [`Split`] spreads requests over weighted clusters. What
//! a cluster is, the caller decides (`C`). Tables are built off the request path and swapped whole; only the counters of splits
//! outlive a swap.

mod bucket;
mod chance;
mod cors;
mod index;
mod injection;
mod key;
mod matching;
mod pattern;
mod policy;
mod redirect;
mod retry;
mod rewrite;
mod spec;
mod split;
mod table;

pub use bucket::{Bucket, RateLimit};
pub use chance::Chance;
pub use cors::{Cors, Lines, Origin, OriginPattern, Preflight};
pub use injection::{Abort, Injection};
pub use key::{Cookie, Key, KeyFrom, KeyPart, Session, SessionIn, key, source_hash};
pub use pattern::Substitution;
pub use policy::{Mirror, Policy};
pub use redirect::{Redirect, RedirectPath};
pub use retry::{Attempt, Conditions, Pause, Retry};
pub use rewrite::{BadPath, PathRewrite};
pub use spec::{ActionSpec, HeaderSpec, MatchSpec, PathSpec, QuerySpec, RouteSpec, TargetSpec, TextSpec};
pub use split::{Split, Target};
pub use table::{Action, Route, RouteError, RouteTable};

#[cfg(test)]
mod tests;
