//! One kind of objects, followed for ever.
//!
//! The first reading is a streaming list (Kubernetes 1.32 and later), or a paginated one where the server has none. Then changes
//! come, and a watch that ends goes on from where it was. What is known stays known while the server is away; after too long an
//! absence (410 Gone) everything is read again, and only the difference is told.
//!
//! Not kube's own watcher: that one notices a server that has gone silent only after five minutes, and asks for ever for a
//! version that a restored server never had.

use std::{fmt::Debug, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::backoff::{Backoff, spread};

/// The server ends a watch after about this long; the next goes on where it was.
const WATCH: Duration = Duration::from_secs(300);
/// A server mostly says something (a bookmark) each minute, though not of a kind that has not changed since the server started. After so
/// long a silence it is asked again: one that is gone without a word does not answer that.
const SILENCE: Duration = Duration::from_secs(90);
/// Time for a server to begin its answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Objects in a page of a list.
const PAGE: u32 = 500;
/// Pause before asking again for a kind that the server does not have.
const ABSENT: Duration = Duration::from_secs(5);
/// A kind that had objects must be missing for so long before they are called gone.
const ABSENT_SURELY: Duration = Duration::from_secs(10);
/// A watch without a change that ends sooner was not wanted: the next one is not begun at once.
const LIVED: Duration = Duration::from_secs(5);
/// After so many failures to go on, everything is read again: the version may be one that a restored server never had.
const GIVE_UP_RESUMING: u32 = 5;

/// What is told of a kind.
#[derive(Debug)]
pub(crate) enum Event<K> {
    /// Everything is told again: what is not told before [`Event::Complete`] is gone.
    Begin,
    /// This is there.
    There(K),
    /// This is gone.
    Gone(K),
    /// Everything that is there has been told.
    Complete,
    /// The server does not have this kind.
    Absent,
    /// It can not be read now; what was told stays.
    Failed(String),
}

/// Who is told.
pub(crate) trait Listener<K>: Send {
    /// Hears an event; `false` where it wants to hear no more.
    fn hear(&mut self, event: Event<K>) -> impl Future<Output = bool> + Send;
}

/// A listener that never waits.
pub(crate) struct Prompt<F>(pub(crate) F);

impl<K: Send, F: FnMut(Event<K>) -> bool + Send> Listener<K> for Prompt<F> {
    async fn hear(&mut self, event: Event<K>) -> bool {
        (self.0)(event)
    }
}

/// Which objects of a kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct What {
    /// Field selector.
    pub(crate) fields: Option<String>,
    /// The server may not have this kind at all (a CRD that is not installed).
    pub(crate) optional: bool,
}

impl What {
    /// The one with this name.
    pub(crate) fn named(name: &str) -> Self {
        Self { fields: Some(format!("metadata.name={name}")), optional: false }
    }

    fn watch(&self) -> WatchParams {
        let seconds = u32::try_from(spread(WATCH).as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().timeout(seconds.min(294));
        match &self.fields {
            Some(fields) => params.fields(fields),
            None => params,
        }
    }

    fn list(&self) -> ListParams {
        let params = ListParams::default().limit(PAGE);
        match &self.fields {
            Some(fields) => params.fields(fields),
            None => params,
        }
    }
}

/// Why a watch ended.
enum End {
    /// As agreed: go on.
    Closed,
    /// The version is too old: read all again.
    Expired,
    /// The server has no such kind.
    Absent,
    /// The server has no streaming lists.
    NoStreaming,
    /// Anything else.
    Failed(String),
}

/// Follows a kind; returns only when nobody listens any more.
pub(crate) async fn follow<K>(api: Api<K>, what: What, mut listener: impl Listener<K>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut version: Option<String> = None;
    let mut streaming = true;
    let mut backoff = Backoff::default();
    let mut told = false;
    let mut absent_since: Option<Instant> = None;
    loop {
        let mut session = Session { api: &api, what: &what, listener: &mut listener, listening: true, healthy: false };
        let end = match version.take() {
            Some(at) => session.resume(at, &mut version).await,
            None if streaming => session.stream(&mut version).await,
            None => session.list(&mut version).await,
        };
        let (listening, healthy) = (session.listening, session.healthy);
        if !listening {
            return;
        }
        if healthy {
            backoff.reset();
            told = true;
            absent_since = None;
        }
        match end {
            End::Closed if healthy => {}
            // Ended before it began: no reason to hurry.
            End::Closed => sleep(backoff.next()).await,
            End::Expired => {
                tracing::info!(kind = api.resource_url(), "the version is too old: everything is read again");
                version = None;
                if !healthy {
                    sleep(backoff.next()).await;
                }
            }
            End::NoStreaming => {
                tracing::info!(kind = api.resource_url(), "the API server has no streaming lists: pages are read");
                streaming = false;
            }
            End::Absent if what.optional => {
                version = None;
                let since = *absent_since.get_or_insert_with(Instant::now);
                // A server that has just started may not know its kinds yet.
                if !told || since.elapsed() >= ABSENT_SURELY {
                    if !listener.hear(Event::Absent).await {
                        return;
                    }
                    told = false;
                }
                sleep(spread(ABSENT)).await;
            }
            End::Absent | End::Failed(_) => {
                let reason = match end {
                    End::Failed(reason) => reason,
                    _ => "the API server does not have this kind".into(),
                };
                if backoff.failures() >= GIVE_UP_RESUMING {
                    version = None;
                }
                if !listener.hear(Event::Failed(reason)).await {
                    return;
                }
                sleep(backoff.next()).await;
            }
        }
    }
}

struct Session<'a, K, T> {
    api: &'a Api<K>,
    what: &'a What,
    listener: &'a mut T,
    listening: bool,
    /// The server has answered with more than an error.
    healthy: bool,
}

