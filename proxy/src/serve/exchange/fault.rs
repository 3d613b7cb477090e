//! Why an attempt, or a whole exchange, failed.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::{
    route::Attempt,
    telemetry::ResponseFlags,
    upstream::{Full, Unreachable},
};

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
    /// Lines that the answer has besides the usual ones.
    pub headers: Vec<(&'static str, Bytes)>,
    /// The answer has no text for a person: nothing is wrong.
    pub is_bare: bool,
    /// The status for a gRPC caller, where it is not the one that stands for `status`.
    pub grpc_status: Option<u8>,
}

/// The application was not reached: nothing of the request has had an effect.
pub(super) const NOT_DELIVERED: &str = "not-delivered";
/// It was, and has ended its connection or the stream before it answered.
const NO_ANSWER: &str = "no-answer";

impl Fault {
    /// What this proxy says of it to a caller's proxy, beside its own answer.
    pub(super) fn marker(&self) -> Option<&'static str> {
        type F = ResponseFlags;
        let ended = self.status == 503 && [F::UC, F::UR].into_iter().any(|flag| self.flag.contains(flag));
        if self.unsent { Some(NOT_DELIVERED) } else { ended.then_some(NO_ANSWER) }
    }

    /// What the proxy of an application has said so of an answer of its own; none for all other answers.
    pub(super) fn told(marker: Option<&[u8]>, application: SocketAddr) -> Option<Self> {
        let marker = marker?;
        if marker == NO_ANSWER.as_bytes() {
            let detail = format!("the application behind {application} ended its connection before it answered");
            return Some(Self::upstream(ResponseFlags::UC, 503, detail));
        }
        let detail = format!("the application behind {application} did not accept the request");
        let fault = Self::upstream(ResponseFlags::UF, 503, detail);
        (marker == NOT_DELIVERED.as_bytes()).then_some(Self { unsent: true, not_delivered: true, ..fault })
    }

    /// A fault of the upstream after the request was sent.
    pub(super) fn upstream(flag: ResponseFlags, status: u16, detail: impl Into<String>) -> Self {
        Self {
            flag,
            status,
            detail: detail.into(),
            unsent: false,
            not_delivered: false,
            silent: false,
            headers: Vec::new(),
            is_bare: false,
            grpc_status: None,
        }
    }

    /// No connection could be made.
    pub(super) fn unreachable(error: &Unreachable) -> Self {
        Self { unsent: true, ..Self::upstream(ResponseFlags::UF, 503, error.to_string()) }
    }

    /// A limit of the cluster was reached.
    pub(super) fn full(full: Full, cluster: &str) -> Self {
        let fault = Self::own(503, ResponseFlags::UO, format!("{} of {cluster} is reached", full.0));
        Self { headers: vec![("x-envoy-overloaded", Bytes::from_static(b"true"))], ..fault }
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

    /// True where the endpoint, or the way to it, is what failed.
    pub(super) fn is_upstreams(&self) -> bool {
        type F = ResponseFlags;
        self.unsent || [F::UC, F::UF, F::UR, F::UT, F::UPE].into_iter().any(|flag| self.flag.contains(flag))
    }

    /// True where no endpoint has taken the request: another backend may.
    pub(super) fn is_nobodys(&self) -> bool {
        self.unsent || self.flag.contains(ResponseFlags::UH)
    }

    /// What came of the attempt.
    pub(super) fn attempt(&self) -> Attempt {
        match (self.not_delivered, self.unsent) {
            (true, _) => Attempt::Refused,
            (false, true) => Attempt::Unconnected,
            (false, false) => Attempt::Unanswered,
        }
    }

    /// What a caller is told: enough to know whose fault it is, nothing of addresses or identities.
    pub(super) fn summary(&self) -> &str {
        match self.status {
            _ if self.flag.contains(ResponseFlags::FI) => "a rule lets this request fail",
            403 => "access denied",
            404 => "no route matches this request",
            413 => "the request is too large",
            _ if self.flag.contains(ResponseFlags::RL) => "there are too many requests at this time",
            500 => "the route's backend is not valid",
            502 => "the upstream's answer is not valid HTTP",
            503 if self.flag.contains(ResponseFlags::OM) => "this proxy takes no request now",
            503 if self.flag.contains(ResponseFlags::UO) => "there is too much to do for this service",
            503 => "the upstream can not be reached",
            504 => "the upstream did not answer in time",
            _ => &self.detail, // about the caller's own request
        }
    }
}
