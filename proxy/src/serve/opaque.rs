//! Opaque streams: to an endpoint of a cluster, to an address outside the mesh, or to the pod's own application.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::Instant};

use super::{
    Worker,
    refuse::{refuse, reset},
};
use crate::{
    config::Entry,
    net::{Conn, Io, connect},
    tcp::{End, Moved, relay},
    telemetry::{Direction, Peer, ResponseFlags, SecurityPolicy, Service, TcpLabels, TcpSeries},
    tls::Alpn,
    upstream::{Cluster, Endpoint, Unreachable, pick},
};

/// How many endpoints are tried: nothing was sent to those that refused.
const ATTEMPTS: usize = 3;
/// How long an address outside the mesh may take to accept.
const OUTSIDE_CONNECT: Duration = Duration::from_secs(10);

/// Carries a stream to an endpoint of a cluster.
pub(super) async fn to_cluster(
    worker: &Worker,
    mut caller: Conn,
    peer: SocketAddr,
    entry: &Entry,
    cluster: &Arc<Cluster>,
) {
    let info = cluster.info().clone();
    let service = info.service.clone().unwrap_or_else(Service::passthrough);
    let refused = |caller: &Conn, reason, detail: &str| {
        labels(worker, Direction::Outbound, &Peer::unknown(), &service, ResponseFlags::UH, SecurityPolicy::Unknown)
            .closed();
        refuse(worker, Direction::Outbound, caller.io.tcp(), peer, entry.address, reason, detail);
    };
    let Some(endpoints) = cluster.endpoints().as_ref().cloned() else {
        return refused(&caller, "no_endpoints", "the endpoints of this Service are not known yet");
    };
    let mut tried = Vec::new();
    let mut last: Option<Unreachable> = None;
    while tried.len() < ATTEMPTS {
        let now = Instant::now();
        let Some(endpoint) = pick(&endpoints, &tried, now).filter(|e| !tried.contains(&e.address)) else { break };
        match worker.connector.connect(endpoint, Alpn::Opaque, info.connect_timeout).await {
            Ok(mut called) => {
                endpoint.state.reached();
                let _held = endpoint.state.enter();
                let series = endpoint_labels(worker, endpoint, &service);
                let end = carry(worker, &series, &mut caller, &mut called).await;
                log_end(Direction::Outbound, peer, endpoint.address, &end);
                return;
            }
            Err(error) => {
                endpoint.state.unreachable(now);
                worker.shared.registry.proxy.retries.inc(["connect"]);
                tracing::debug!(endpoint = %endpoint.address, %error, "endpoint not reached");
                tried.push(endpoint.address);
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) => refused(&caller, "no_endpoint_reached", &error.to_string()),
        None => refused(&caller, "no_endpoints", "this Service has no ready endpoint"),
    }
}

/// Carries a stream to the address that the application meant, in plaintext as the application sent it.
pub(super) async fn passthrough(worker: &Worker, mut caller: Conn, destination: SocketAddr) {
    worker.detected(Direction::Outbound, "opaque", "passthrough");
    let service = Service::passthrough();
    match connect(destination, None, OUTSIDE_CONNECT).await {
        Ok(stream) => {
            let mut called = Conn::new(Io::Plain(stream));
            let series = labels(
                worker,
                Direction::Outbound,
                &Peer::unknown(),
                &service,
                ResponseFlags::NONE,
                SecurityPolicy::None,
            );
            carry(worker, &series, &mut caller, &mut called).await;
        }
        Err(error) => {
            reset(caller.io.tcp());
            labels(worker, Direction::Outbound, &Peer::unknown(), &service, ResponseFlags::UF, SecurityPolicy::Unknown)
                .closed();
            tracing::info!(%destination, %error, "an address outside the mesh was not reached");
        }
    }
}

/// Carries a stream to the pod's own application.
pub(super) async fn to_app(
    worker: &Worker,
    caller: &mut Conn,
    app: TcpStream,
    peer: &Peer,
    service: &Service,
    security: SecurityPolicy,
) -> End {
    let mut called = Conn::new(Io::Plain(app));
    let series = labels(worker, Direction::Inbound, peer, service, ResponseFlags::NONE, security);
    carry(worker, &series, caller, &mut called).await
}

fn endpoint_labels(worker: &Worker, endpoint: &Endpoint, service: &Service) -> Arc<TcpSeries> {
    let security = if endpoint.mesh.is_some() { SecurityPolicy::MutualTls } else { SecurityPolicy::None };
    labels(worker, Direction::Outbound, &endpoint.workload.peer, service, ResponseFlags::NONE, security)
}

fn labels(
    worker: &Worker,
    direction: Direction,
    peer: &Peer,
    service: &Service,
    flags: ResponseFlags,
    security: SecurityPolicy,
) -> Arc<TcpSeries> {
    worker.series.borrow_mut().tcp(&TcpLabels { direction, peer, service, flags, security }).clone()
}

async fn carry(worker: &Worker, series: &TcpSeries, caller: &mut Conn, called: &mut Conn) -> End {
    let _counted = worker.shared.drain.enter(worker.id);
    series.opened();
    // `sent` and `received` are the caller's words in `Moved`; the metric has them the other way round: sent to the caller.
    let end = relay(caller, called, |moved: Moved| series.moved(moved.received, moved.sent)).await;
    series.closed();
    if matches!(end, End::Caller(_) | End::Called(_)) {
        // What one side suffered the other one sees, too: a cut stream must not look like a finished one.
        reset(caller.io.tcp());
        reset(called.io.tcp());
    }
    end
}

fn log_end(direction: Direction, peer: SocketAddr, endpoint: SocketAddr, end: &End) {
    tracing::debug!(direction = direction.as_str(), %peer, %endpoint, ?end, "opaque stream ended");
}
