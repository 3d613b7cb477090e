//! One request or connection, as a line.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use weir_mesh::Identity;

use super::json::Object;
use crate::telemetry::{flags::ResponseFlags, labels::Direction};

/// What is known at the end of a request or connection. Everything is borrowed; what is absent leaves its key out.
#[derive(Debug, Clone)]
pub struct AccessEntry<'a> {
    /// When the request head, or the connection, arrived.
    pub start_time: SystemTime,
    /// Which way.
    pub direction: Direction,
    /// Request method.
    pub method: Option<&'a [u8]>,
    /// Path and query, as they came.
    pub path: Option<&'a [u8]>,
    /// `HTTP/1.1`, `tcp`, ...
    pub protocol: &'a str,
    /// Status code; 0 where none was sent.
    pub response_code: u16,
    /// Flags.
    pub response_flags: ResponseFlags,
    /// Envoy's word for what made the answer, such as `via_upstream`.
    pub response_code_details: Option<&'a str>,
    /// Why the connection ended, where it did so early.
    pub connection_termination_details: Option<&'a str>,
    /// Why the proxy answered itself or refused: which rule, which object.
    pub reason: Option<&'a str>,
    /// Body bytes from the caller.
    pub bytes_received: u64,
    /// Body bytes to the caller.
    pub bytes_sent: u64,
    /// From the first byte to the last.
    pub duration: Duration,
    /// From the first byte sent to the endpoint until its answer began.
    pub upstream_service_time: Option<Duration>,
    /// Header `x-forwarded-for`.
    pub x_forwarded_for: Option<&'a [u8]>,
    /// Header `user-agent`.
    pub user_agent: Option<&'a [u8]>,
    /// Header `x-request-id`.
    pub request_id: Option<&'a [u8]>,
    /// Header `traceparent`.
    pub traceparent: Option<&'a [u8]>,
    /// Host.
    pub authority: Option<&'a [u8]>,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The cluster.
    pub upstream_cluster: Option<&'a str>,
    /// Our end of the connection to the endpoint.
    pub upstream_local_address: Option<SocketAddr>,
    /// What the caller called (before the redirect).
    pub downstream_local_address: Option<SocketAddr>,
    /// The caller.
    pub downstream_remote_address: Option<SocketAddr>,
    /// SNI.
    pub requested_server_name: Option<&'a [u8]>,
    /// Why the connection to the endpoint failed.
    pub upstream_transport_failure_reason: Option<&'a str>,
    /// Name of the route.
    pub route_name: Option<&'a str>,
    /// The object that the route comes from, such as `HTTPRoute/shop/catalog`.
    pub route_object: Option<&'a str>,
    /// Who the other end is, where it was checked.
    pub peer_identity: Option<&'a Identity>,
}

impl AccessEntry<'_> {
    /// An entry without anything optional.
    pub fn new(direction: Direction, protocol: &str, start_time: SystemTime) -> AccessEntry<'_> {
        AccessEntry {
            start_time,
            direction,
            method: None,
            path: None,
            protocol,
            response_code: 0,
            response_flags: ResponseFlags::NONE,
            response_code_details: None,
            connection_termination_details: None,
            reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            request_id: None,
            traceparent: None,
            authority: None,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local_address: None,
            downstream_local_address: None,
            downstream_remote_address: None,
            requested_server_name: None,
            upstream_transport_failure_reason: None,
            route_name: None,
            route_object: None,
            peer_identity: None,
        }
    }

    /// True for what a sample always holds.
    pub fn failed(&self) -> bool {
        !self.response_flags.is_empty() || self.response_code >= 500 || self.reason.is_some()
    }

    /// Appends the line, its newline included.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let milliseconds = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let mut line = Object::new(out);
        line.time("start_time", self.start_time);
        line.plain("direction", self.direction.as_str());
        line.optional("method", self.method);
        line.optional("path", self.path);
        line.text("protocol", self.protocol.as_bytes());
        line.number("response_code", self.response_code.into());
        line.plain("response_flags", self.response_flags);
        line.optional("response_code_details", self.response_code_details.map(str::as_bytes));
        line.optional("connection_termination_details", self.connection_termination_details.map(str::as_bytes));
        line.optional("reason", self.reason.map(str::as_bytes));
        line.number("bytes_received", self.bytes_received);
        line.number("bytes_sent", self.bytes_sent);
        line.number("duration", milliseconds(self.duration));
        if let Some(time) = self.upstream_service_time {
            line.number("upstream_service_time", milliseconds(time));
        }
        line.optional("x_forwarded_for", self.x_forwarded_for);
        line.optional("user_agent", self.user_agent);
        line.optional("request_id", self.request_id);
        line.optional("traceparent", self.traceparent);
        line.optional("authority", self.authority);
        for (name, address) in [
            ("upstream_host", self.upstream_host),
            ("upstream_local_address", self.upstream_local_address),
            ("downstream_local_address", self.downstream_local_address),
            ("downstream_remote_address", self.downstream_remote_address),
        ] {
            if let Some(address) = address {
                line.plain(name, address);
            }
        }
        line.optional("upstream_cluster", self.upstream_cluster.map(str::as_bytes));
        line.optional("requested_server_name", self.requested_server_name);
        line.optional("upstream_transport_failure_reason", self.upstream_transport_failure_reason.map(str::as_bytes));
        line.optional("route_name", self.route_name.map(str::as_bytes));
        line.optional("route_object", self.route_object.map(str::as_bytes));
        if let Some(identity) = self.peer_identity {
            line.plain("peer_identity", identity);
        }
        line.end();
    }
}
