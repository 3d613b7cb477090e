//! Faults that a rule injects, so that it can be seen what callers make of them.

use std::time::Duration;

use super::Chance;

/// What a rule does to its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// Some wait so long.
    pub delay: Option<(Chance, Duration)>,
    /// Some fail so.
    pub abort: Option<(Chance, Abort)>,
}

/// An answer in the place of the endpoint's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// With this status.
    Http(u16),
    /// With this status of gRPC; who does not speak gRPC gets the status that stands for it.
    Grpc(u8),
}
