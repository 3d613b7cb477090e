//! Tests over several parts: a small mesh of real binaries, whose every part a test can take hold of.
//!
//! A [`World`] is a network of its own: a namespace as node, one namespace for each pod, linked by veth pairs, with the real
//! `weir-control` on the node, the real redirect rules in the pods and a real `weir-proxy` beside each application. Applications and
//! clients are code of the test, run on sockets that were made inside the pods' namespaces. There is no webhook, no CNI and no
//! kubelet here; those have tests of their own.
//!
//! Namespaces have no names and live as long as the test; processes end with it, whatever happens to it.

// A harness fails by panicking, as the tests do that use it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

pub mod app;
pub mod calm;
pub mod certs;
pub mod curl;
pub mod envoy;
pub mod frames;
pub mod http;
pub mod http2;
pub mod load;
pub mod netns;
pub mod nginx;
pub mod patched;
pub mod pod;
pub mod process;
pub mod servers;
pub mod tokens;
pub mod tool;
pub mod world;

use std::time::{Duration, Instant};

pub use app::{App, Flow};
pub use curl::Curl;
pub use http::{Client, Response};
pub use load::{Load, Outcome};
pub use netns::Netns;
pub use patched::Patched;
pub use pod::{Pod, PodSpec};
pub use process::Process;
pub use world::{World, at};

/// How long a condition may take to come true: a machine that is busy with other tests is slow, but not for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// True for root. Everybody else can make no namespaces: says so, and fails where tests must not be left out (`CI=true`).
pub fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "these tests need root: they make network namespaces");
    eprintln!("SKIPPED: this test needs root, because it makes network namespaces");
    false
}

/// Runs a test with so many workers in each proxy, one number after the other.
pub fn each_with(workers: &[usize], test: impl Fn(usize)) {
    if is_root() {
        workers.iter().for_each(|workers| test(*workers));
    }
}

/// Waits until `condition` gives something.
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, condition)
}

/// [`until`] with a limit of its own.
pub fn until_within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
