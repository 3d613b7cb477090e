//! Why an attempt, or a whole exchange, failed.

use std::net::SocketAddr;

use crate::{telemetry::ResponseFlags, upstream::Unreachable};

/// Why an attempt failed.
#[derive(Debug)]
pub(super) struct Fault {
    /// Flag for metrics and log.
    pub flag: ResponseFlags,
    /// Status for the caller; 0 if there is nobody to answer.
    pub status: u16,
    /// What happened.
    pub detail: String,
    /// Nothing of the request has had an effect: it was not sent, or the peer's proxy says that it was not delivered.
    pub unsent: bool,
    /// The peer's proxy says so: its application was not reached.
    pub not_delivered: bool,
    /// Not a byte of an answer had come.
    pub silent: bool,
}

impl Fault {
    /// A fault of the upstream after the request was sent.
    pub(super) fn upstream(flag: ResponseFlags, status: u16, detail: impl Into<String>) -> Self {
        Self { flag, status, detail: detail.into(), unsent: false, not_delivered: false, silent: false }
    }

    /// No connection could be made.
    pub(super) fn unreachable(error: &Unreachable) -> Self {
        Self { unsent: true, ..Self::upstream(ResponseFlags::UF, 503, error.to_string()) }
    }

    /// There was no room for another connection, and none of the others has come free.
    pub(super) fn no_room(address: SocketAddr) -> Self {
        let detail = format!("no connection to {address}: others are being made, and none has come free");
        Self { unsent: true, ..Self::upstream(ResponseFlags::UF, 503, detail) }
    }

    /// The proxy's own answer to a request that is not sent on.
    pub(super) fn own(status: u16, flag: ResponseFlags, reason: String) -> Self {
        Self::upstream(flag, status, reason)
    }

    /// What a caller is told: enough to know whose fault it is, nothing of addresses or identities.
    pub(super) fn summary(&self) -> &str {
        match self.status {
            403 => "access denied",
            404 => "no route matches this request",
            500 => "the route's backend is not valid",
            502 => "the upstream's answer is not valid HTTP",
            503 if self.flag.contains(ResponseFlags::OM) => "this proxy takes no request now",
            503 => "the upstream can not be reached",
            504 => "the upstream did not answer in time",
            _ => &self.detail, // about the caller's own request
        }
    }
}
