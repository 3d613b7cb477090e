//! What is told of a finished exchange: metrics always, a log line where the mode asks for it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::Side;
use crate::{
    http::{RequestHead, Version},
    serve::Worker,
    telemetry::{
        AccessEntry, Direction, HttpLabels, Peer, Protocol, ResponseFlags, RouteSeries, SecurityPolicy, Service,
    },
    upstream::Endpoint,
};

/// Gathered while an exchange goes on.
pub(super) struct Record {
    /// When its head had come.
    pub start: Instant,
    /// The caller has come into the pod and has proved no identity.
    pub stranger: bool,
    /// Who asks.
    pub caller: Option<IpAddr>,
    /// Status sent to the caller; 0 while none was.
    pub code: u16,
    /// Flags.
    pub flags: ResponseFlags,
    /// Why the proxy answered itself, or what failed.
    pub reason: Option<String>,
    /// Bytes from the caller, heads included.
    pub received: u64,
    /// Bytes to the caller, heads included.
    pub sent: u64,
    /// The answer was sent to its end.
    pub complete: bool,
    /// Endpoint of the last attempt.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Address of the application, for inbound.
    pub app: Option<SocketAddr>,
    /// Cluster of the last attempt.
    pub cluster: Option<Arc<crate::upstream::Cluster>>,
    /// Service of the cluster.
    pub service: Option<Arc<Service>>,
    /// Time until the answer began.
    pub first_byte: Option<Duration>,
    /// Name and object of the route.
    pub route: Option<(Arc<str>, Arc<str>)>,
    /// Series of the route.
    pub route_series: Option<Arc<RouteSeries>>,
    /// A gRPC call.
    pub is_grpc: bool,
    /// What the call was answered.
    pub grpc_status: Option<u8>,
    /// The request id, where the request had none and got one.
    pub request_id: Option<bytes::Bytes>,
}

impl Record {
    /// At the end of a request's head.
    pub(super) fn new(head_len: usize) -> Self {
        Self {
            start: Instant::now(),
            stranger: false,
            caller: None,
            code: 0,
            flags: ResponseFlags::NONE,
            reason: None,
            received: u64::try_from(head_len).unwrap_or(u64::MAX),
            sent: 0,
            complete: false,
            endpoint: None,
            app: None,
            cluster: None,
            service: None,
            first_byte: None,
            route: None,
            route_series: None,
            is_grpc: false,
            grpc_status: None,
            request_id: None,
        }
    }

    /// Counts and logs. `head` is missing where the request was none.
    pub(super) fn finish(&self, worker: &Worker, side: &Side, peer: SocketAddr, head: Option<&RequestHead>) {
        let duration = self.start.elapsed();
        let unknown;
        let (direction, other, service, security): (_, &Arc<Peer>, _, _) = match side {
            Side::Inbound { port, caller, .. } => {
                (Direction::Inbound, caller.peer(), Some(&port.service), caller.security())
            }
            Side::Outbound { .. } => match &self.endpoint {
                Some(endpoint) => {
                    let security =
                        if endpoint.mesh.is_some() { SecurityPolicy::MutualTls } else { SecurityPolicy::None };
                    (Direction::Outbound, &endpoint.workload.peer, self.service.as_ref(), security)
                }
                None => {
                    unknown = Peer::unknown();
                    (Direction::Outbound, &unknown, self.service.as_ref(), SecurityPolicy::Unknown)
                }
            },
        };
        let passthrough;
        let service = match service {
            Some(service) => service,
            None => {
                passthrough = Service::passthrough();
                &passthrough
            }
        };
        {
            let mut series = worker.series.borrow_mut();
            let series = series.http(&HttpLabels {
                direction,
                peer: other,
                service,
                protocol: if self.is_grpc { Protocol::Grpc } else { Protocol::Http },
                code: self.code,
                grpc_status: self.grpc_status,
                flags: self.flags,
                security,
            });
            if self.complete {
                series.record(duration, self.received, self.sent);
            } else {
                series.record_incomplete(self.received, self.sent);
            }
        }
        if let (Some(_), Some((route, object))) = (&self.reason, &self.route) {
            let counters = &worker.shared.registry.proxy.rule_answers;
            counters.inc(object.to_string(), route, &self.flags.to_string());
        }
        if let Some(route) = &self.route_series {
            route.record(self.complete && self.code < 500, duration);
        }
        self.log(worker, side, peer, head, direction, duration);
    }

    fn log(
        &self,
        worker: &Worker,
        side: &Side,
        peer: SocketAddr,
        head: Option<&RequestHead>,
        direction: Direction,
        duration: Duration,
    ) {
        let mut log = worker.access_log.borrow_mut();
        if log.is_off() {
            return;
        }
        let header = |name| head.and_then(|head| head.header(name).next());
        let (identity, called) = match side {
            Side::Inbound { caller, app, .. } => (caller.identity(), *app),
            Side::Outbound { entry } => (self.endpoint.as_ref().and_then(|e| e.mesh.as_ref()), entry.address),
        };
        let path = head.map(RequestHead::path_and_query);
        log.log(&AccessEntry {
            start_time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            direction,
            method: head.map(RequestHead::method),
            path: path.as_deref(),
            protocol: match head.map(RequestHead::version) {
                Some(Version::Http2) => "HTTP/2",
                Some(Version::Http10) => "HTTP/1.0",
                Some(Version::Http11) | None => "HTTP/1.1",
            },
            response_code: self.code,
            response_flags: self.flags,
            response_code_details: Some(if self.reason.is_some() { "direct_response" } else { "via_upstream" }),
            connection_termination_details: None,
            reason: self.reason.as_deref(),
            bytes_received: self.received,
            bytes_sent: self.sent,
            duration,
            upstream_service_time: self.first_byte,
            x_forwarded_for: header("x-forwarded-for"),
            user_agent: header("user-agent"),
            request_id: header("x-request-id").or(self.request_id.as_deref()),
            traceparent: header("traceparent"),
            authority: head.map(RequestHead::authority),
            upstream_host: self.endpoint.as_ref().map(|e| e.address).or(self.app),
            upstream_cluster: self.cluster.as_ref().map(|cluster| &*cluster.name),
            upstream_local_address: None,
            downstream_local_address: Some(called),
            downstream_remote_address: Some(peer),
            requested_server_name: None,
            upstream_transport_failure_reason: None,
            route_name: self.route.as_ref().map(|(name, _)| &**name),
            route_object: self.route.as_ref().map(|(_, object)| &**object),
            peer_identity: identity,
        });
    }
}
