//! What can be measured, and in which parts a run can be taken.

use serde::Serialize;

use crate::candidate::Kind;

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// HTTP/1.1, in both paces.
    Http1,
    /// Bulk.
    Tcp,
    /// HTTP/2 without gRPC.
    Http2,
    /// gRPC, calls and streams.
    Grpc,
    /// Fresh connections.
    Connections,
    /// One rule and a thousand on one host.
    Routes,
    /// Memory; the only part that is no scenario.
    Memory,
}

impl Part {
    /// All, in the order of the tables.
    pub const ALL: [Self; 7] =
        [Self::Http1, Self::Tcp, Self::Http2, Self::Grpc, Self::Connections, Self::Routes, Self::Memory];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Tcp => "tcp",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Connections => "connections",
            Self::Routes => "routes",
            Self::Memory => "memory",
        }
    }
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// 32 connections, each sends its next request when it has its answer.
    Http1,
    /// 1,000 requests a second.
    #[serde(rename = "http1_1000rps")]
    Http1Paced,
    /// One connection, as fast as it goes.
    Tcp,
    /// Requests of HTTP/2.
    Http2,
    /// Calls.
    GrpcUnary,
    /// Messages on streams that stay open.
    GrpcStream,
    /// Connections with a full handshake each.
    Handshakes,
    /// Connections that resume a session.
    HandshakesResumed,
    /// Requests by the only rule of a host.
    OneRoute,
    /// The same with a thousand rules.
    ManyRoutes,
}

impl Scenario {
    /// All, in the order of the tables.
    pub const ALL: [Self; 10] = [
        Self::Http1,
        Self::Http1Paced,
        Self::Tcp,
        Self::Http2,
        Self::GrpcUnary,
        Self::GrpcStream,
        Self::Handshakes,
        Self::HandshakesResumed,
        Self::OneRoute,
        Self::ManyRoutes,
    ];

    /// Where it belongs.
    pub fn part(self) -> Part {
        match self {
            Self::Http1 | Self::Http1Paced => Part::Http1,
            Self::Tcp => Part::Tcp,
            Self::Http2 => Part::Http2,
            Self::GrpcUnary | Self::GrpcStream => Part::Grpc,
            Self::Handshakes | Self::HandshakesResumed => Part::Connections,
            Self::OneRoute | Self::ManyRoutes => Part::Routes,
        }
    }

    /// False where a candidate has no such thing.
    pub fn is_of(self, kind: Kind) -> bool {
        match self {
            Self::HandshakesResumed => matches!(kind, Kind::Envoy(_)),
            Self::OneRoute | Self::ManyRoutes => matches!(kind, Kind::Weir(_)),
            _ => true,
        }
    }

    /// Name in the JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http1Paced => "http1_1000rps",
            Self::Tcp => "tcp",
            Self::Http2 => "http2",
            Self::GrpcUnary => "grpc_unary",
            Self::GrpcStream => "grpc_stream",
            Self::Handshakes => "handshakes",
            Self::HandshakesResumed => "handshakes_resumed",
            Self::OneRoute => "one_route",
            Self::ManyRoutes => "many_routes",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 1 kB, 32 connections, saturated",
            Self::Http1Paced => "HTTP/1.1, 1 kB, 1,000 requests/s",
            Self::Tcp => "TCP, one connection",
            Self::Http2 => "HTTP/2, 1 kB, 4 connections of 8 streams, saturated",
            Self::GrpcUnary => "gRPC, calls of 100 bytes, 4 connections of 8 streams, saturated",
            Self::GrpcStream => "gRPC, messages of 100 bytes on 32 long streams, saturated",
            Self::Handshakes => "fresh connections, 32 at once, a full handshake each",
            Self::HandshakesResumed => "fresh connections, 32 at once, sessions resumed",
            Self::OneRoute => "HTTP/1.1, 1 kB, 32 connections, saturated, one rule on the host",
            Self::ManyRoutes => "HTTP/1.1, 1 kB, 32 connections, saturated, 1,000 rules on the host",
        }
    }

    /// What is counted: its name a second, and the unit that CPU time is for, with how many of what was counted are in it.
    pub fn unit(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::Http1 | Self::Http1Paced | Self::Http2 | Self::OneRoute | Self::ManyRoutes => {
                ("requests/s", "1,000 requests", 1e3)
            }
            Self::Tcp => ("MB/s", "GB", 1e3),
            Self::GrpcUnary => ("calls/s", "1,000 calls", 1e3),
            Self::GrpcStream => ("messages/s", "1,000 messages", 1e3),
            Self::Handshakes | Self::HandshakesResumed => ("connections/s", "1,000 connections", 1e3),
        }
    }
}
