//! Refusing a connection so that the caller sees it at once.

use std::{net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::Worker;
use crate::telemetry::Direction;

/// Ends a connection by a reset: the caller gets an error now, as from a port that nobody listens on.
pub(super) fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Refuses a connection to `destination`: reset, counted by `reason`, and logged with what to do.
pub(super) fn refuse(
    worker: &Worker,
    direction: Direction,
    stream: &TcpStream,
    peer: SocketAddr,
    destination: SocketAddr,
    reason: &'static str,
    detail: &str,
) {
    reset(stream);
    worker.refused(direction, reason);
    tracing::warn!(direction = direction.as_str(), %peer, %destination, reason, detail, "connection refused");
}
