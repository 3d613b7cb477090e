//! Delta ADS server: streams, subscriptions, nonces, versions and back-pressure. What is served comes from a [`Catalog`].
//!
//! A change is signalled by name only ([`Inbox::changed`]); the stream looks the resource up when it has room to send. Many
//! changes of one name while a slow client reads are one response, and what waits for a client is bounded by what it asked for.

mod inbox;
mod service;
mod session;

use std::{future::Future, sync::Arc, time::Duration};

use tonic::{Status, metadata::MetadataMap};

use crate::{Kind, Resource, wire::Node};
pub use inbox::Inbox;
pub use service::AdsService;

/// What a server serves, and to whom.
pub trait Catalog: Send + Sync + 'static {
    /// An authenticated caller.
    type Caller: Send + Sync + 'static;

    /// Says who calls, or refuses the stream.
    fn authenticate(&self, metadata: &MetadataMap) -> impl Future<Output = Result<Self::Caller, Status>> + Send;

    /// Checks what the caller says of itself in its first request.
    ///
    /// # Errors
    /// The status that the stream ends with.
    fn admit(&self, caller: &Self::Caller, node: &Node) -> Result<(), Status>;

    /// How long the caller's proof still holds; the stream is ended then, and the client comes back with a new one.
    fn valid_for(&self, caller: &Self::Caller) -> Duration;

    /// The caller asks for names: from now on, changes of them are signalled to the inbox.
    fn subscribe(&self, caller: &Self::Caller, inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]);

    /// The caller asks no longer for names.
    fn unsubscribe(&self, caller: &Self::Caller, inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]);

    /// What a name stands for, for this caller; `None` where it does not exist. Called only for names that are subscribed.
    fn lookup(&self, caller: &Self::Caller, kind: Kind, name: &str) -> Option<Arc<Resource>>;

    /// The stream has ended; all of its names are given up.
    fn close(&self, caller: &Self::Caller, inbox: &Arc<Inbox>, names: Vec<(Kind, Arc<str>)>);

    /// Something to count or log.
    fn event(&self, caller: &Self::Caller, event: Event<'_>);
}

/// Something that happened on a stream.
#[derive(Debug)]
pub enum Event<'a> {
    /// A response was put on the stream.
    Sent {
        /// Its kind.
        kind: Kind,
        /// Number of resources.
        resources: usize,
        /// Number of removed names.
        removed: usize,
        /// Time from the first change in it, or from the request, until now.
        waited: Duration,
    },
    /// The client has taken a response.
    Acked {
        /// Its kind.
        kind: Kind,
        /// Time since it was sent.
        after: Duration,
    },
    /// The client has refused a response, wholly or in part.
    Nacked {
        /// Its kind.
        kind: Kind,
        /// What the client says of it.
        reason: &'a str,
    },
    /// The client asked for more names than [`Limits`] allow, or for names that are too long; these are not answered.
    Refused {
        /// Their kind.
        kind: Kind,
        /// Their number.
        names: usize,
    },
}

/// Bounds of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most names of all kinds together.
    pub names: usize,
    /// Most responses that are not answered yet.
    pub unanswered: usize,
    /// Most resources in one response.
    pub resources: usize,
    /// Size at which a response is closed, in bytes; a single resource may be larger.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: crate::client::MAX_SUBSCRIPTIONS, unanswered: 16, resources: 1000, bytes: 1024 * 1024 }
    }
}
