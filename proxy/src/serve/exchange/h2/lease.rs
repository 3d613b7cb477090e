//! Connections of HTTP/2 to endpoints and to the application, with room for one more request.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    net::{Conn, Io},
    serve::{
        Worker,
        exchange::{
            attempts::{Kept, PATIENCE},
            fault::Fault,
        },
    },
    tls::Alpn,
    upstream::{Breaker, ClusterInfo, Endpoint, Full, Keeping, Key, Lease},
};

/// Who is called.
#[derive(Clone, Copy)]
pub(in crate::serve::exchange) enum Peer<'a> {
    /// An endpoint.
    Endpoint(&'a Endpoint),
    /// The pod's own application.
    App(SocketAddr),
}

impl Peer<'_> {
    fn key(self) -> Key {
        match self {
            Self::Endpoint(endpoint) => Key::of(endpoint),
            Self::App(address) => Key::App(address),
        }
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Endpoint(endpoint) => Some(endpoint),
            Self::App(_) => None,
        }
    }

    fn address(self) -> SocketAddr {
        match self {
            Self::Endpoint(endpoint) => endpoint.address,
            Self::App(address) => address,
        }
    }
}

/// What a cluster says of connections to its endpoints; nothing for those to the application.
#[derive(Clone, Copy, Default)]
pub(in crate::serve::exchange) struct Terms<'a> {
    /// How long a new one may take.
    pub limit: Duration,
    /// How they are kept.
    pub keeping: Keeping,
    /// How many there may be.
    pub breaker: Option<&'a Breaker>,
}

impl<'a> Terms<'a> {
    /// A cluster's.
    pub(in crate::serve::exchange) fn of(cluster: &'a ClusterInfo) -> Self {
        Self { limit: cluster.connect_timeout, keeping: cluster.keeping, breaker: Some(&cluster.breaker) }
    }
}

/// The right to send a request over a connection with room for it.
///
/// # Errors
/// [`Fault`]: there is nobody, a limit is reached, or no room within [`PATIENCE`].
pub(in crate::serve::exchange) async fn lease(
    worker: &Worker,
    peer: Peer<'_>,
    kept: Kept,
    terms: Terms<'_>,
) -> Result<Lease, Fault> {
    let (pool, key) = (&worker.shared_pool, peer.key());
    if kept != Kept::Never
        && let Some(lease) = pool.take(key, terms.breaker)
    {
        return Ok(lease);
    }
    Box::pin(async {
        let full = |full: Full| Fault::full(full, &peer.address().to_string());
        let end = Instant::now() + PATIENCE;
        let _pending = terms.breaker.map(Breaker::pending).transpose().map_err(full)?;
        loop {
            if let Some(_room) = pool.room(key) {
                return first(worker, peer, terms, end).await;
            }
            let waited = timeout_at(end, pool.freed(key)).await;
            if let Some(lease) = pool.take(key, terms.breaker) {
                return Ok(lease);
            }
            // What the others have met would meet this one as well.
            if waited.is_err() || peer.endpoint().is_some_and(|to| to.state.is_avoided(Instant::now())) {
                let reached = terms.breaker.and_then(|breaker| breaker.connection().err());
                return Err(reached.map_or_else(|| Fault::no_room(peer.address()), full));
            }
        }
    })
    .await
}

/// The first request over another connection: it makes that, and waits for its place where there may be no more. The others wait for this
/// one, so that no worker is stronger than another by the number of its requests.
async fn first(worker: &Worker, peer: Peer<'_>, terms: Terms<'_>, end: Instant) -> Result<Lease, Fault> {
    let (pool, key) = (&worker.shared_pool, peer.key());
    let mut slot = None;
    if let Some(breaker) = terms.breaker {
        slot = match worker.slot(breaker) {
            Ok(slot) => slot,
            Err(_) => {
                // One with many requests is better than none.
                if let Some(lease) = pool.share(key) {
                    return Ok(lease);
                }
                let full = |full: Full| Fault::full(full, &peer.address().to_string());
                worker.slot_in_turn(breaker, end).await.map_err(full)?
            }
        };
    }
    let mut conn = connect(worker, peer, terms.limit).await?;
    conn.slot = slot;
    Ok(pool.begin(key, peer.endpoint(), conn, terms.keeping))
}

async fn connect(worker: &Worker, peer: Peer<'_>, limit: Duration) -> Result<Conn, Fault> {
    match peer {
        Peer::Endpoint(to) => match worker.connector.connect(to, Alpn::Http2, limit).await {
            Ok(conn) => {
                to.state.reached();
                Ok(conn)
            }
            Err(error) => {
                to.state.unreachable(Instant::now());
                tracing::debug!(endpoint = %to.address, %error, "endpoint not reached");
                Err(Fault::unreachable(&error))
            }
        },
        Peer::App(address) => match worker.connector.connect_app(address).await {
            Ok(stream) => Ok(Conn::new(Io::Plain(stream))),
            Err(error) => Err(Fault::unreachable(&error)),
        },
    }
}
