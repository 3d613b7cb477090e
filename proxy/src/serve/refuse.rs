//! Refusing a connection so that the caller sees it at once.

use std::{net::SocketAddr, time::Duration};

use socket2::SockRef;

use super::Worker;
use crate::{net::Io, policy::Admission, telemetry::Direction};

/// Ends a connection by a reset: the caller gets an error now, as from a port that nobody listens on.
pub(super) fn reset(io: &Io) {
    let _ = io.tcp().map(|tcp| SockRef::from(tcp).set_linger(Some(Duration::ZERO)));
}

/// Refuses a connection to `destination`: reset, counted by `reason`, and logged with what to do.
pub(super) fn refuse(
    worker: &Worker,
    direction: Direction,
    io: &Io,
    peer: SocketAddr,
    destination: SocketAddr,
    reason: &'static str,
    detail: &str,
) {
    reset(io);
    worker.refused(direction, reason);
    tracing::warn!(direction = direction.as_str(), %peer, %destination, reason, detail, "connection refused");
}

/// Counts a connection or request that the access rules refuse, and logs it once for each connection and reason.
pub(super) fn tell_refused(worker: &Worker, admission: &Admission) {
    let Some(denied) = admission.denied() else { return };
    worker.refused(Direction::Inbound, denied.reason());
    worker.shared.registry.proxy.access_refused.inc(denied.object(), denied.rule(), denied.reason());
    if admission.is_news() {
        tracing::warn!(
            direction = Direction::Inbound.as_str(),
            peer = %admission.peer(),
            destination = %admission.app(),
            principal = admission.principal().map_or("none", |principal| principal.uri()),
            reason = denied.reason(),
            policy = denied.object(),
            rule = denied.rule(),
            detail = %denied,
            "access refused"
        );
    }
}
