//! Opaque streams: to an endpoint of a cluster, to an address outside the mesh, or to the pod's own application.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use weir_mesh::Identity;

use super::{
    Worker,
    inbound::Caller,
    refuse::{refuse, reset, tell_refused},
};
use crate::{
    config::{Entry, Stream, Streams},
    detect::{HelloState, client_hello},
    net::{Conn, Io, connect},
    policy::{Admission, until_refused},
    route::source_hash,
    tcp::{End, Moved, relay},
    telemetry::{AccessEntry, Direction, Peer, ResponseFlags, SecurityPolicy, Service, TcpLabels, TcpSeries},
    tls::Alpn,
    upstream::{Ask, Cluster, Endpoint, Full, Unreachable, Verdict},
};

/// How many endpoints are tried: nothing was sent to those that refused.
const ATTEMPTS: usize = 3;
/// How long a client may take for its ClientHello, where the server's name decides.
const CLIENT_HELLO: Duration = Duration::from_secs(5);
/// Without a byte from the client for this long there will be no name.
const SILENCE: Duration = Duration::from_millis(100);
/// How long an address outside the mesh may take to accept.
const OUTSIDE_CONNECT: Duration = Duration::from_secs(10);

/// Carries a stream to where its server's name or the shares of its destination lead.
pub(super) async fn to_one_of(worker: &Worker, mut caller: Conn, peer: SocketAddr, entry: &Entry, streams: &Streams) {
    let name = if streams.ask_for_name() { server_name(&mut caller, streams.take_all()).await } else { None };
    let name = name.as_deref();
    let refused = |caller: &Conn, flags, reason, detail: &str| {
        let service = Service::passthrough();
        labels(worker, Direction::Outbound, &Peer::unknown(), &service, flags, SecurityPolicy::Unknown).closed();
        refuse(worker, Direction::Outbound, &caller.io, peer, entry.address, reason, detail);
    };
    let Some(stream) = streams.pick(name) else {
        let detail = match name {
            Some(name) => format!("no rule of this port is for the server name {name:?}"),
            None => "the rules of this port are for server names, and the client has sent none".to_owned(),
        };
        return refused(&caller, ResponseFlags::NR, "no_route", &detail);
    };
    match stream.target.cluster() {
        Some(cluster) => to_cluster(worker, caller, peer, entry, cluster, &stream, name).await,
        None => {
            let rule = stream.route.map_or("the rules of this port", |(name, _)| name);
            let detail = format!("the backend of this share is not there: the status of {rule} names it");
            refused(&caller, ResponseFlags::UH, "bad_backend", &detail);
        }
    }
}

/// The server's name in a ClientHello; none where there is none. Where streams without one go somewhere too, a silent client is not
/// waited for: the server may speak first.
async fn server_name(caller: &mut Conn, silent_ones_pass: bool) -> Option<String> {
    let deadline = Instant::now() + CLIENT_HELLO;
    loop {
        match client_hello(&caller.read) {
            HelloState::Complete(hello, _) => return hello.server_name,
            HelloState::Invalid => return None,
            HelloState::Incomplete => {}
        }
        let silence = silent_ones_pass && caller.read.is_empty();
        let patience = if silence { Instant::now() + SILENCE } else { deadline };
        match timeout_at(patience, caller.fill()).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => return None,
        }
    }
}

/// Carries a stream to an endpoint of a cluster.
async fn to_cluster(
    worker: &Worker,
    mut caller: Conn,
    peer: SocketAddr,
    entry: &Entry,
    cluster: &Arc<Cluster>,
    stream: &Stream<'_>,
    server_name: Option<&str>,
) {
    let info = cluster.info().clone();
    let service = info.service.clone().unwrap_or_else(Service::passthrough);
    let refused = |caller: &Conn, flag, reason, detail: &str| {
        labels(worker, Direction::Outbound, &Peer::unknown(), &service, flag, SecurityPolicy::Unknown).closed();
        refuse(worker, Direction::Outbound, &caller.io, peer, entry.address, reason, detail);
    };
    let Some(endpoints) = cluster.endpoints().as_ref().cloned() else {
        let detail = "the endpoints of this Service are not known yet";
        return refused(&caller, ResponseFlags::UH, "no_endpoints", detail);
    };
    let mut slot = match worker.slot(&info.breaker) {
        Ok(slot) => slot,
        Err(Full(limit)) => {
            let detail = format!("{}: {limit} is reached", cluster.name);
            return refused(&caller, ResponseFlags::UO, limit, &detail);
        }
    };
    let hash = stream.by_source.then(|| source_hash(peer.ip()));
    let mut tried = Vec::new();
    let mut last: Option<Unreachable> = None;
    while tried.len() < ATTEMPTS {
        let now = Instant::now();
        let ask = Ask { tried: &tried, hash, now };
        let Some(endpoint) = endpoints.pick(&ask).filter(|e| !tried.contains(&e.address)) else { break };
        if !tried.is_empty() {
            worker.shared.registry.proxy.retries.inc(["connect"]);
        }
        match worker.connector.connect(endpoint, Alpn::Opaque, info.connect_timeout).await {
            Ok(mut called) => {
                called.slot = slot.take();
                endpoint.state.reached();
                // More than that nobody knows of a stream.
                worker.judge(cluster, &info, &endpoints, endpoint, Verdict::Answered(200));
                let _held = endpoint.state.enter();
                let series = endpoint_labels(worker, endpoint, &service);
                let facts = Facts {
                    direction: Direction::Outbound,
                    peer,
                    called: entry.address,
                    upstream: Some(endpoint.address),
                    cluster: Some(&cluster.name),
                    identity: endpoint.mesh.as_ref(),
                    admission: None,
                    server_name,
                    route: stream.route,
                };
                carry(worker, &series, &facts, &mut caller, &mut called).await;
                return;
            }
            Err(error) => {
                endpoint.state.unreachable(Instant::now());
                worker.judge(cluster, &info, &endpoints, endpoint, Verdict::Unanswered);
                tracing::debug!(endpoint = %endpoint.address, %error, "endpoint not reached");
                tried.push(endpoint.address);
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) => refused(&caller, ResponseFlags::UH, "no_endpoint_reached", &error.to_string()),
        None => refused(&caller, ResponseFlags::UH, "no_endpoints", "this Service has no ready endpoint"),
    }
}

/// Carries a stream to the address that the application meant, in plaintext as the application sent it.
pub(super) async fn passthrough(worker: &Worker, mut caller: Conn, peer: SocketAddr, destination: SocketAddr) {
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
            let facts = Facts {
                direction: Direction::Outbound,
                peer,
                called: destination,
                upstream: Some(destination),
                cluster: Some("PassthroughCluster"),
                identity: None,
                admission: None,
                server_name: None,
                route: None,
            };
            carry(worker, &series, &facts, &mut caller, &mut called).await;
        }
        Err(error) => {
            reset(&caller.io);
            labels(worker, Direction::Outbound, &Peer::unknown(), &service, ResponseFlags::UF, SecurityPolicy::Unknown)
                .closed();
            tracing::info!(%destination, %error, "an address outside the mesh was not reached");
        }
    }
}

