//! Listener sockets of one worker, and the loop that accepts from one of them.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use weir_mesh::ports;

use crate::telemetry::Direction;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Pause after a failed accept (no file descriptors left, most often), so that what is open can end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A failing accept is logged once in this time.
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(10);

/// Port of the listener of a direction.
fn port(direction: Direction) -> u16 {
    match direction {
        Direction::Outbound => ports::OUTBOUND,
        Direction::Inbound => ports::INBOUND,
    }
}

/// The sockets of one worker: both directions, IPv4 and IPv6 apart.
#[derive(Debug)]
pub struct Listeners(pub Vec<(Direction, TcpListener)>);

impl Listeners {
    /// Opens them. IPv6 is left out where the kernel has none. All workers share the ports (`SO_REUSEPORT`).
    ///
    /// # Errors
    /// What the kernel says, with the address.
    pub fn bind() -> io::Result<Self> {
        let mut sockets = Vec::new();
        for direction in [Direction::Outbound, Direction::Inbound] {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port(direction)));
            sockets.push((direction, listen(v4)?));
            let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port(direction)));
            match listen(v6) {
                Ok(listener) => sockets.push((direction, listener)),
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(sockets))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let open = || {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|error| match error.raw_os_error() {
        Some(libc::EADDRINUSE) => io::Error::new(
            error.kind(),
            format!("{address} is in use: does the application use port {}, or a second proxy run?", address.port()),
        ),
        Some(_) | None => error,
    })
}

/// Accepts for ever and hands each connection to `serve`, which must not block.
pub async fn accept_loop(
    direction: Direction,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
    mut serve: impl FnMut(TcpStream, SocketAddr),
) {
    tokio::pin!(stop);
    let mut logged: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = &mut stop => return,
        };
        match accepted {
            Ok((stream, peer)) => serve(stream, peer),
            // The peer went away between the handshake and accept(2): nothing is wrong here.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                if logged.is_none_or(|at| at.elapsed() > ACCEPT_LOG_EVERY) {
                    tracing::error!(direction = direction.as_str(), %error, "no connection can be accepted; trying again (raise the file descriptor limit if it is used up)");
                    logged = Some(Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
