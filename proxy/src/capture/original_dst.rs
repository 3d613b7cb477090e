//! The destination a connection had before the redirect (`SO_ORIGINAL_DST`, linux/netfilter_ipv4.h).

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination that the caller meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

/// The connection was not redirected: somebody called one of the proxy's own ports.
#[derive(Debug, thiserror::Error)]
#[error("called the proxy's own port {0} directly: only redirected connections are served here")]
pub struct NotRedirected(pub SocketAddr);

/// Asks the kernel for the original destination.
///
/// # Errors
/// [`NotRedirected`] where the connection was made to the listener itself; serving it would make the proxy call itself for ever.
pub fn original_dst(stream: &TcpStream) -> Result<OrigDst, NotRedirected> {
    let local = stream.local_addr().map_err(|_| NotRedirected(SocketAddr::from(([0, 0, 0, 0], 0))))?;
    let socket = SockRef::from(stream);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match original.ok().and_then(|address| address.as_socket()) {
        Some(address) if address.port() != local.port() => Ok(OrigDst(address)),
        _ => Err(NotRedirected(local)),
    }
}
