//! The HTTPS server: its own accept loop, so that no client can hold up another.
//!
//! Every connection has a task. The handshake has a deadline, request heads and bodies have theirs, an idle connection is
//! closed, and the number of connections is bounded; when it is reached, new ones wait in the kernel.

mod http;
mod metrics;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

pub use metrics::Metrics;
pub use tls::{CertificateError, Files};

use crate::settings::Settings;

/// Connections at the same time. API servers keep one each, or a few; the rest is room for probes and metrics.
const MAX_CONNECTIONS: usize = 512;
/// Longest time for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the head of an HTTP/1 request, and for an HTTP/1 connection without one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 connection is asked this often whether it is alive, and how long it has for the answer.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is told to go away at this age; API servers open a new one. Nobody holds one for ever.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Longest time for requests that are under way when a connection is told to go away.
const GRACE: Duration = Duration::from_secs(10);
/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// After a failed accept (no file descriptors left), the time until the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the server can not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address can not be listened on.
    #[error("can not listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate can not be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A server that is bound to its address, and has a certificate.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    certificate: Arc<tls::Certificate>,
    router: axum::Router,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Reads the certificate and binds the address.
    ///
    /// # Errors
    /// [`ServerError`] says which of the two failed.
    pub async fn bind(address: SocketAddr, files: Files, settings: Settings) -> Result<Self, ServerError> {
        let metrics = Arc::new(Metrics::default());
        let certificate = tls::Certificate::load(files, Arc::clone(&metrics))?;
        let acceptor = TlsAcceptor::from(certificate.server_config()?);
        let listen = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let router = http::router(settings, Arc::clone(&metrics));
        Ok(Self { listener, acceptor, certificate, router, metrics })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` becomes true, then lets requests that are under way end.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let follow = tokio::spawn(Arc::clone(&self.certificate).follow());
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let until_stop = stop.clone();
        let serve = async {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = Connection {
                            acceptor: self.acceptor.clone(),
                            router: self.router.clone(),
                            metrics: Arc::clone(&self.metrics),
                            stop: until_stop.clone(),
                        };
                        tokio::spawn(async move {
                            connection.serve(stream).await;
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = serve => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        follow.abort();
        drop(self.listener);
        // All slots free again means that every connection has ended.
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        if tokio::time::timeout(GRACE, slots.acquire_many(all)).await.is_err() {
            tracing::warn!("connections were cut off at shutdown");
        }
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    router: axum::Router,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream) {
        let _ = stream.set_nodelay(true); // only a matter of speed
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.handshake_failures.fetch_add(1, Relaxed);
                tracing::debug!(%error, "handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.handshake_failures.fetch_add(1, Relaxed);
                return;
            }
        };
        self.metrics.connections.fetch_add(1, Relaxed);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        let service = TowerToHyperService::new(self.router);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = tokio::time::sleep(MAX_AGE) => None,
            _ = self.stop.wait_for(|stop| *stop) => None,
        };
        if ended.is_none() {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(GRACE, connection).await;
        }
        self.metrics.connections.fetch_sub(1, Relaxed);
    }
}
