//! What carries a request over a connection, in its protocol, and what came of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{attempts::is_safe, fault::Fault, h1::Copying};
use crate::{
    http::{Edits, RequestHead},
    net::Slot,
    upstream::{ClusterInfo, Endpoint, InFlight, Keeping},
};

/// Which kept connections may carry a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All that seem alive: should one be dead after all, the request is sent again.
    Any,
    /// Those of which the kernel says so at this moment: the request can be sent once only.
    Proven,
    /// None.
    Never,
}

impl Kept {
    /// For the first attempt.
    pub(super) fn of(head: &RequestHead) -> Self {
        if is_safe(head) { Self::Any } else { Self::Proven }
    }
}

/// How a request goes on: what is not named stays as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Onward<'a> {
    /// Changes to its headers, one list after the other.
    pub edits: &'a [&'a Edits],
    /// Path and query.
    pub path_and_query: Option<&'a [u8]>,
    /// Host.
    pub host: Option<&'a [u8]>,
    /// So long nothing may move while its answer is awaited.
    pub idle: Option<Duration>,
}

impl<'a> Onward<'a> {
    /// Nothing but these edits.
    pub(super) fn with_edits(edits: &'a [&'a Edits]) -> Self {
        Self { edits, path_and_query: None, host: None, idle: None }
    }
}

/// Carries one request over a connection, in its protocol. The choice of where to, and whether once more, is made for all of them alike.
pub(super) trait Carrier {
    /// The head of an answer and where the rest of it comes from.
    type Answer;

    /// Sends the request to an endpoint and waits for the head of the answer. May be given up at any moment.
    ///
    /// # Errors
    /// [`Fault`]; also where the peer's proxy says that its application was not reached.
    async fn send(
        &mut self,
        to: &Endpoint,
        kept: Kept,
        cluster: &ClusterInfo,
        onward: &Onward<'_>,
    ) -> Result<Self::Answer, Fault>;

    /// The status of an answer.
    fn status(answer: &Self::Answer) -> u16;

    /// The first value of a header of an answer.
    fn header<'a>(answer: &'a Self::Answer, name: &str) -> Option<&'a [u8]>;

    /// An answer that nobody gets. Its connection is kept where that costs nothing.
    fn discard(&mut self, answer: Self::Answer, from: &Endpoint, keeping: Keeping);

    /// What comes of the request is kept, as far as it is not too much, for another attempt.
    fn keep(&mut self);

    /// No more of a body is taken than this: else the request fails with 413.
    fn limit(&mut self, most: u64);

    /// The work of sending a copy of the request, whose answer is thrown away; `None` where not all of it is here. Called when the request
    /// has its answer.
    fn copy(&self, to: Arc<Endpoint>, info: Arc<ClusterInfo>, onward: &Onward<'_>) -> Option<Copying>;

    /// True while all that has come of the request is still here, so that another attempt can send it.
    fn is_still_here(&self) -> bool;

    /// True when the end of the request has come.
    fn is_whole(&self) -> bool;

    /// Another attempt begins.
    fn again(&mut self);
}

/// What came of a request.
#[allow(clippy::large_enum_variant)] // one a request, moved once; a box would be an allocation on the hot path
pub(super) enum Outcome<A> {
    /// An answer has begun.
    Answered(Answered<A>),
    /// The rules say that the proxy answers, and what.
    Own(Fault),
}

/// An answer that has begun.
pub(super) struct Answered<A> {
    /// Its head, and where the rest comes from.
    pub answer: A,
    /// Changes to its headers, by the route and by the backend.
    pub edits: [Edits; 2],
    /// Where the connection goes when the answer is whole.
    pub place: Place,
    /// When it has to be whole, and how long it may stand still.
    pub limits: Limits,
    /// Counts the request at its endpoint.
    pub _in_flight: Option<InFlight>,
    /// Counts it among its cluster's.
    pub _slot: Option<Slot>,
}

/// The time that a rule gives an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// Its end.
    pub deadline: Option<Instant>,
    /// So long nothing may move.
    pub idle: Option<Duration>,
}

impl<A> Answered<A> {
    /// The pod's own application has answered.
    pub(super) fn by_app(answer: A, address: SocketAddr) -> Self {
        Self {
            answer,
            edits: [Edits::new(), Edits::new()],
            place: Place::App(address),
            limits: Limits::default(),
            _in_flight: None,
            _slot: None,
        }
    }
}

/// Who has answered.
pub(super) enum Place {
    /// An endpoint, and how its cluster keeps connections.
    Endpoint(Arc<Endpoint>, Arc<ClusterInfo>),
    /// The application.
    App(SocketAddr),
}
