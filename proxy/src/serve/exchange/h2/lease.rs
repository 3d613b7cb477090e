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
    telemetry::ResponseFlags,
    tls::Alpn,
    upstream::{Endpoint, Key, Lease},
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

/// The right to send a request over a connection with room for it. A new one takes no longer than `limit`.
///
/// # Errors
/// [`Fault`]: there is nobody, or no room within [`PATIENCE`].
pub(in crate::serve::exchange) async fn lease(
    worker: &Worker,
    peer: Peer<'_>,
    kept: Kept,
    limit: Duration,
) -> Result<Lease, Fault> {
    let (pool, key) = (&worker.shared_pool, peer.key());
    if kept != Kept::Never
        && let Some(lease) = pool.take(key)
    {
        return Ok(lease);
    }
    Box::pin(async {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(_room) = pool.room(key) {
                let conn = connect(worker, peer, limit).await?;
                return pool.begin(key, peer.endpoint(), conn).await.map_err(|error| {
                    let fault = Fault::upstream(ResponseFlags::UF, 503, format!("HTTP/2 did not begin: {error}"));
                    Fault { unsent: true, ..fault }
                });
            }
            let waited = timeout_at(end, pool.freed(key)).await;
            if let Some(lease) = pool.take(key) {
                return Ok(lease);
            }
            // What the others have met would meet this one as well.
            if waited.is_err() || peer.endpoint().is_some_and(|to| to.state.is_avoided(Instant::now())) {
                return Err(Fault::no_room(peer.address()));
            }
        }
    })
    .await
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
