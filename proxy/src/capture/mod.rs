//! Where redirected connections arrive: listener sockets, and the address that the caller really meant.
//!
//! Owns accepting and the refusal of calls that were not redirected. What happens with an accepted connection is `serve`'s.

mod listener;
mod original_dst;

pub use listener::{Listeners, accept_loop};
pub use original_dst::{NotRedirected, OrigDst, original_dst};
