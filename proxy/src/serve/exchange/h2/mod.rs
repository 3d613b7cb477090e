//! HTTP/2 and gRPC: many exchanges at once on one connection of a caller.
//!
//! The connection's task moves frames; each request has a task of its own, which picks the endpoint, sends the request over one of its
//! worker's connections, and moves both bodies itself.

mod carry;
mod copy;
mod flow;
mod lease;
mod reply;
mod stream;

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, task::Poll, time::Duration};

pub(super) use self::lease::{Peer, Terms, lease};
use super::Side;
use crate::{
    http::h2::{Error, Reason},
    net::{Conn, Deadline, Ended, Frames},
    policy::until_refused,
    serve::{Worker, refuse::tell_refused},
};

/// How long a connection lives on that was told to end, with nothing under way.
const LAST: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, conn: Conn, peer: SocketAddr, side: Side) {
    let frames = Frames::from_client(conn, worker.limits);
    let side = Rc::new(side);
    // Callers of the mesh are told when they ask next: cutting an idle connection could meet a request.
    let admission = side.admission().filter(|admission| admission.principal().is_none());
    let ended = until_refused(admission, pin!(accept(&worker, frames, peer, &side))).await;
    match ended {
        Some(Ok(())) => {}
        Some(Err(ended)) => broken(&worker, &side, peer, &ended),
        None => {
            if let Some(admission) = admission {
                tell_refused(&worker, admission);
            }
        }
    }
}

/// Takes requests until the connection ends.
async fn accept(worker: &Rc<Worker>, mut frames: Frames, peer: SocketAddr, side: &Rc<Side>) -> Result<(), Ended> {
    let mut idle = Deadline::default();
    let mut leaving = false;
    // Other proxies can go elsewhere; anybody else is served until the deadline.
    let drain = worker.shared.drain.clone();
    let closed = async { if side.is_mesh_caller() { drain.closed().await } else { std::future::pending().await } };
    let mut closed = pin!(closed);
    poll_fn(|cx| {
        let ended = frames.poll(cx);
        while let Some(arrived) = frames.session().arrived() {
            tokio::task::spawn_local(stream::serve(worker.clone(), side.clone(), peer, arrived));
        }
        if ended.is_ready() {
            return ended;
        }
        if !leaving && closed.as_mut().poll(cx).is_ready() {
            leaving = true;
            frames.session().leave();
            cx.waker().wake_by_ref();
        }
        if !frames.session().is_idle() {
            idle.clear();
        } else if idle.is_clear() {
            idle.set(if leaving { LAST } else { side.idle() });
        }
        if idle.poll(cx).is_ready() {
            if leaving {
                return Poll::Ready(Ok(()));
            }
            // Said before it is done, so that no request meets the end.
            leaving = true;
            idle.clear();
            frames.session().leave();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// A connection that ended by the caller's fault. One that was just cut is nothing to tell of.
fn broken(worker: &Worker, side: &Side, peer: SocketAddr, ended: &Ended) {
    let reason = match ended {
        Ended::SlowPreface => "http2_preface_slow",
        Ended::SlowHead => "http2_head_slow",
        Ended::Error(Error::GoAway { reason: Reason::ENHANCE_YOUR_CALM, .. }) => "http2_flood",
        Ended::Error(Error::GoAway { .. }) => "http2_error",
        Ended::Error(_) => return,
    };
    worker.refused(side.direction(), reason);
    tracing::warn!(direction = side.direction().as_str(), %peer, reason, error = %ended, "an HTTP/2 connection was ended");
}
