//! Handshakes with a deadline, whose errors say with whom.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use weir_mesh::Identity;

use super::error::HandshakeError;

/// Calls a peer that must be `expected`, the identity that `config` was made for.
///
/// A TLS 1.3 client is done before the server has looked at its certificate: that the server refused it shows at the first
/// read, as an alert.
///
/// # Errors
/// [`HandshakeError`]; after `limit` with [`io::ErrorKind::TimedOut`].
pub async fn connect<IO>(
    config: Arc<ClientConfig>,
    stream: IO,
    peer: SocketAddr,
    expected: &Identity,
    limit: Duration,
) -> Result<client::TlsStream<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // Neither sent nor checked; rustls wants one.
    let name = ServerName::from(Ipv4Addr::UNSPECIFIED);
    within(limit, TlsConnector::from(config).connect(name, stream)).await.map_err(|source| HandshakeError {
        peer,
        expected: Some(expected.clone()),
        source,
    })
}

/// Accepts a caller of the mesh.
///
/// # Errors
/// [`HandshakeError`]; after `limit` with [`io::ErrorKind::TimedOut`].
pub async fn accept<IO>(
    config: Arc<ServerConfig>,
    stream: IO,
    peer: SocketAddr,
    limit: Duration,
) -> Result<server::TlsStream<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    within(limit, TlsAcceptor::from(config).accept(stream)).await.map_err(|source| HandshakeError {
        peer,
        expected: None,
        source,
    })
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")))
}
