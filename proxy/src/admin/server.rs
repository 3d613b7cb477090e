//! Listeners and their limits.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use weir_mesh::ports;

use super::{Admin, body::Answer, local, open};

/// Connections that one port serves at a time; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// Longest time for a request head, and for the next one on an idle connection.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Longest life of a connection: a reader that never reads does not keep its place for ever.
const CONNECTION_LIMIT: Duration = Duration::from_secs(120);
/// Longest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: i32 = 128;

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Admin; loopback only.
    pub admin: Vec<SocketAddr>,
    /// Merged metrics and probes.
    pub merged: Vec<SocketAddr>,
    /// Readiness.
    pub readiness: Vec<SocketAddr>,
    /// The proxy's metrics.
    pub metrics: Vec<SocketAddr>,
}

impl Default for Addresses {
    /// The ports of [`weir_mesh::ports`], both families.
    fn default() -> Self {
        let loopback =
            |port| vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        let everywhere = |port| {
            vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]
        };
        Self {
            admin: loopback(ports::ADMIN),
            merged: everywhere(ports::MERGED),
            readiness: everywhere(ports::READINESS),
            metrics: everywhere(ports::METRICS),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Admin,
    Merged,
    Readiness,
    Metrics,
}

/// Listeners that are bound but not served yet.
#[derive(Debug)]
pub struct Servers(Vec<(Which, Vec<TcpListener>)>);

/// Where the listeners are.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// Admin.
    pub admin: Vec<SocketAddr>,
    /// Merged metrics and probes.
    pub merged: Vec<SocketAddr>,
    /// Readiness.
    pub readiness: Vec<SocketAddr>,
    /// The proxy's metrics.
    pub metrics: Vec<SocketAddr>,
}

impl Servers {
    /// Binds all ports. An IPv6 address is left out where the kernel has no IPv6. To be called inside the runtime.
    ///
    /// # Errors
    /// A port that is taken, by name; an admin address that is not loopback.
    pub fn bind(addresses: &Addresses) -> io::Result<Self> {
        if let Some(open) = addresses.admin.iter().find(|address| !address.ip().is_loopback()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the admin address {open} is not loopback"),
            ));
        }
        let mut servers = Vec::new();
        for (which, wanted) in [
            (Which::Admin, &addresses.admin),
            (Which::Merged, &addresses.merged),
            (Which::Readiness, &addresses.readiness),
            (Which::Metrics, &addresses.metrics),
        ] {
            let mut listeners = Vec::new();
            for address in wanted {
                match listen(*address) {
                    Ok(listener) => listeners.push(listener),
                    Err(error) if address.is_ipv6() && no_ipv6(&error) => {}
                    Err(error) => {
                        return Err(io::Error::new(error.kind(), format!("can not listen on {address}: {error}")));
                    }
                }
            }
            servers.push((which, listeners));
        }
        Ok(Self(servers))
    }

    /// Where the listeners are.
    pub fn bound(&self) -> Bound {
        let mut bound = Bound::default();
        for (which, listeners) in &self.0 {
            let addresses = match which {
                Which::Admin => &mut bound.admin,
                Which::Merged => &mut bound.merged,
                Which::Readiness => &mut bound.readiness,
                Which::Metrics => &mut bound.metrics,
            };
            addresses.extend(listeners.iter().filter_map(|listener| listener.local_addr().ok()));
        }
        bound
    }

    /// Serves until `stop` says true or its sender is gone; then gives requests under way a moment to end.
    pub async fn run(self, admin: Arc<Admin>, stop: watch::Receiver<bool>) {
        let mut tasks = tokio::task::JoinSet::new();
        for (which, listeners) in self.0 {
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            for listener in listeners {
                tasks.spawn(accept(which, listener, places.clone(), admin.clone(), stop.clone()));
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

async fn accept(
    which: Which,
    listener: TcpListener,
    places: Arc<Semaphore>,
    admin: Arc<Admin>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = accepted => match accepted {
                Some((place, Ok((stream, peer)))) => {
                    let (admin, stop) = (admin.clone(), stop.clone());
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(CONNECTION_LIMIT, serve(which, stream, peer.ip(), admin, stop)).await;
                        drop(place);
                    });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, port = ?which, "can not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => break,
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(HEAD_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
}

/// Returns when it is time to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve(which: Which, stream: TcpStream, peer: IpAddr, admin: Arc<Admin>, mut stop: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let admin = admin.clone();
        async move { respond(which, &admin, request, peer).await }
    });
    let mut builder = http1::Builder::new();
    // A caller may close its half when it has asked (as `nc` does) and still gets its answer.
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD).half_close(true);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = &mut connection => {}
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Closes the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer is given")]
pub(super) struct Abort;

async fn respond(which: Which, admin: &Admin, request: Request<Incoming>, peer: IpAddr) -> Result<Answer, Abort> {
    match which {
        Which::Admin => Ok(local::respond(admin, &request, peer)),
        Which::Readiness => Ok(open::readiness(admin, &request)),
        Which::Metrics => Ok(open::metrics(admin, &request)),
        Which::Merged => open::merged(admin, &request).await,
    }
}
