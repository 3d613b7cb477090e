//! Exchanges: requests of a caller and what they are answered.
//!
//! [`attempts`] finds somebody who answers, whatever the protocol: the choice of a route is `route`'s, of an endpoint `upstream`'s, and
//! [`tries`] says whether once more. What rules do before that is in [`rules`], copies are [`mirror`]'s.
//! [`h1`] and [`h2`] carry a request over a connection ([`carrier`]); [`fault`] is why that failed, and [`record`] what is told of it.
//! [`claims`] is what a caller that has proved nothing may not say of itself.

mod attempts;
mod carrier;
mod claims;
mod convert;
mod fault;
mod h1;
mod h2;
mod mirror;
mod record;
mod rules;
mod tries;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::time::timeout;

use self::fault::Fault;
use super::{
    Worker,
    inbound::Caller,
    refuse::{reset, tell_refused},
};
use crate::{
    config::{Entry, Port},
    detect::{Spoken, spoken},
    net::Conn,
    policy::{Admission, until_refused},
    telemetry::{Direction, ResponseFlags},
};

/// By this an application's proxy tells a caller's proxy why there is no answer of the application. Believed only from a peer whose
/// identity was proved, and never passed on.
const MARKER: &str = "x-weir-fault";
/// A caller that sends nothing of a body it has announced, or takes nothing of an answer, for this long is given up.
const STALL: Duration = Duration::from_secs(300);
/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(10);
/// Between requests, from another proxy of the mesh: longer than that proxy keeps its connections.
const IDLE_MESH: Duration = Duration::from_secs(75);
/// Between requests, from anybody else: applications keep connections for long, and closing one meets a request sooner or later.
pub(super) const IDLE: Duration = Duration::from_secs(3600);
/// Which way, and what is known of the other side.
pub(super) enum Side {
    /// The application calls a destination.
    Outbound {
        /// The destination.
        entry: Arc<Entry>,
    },
    /// Somebody calls the application.
    Inbound {
        /// The called port.
        port: Arc<Port>,
        /// Address of the application.
        app: SocketAddr,
        /// Who calls.
        caller: Caller,
    },
}

impl Side {
    fn idle(&self) -> Duration {
        match self {
            Self::Inbound { caller, .. } if caller.identity().is_some() => IDLE_MESH,
            _ => IDLE,
        }
    }

    /// Which way.
    fn direction(&self) -> Direction {
        match self {
            Self::Outbound { .. } => Direction::Outbound,
            Self::Inbound { .. } => Direction::Inbound,
        }
    }

    /// True for a caller whose identity is proved, and which therefore may hear what did not happen.
    fn is_mesh_caller(&self) -> bool {
        matches!(self, Self::Inbound { caller, .. } if caller.identity().is_some())
    }

    /// True for a caller of the application whose identity is not proved.
    fn is_stranger(&self) -> bool {
        matches!(self, Self::Inbound { caller, .. } if caller.identity().is_none())
    }

    /// What the access rules say of the connection.
    fn admission(&self) -> Option<&Admission> {
        match self {
            Self::Outbound { .. } => None,
            Self::Inbound { caller, .. } => Some(&caller.admission),
        }
    }
}

/// Why no request of this side is taken now.
fn closed(worker: &Worker, side: &Side) -> Option<Fault> {
    let why = if worker.shared.overload.is_on() {
        "the memory of this proxy runs out"
    } else if side.is_mesh_caller() && worker.shared.drain.is_closed() {
        // Other proxies can go elsewhere; anybody else is served until the deadline.
        "this proxy is about to end"
    } else {
        return None;
    };
    Some(Fault { unsent: true, ..Fault::own(503, ResponseFlags::OM, why.to_owned()) })
}

/// Serves a connection to its end, in the protocol that the caller speaks: HTTP/2 begins with a preface, and HTTP/1.1 with anything else.
pub(super) async fn serve(worker: Rc<Worker>, mut conn: Conn, peer: SocketAddr, side: Side) {
    let admission = side.admission().filter(|admission| admission.principal().is_none());
    let mut words = Box::pin(first_words(&mut conn, &side));
    let spoken = until_refused(admission, words.as_mut()).await;
    drop(words);
    match spoken {
        Some(Some(Spoken::Http2)) => Box::pin(h2::serve(worker, conn, peer, side)).await,
        Some(Some(_)) => h1::serve(&worker, conn, peer, &side).await,
        Some(None) => {}
        None => {
            if let Some(admission) = admission {
                tell_refused(&worker, admission);
            }
            reset(&conn.io);
        }
    }
}

/// What the caller's first bytes are; `None` where none come. No method of HTTP/1.1 goes on like a preface.
async fn first_words(conn: &mut Conn, side: &Side) -> Option<Spoken> {
    loop {
        let spoken = spoken(&conn.read);
        let clear = spoken != Spoken::Unclear || conn.eof || !(conn.read.is_empty() || conn.read.starts_with(b"P"));
        if clear && !conn.read.is_empty() {
            return Some(spoken);
        }
        let limit = if conn.read.is_empty() { side.idle() } else { HEAD };
        match timeout(limit, conn.fill()).await {
            Ok(Ok(n)) if n > 0 => {}
            Err(_) if !conn.read.is_empty() => return Some(spoken), // its reader says that it is late
            _ => return None,
        }
    }
}