/// Carries a stream to the pod's own application at `app`.
pub(super) async fn to_app(
    worker: &Worker,
    conn: &mut Conn,
    called: TcpStream,
    peer: SocketAddr,
    app: SocketAddr,
    service: &Service,
    caller: &Caller,
) {
    let mut called = Conn::new(Io::Plain(called));
    let series = labels(worker, Direction::Inbound, caller.peer(), service, ResponseFlags::NONE, caller.security());
    let facts = Facts {
        direction: Direction::Inbound,
        peer,
        called: app,
        upstream: Some(app),
        cluster: None,
        identity: caller.identity(),
        admission: Some(&caller.admission),
        server_name: None,
        route: None,
    };
    carry(worker, &series, &facts, conn, &mut called).await;
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

/// What is told of a stream besides its labels.
struct Facts<'a> {
    direction: Direction,
    peer: SocketAddr,
    /// What the caller called.
    called: SocketAddr,
    /// Where it was taken.
    upstream: Option<SocketAddr>,
    cluster: Option<&'a str>,
    identity: Option<&'a Identity>,
    /// Ends the stream when the access rules refuse it.
    admission: Option<&'a Admission>,
    /// What the caller's ClientHello asks for, where it was looked at.
    server_name: Option<&'a str>,
    /// The rule that has led there, and its object.
    route: Option<&'a (String, String)>,
}

async fn carry(worker: &Worker, series: &TcpSeries, facts: &Facts<'_>, caller: &mut Conn, called: &mut Conn) {
    let _counted = worker.shared.drain.enter(worker.id);
    let start = Instant::now();
    let mut total = Moved::default();
    series.opened();
    // `sent` and `received` are the caller's words in `Moved`; the metric has them the other way round: sent to the caller.
    let relayed = relay(caller, called, |moved: Moved| {
        total.sent = total.sent.saturating_add(moved.sent);
        total.received = total.received.saturating_add(moved.received);
        series.moved(moved.received, moved.sent);
    });
    let end = until_refused(facts.admission, pin!(relayed)).await;
    series.closed();
    let (flags, why) = match &end {
        Some(End::Closed) => (ResponseFlags::NONE, None),
        Some(End::Idle) => (ResponseFlags::SI, Some("idle".to_owned())),
        Some(End::Caller(error)) => (ResponseFlags::DC, Some(format!("the caller's connection failed: {error}"))),
        Some(End::Called(error)) => (ResponseFlags::UC, Some(format!("the upstream's connection failed: {error}"))),
        None => {
            let denied = facts.admission.and_then(Admission::denied);
            if let Some(admission) = facts.admission {
                tell_refused(worker, admission);
            }
            (ResponseFlags::LR, Some(denied.map_or_else(String::new, |denied| denied.to_string())))
        }
    };
    if why.is_some() {
        // What one side suffered the other one sees, too: a cut stream must not look like a finished one.
        reset(&caller.io);
        reset(&called.io);
    }
    log(worker, facts, flags, why.as_deref(), start.elapsed(), total);
}

fn log(worker: &Worker, facts: &Facts<'_>, flags: ResponseFlags, why: Option<&str>, duration: Duration, moved: Moved) {
    let mut log = worker.access_log.borrow_mut();
    if log.is_off() {
        return;
    }
    log.log(&AccessEntry {
        start_time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
        direction: facts.direction,
        method: None,
        path: None,
        protocol: "tcp",
        response_code: 0,
        response_flags: flags,
        response_code_details: None,
        connection_termination_details: why,
        reason: None,
        bytes_received: moved.sent,
        bytes_sent: moved.received,
        duration,
        upstream_service_time: None,
        x_forwarded_for: None,
        user_agent: None,
        request_id: None,
        traceparent: None,
        authority: None,
        upstream_host: facts.upstream,
        upstream_cluster: facts.cluster,
        upstream_local_address: None,
        downstream_local_address: Some(facts.called),
        downstream_remote_address: Some(facts.peer),
        requested_server_name: facts.server_name.map(str::as_bytes),
        upstream_transport_failure_reason: None,
        route_name: facts.route.map(|(name, _)| name.as_str()),
        route_object: facts.route.map(|(_, object)| object.as_str()),
        peer_identity: facts.identity,
    });
}