impl<K, T> Session<'_, K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Listener<K>,
{
    async fn say(&mut self, event: Event<K>) -> bool {
        self.listening = self.listener.hear(event).await;
        self.listening
    }

    /// Goes on from a version; leaves the one to go on from next.
    async fn resume(&mut self, at: String, version: &mut Option<String>) -> End {
        let params = self.what.watch();
        let reached = version.insert(at).clone();
        self.watch(&params, &reached, version, false).await
    }

    /// Reads everything by a streaming list, then changes.
    async fn stream(&mut self, version: &mut Option<String>) -> End {
        let params = self.what.watch().initial_events();
        // No version asks for the newest: a lagging server must not take us back in time.
        self.watch(&params, "", version, true).await
    }

    /// Reads everything by pages; the watch comes next.
    async fn list(&mut self, version: &mut Option<String>) -> End {
        let mut params = self.what.list();
        let mut begun = false;
        loop {
            let page = match timeout(SILENCE, self.api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return reason(error),
                Err(_) => return End::Failed("no answer in time".into()),
            };
            self.healthy = true;
            if !begun && !self.say(Event::Begin).await {
                return End::Closed;
            }
            begun = true;
            for object in page.items {
                if !self.say(Event::There(object)).await {
                    return End::Closed;
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    *version = page.metadata.resource_version;
                    self.say(Event::Complete).await;
                    return End::Closed;
                }
            }
        }
    }

    async fn watch(&mut self, params: &WatchParams, from: &str, version: &mut Option<String>, first: bool) -> End {
        let stream = match timeout(ANSWER, self.api.watch(params, from)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return reason(error),
            Err(_) => return End::Failed("no answer in time".into()),
        };
        let mut stream = std::pin::pin!(stream);
        let mut reading = first;
        if reading && !self.say(Event::Begin).await {
            return End::Closed;
        }
        let begun = Instant::now();
        loop {
            let event = match timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(kube::Error::SerdeError(error)))) => {
                    tracing::error!(kind = self.api.resource_url(), %error, "an object can not be read and is passed over");
                    continue;
                }
                Ok(Some(Err(error))) => return reason(error),
                Ok(None) => {
                    self.healthy |= !reading && begun.elapsed() >= LIVED;
                    return End::Closed;
                }
                Err(_) if reading => return End::Failed("the API server stopped in the middle of a list".into()),
                Err(_) => {
                    self.healthy = true;
                    return End::Closed;
                }
            };
            let (event, reached) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let reached = object.meta().resource_version.clone();
                    (Event::There(object), reached)
                }
                WatchEvent::Deleted(object) => {
                    let reached = object.meta().resource_version.clone();
                    (Event::Gone(object), reached)
                }
                WatchEvent::Bookmark(mark) => {
                    if reading && mark.metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        reading = false;
                        self.healthy = true;
                        *version = Some(mark.metadata.resource_version);
                        if !self.say(Event::Complete).await {
                            return End::Closed;
                        }
                    } else if !reading {
                        *version = Some(mark.metadata.resource_version);
                    }
                    continue;
                }
                WatchEvent::Error(status) => return status_reason(&status),
            };
            if !self.say(event).await {
                return End::Closed;
            }
            // Until all is told, an interruption begins anew.
            if !reading && let Some(reached) = reached {
                self.healthy = true;
                *version = Some(reached);
            }
        }
    }
}

fn reason(error: kube::Error) -> End {
    match error {
        kube::Error::Api(status) => status_reason(&status),
        other => End::Failed(super::explain(&other)),
    }
}

fn status_reason(status: &Status) -> End {
    match status.code {
        410 => End::Expired,
        404 => End::Absent,
        // "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
        400 | 422 if status.message.contains("sendInitialEvents") => End::NoStreaming,
        _ => End::Failed(format!("{} ({})", status.message, status.code)),
    }
}
