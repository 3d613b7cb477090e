//! HTTP/2 and gRPC: many exchanges at once on one connection of a caller.
//!
//! The connection's task moves frames; each request has a task of its own, which picks the endpoint, sends the request over one of its
//! worker's connections, and moves both bodies itself.

mod carry;
mod chunks;
mod flow;
mod lease;
mod reply;
mod stream;

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{
    Reason,
    server::{Builder, Connection},
};

pub(super) use self::lease::{Peer, lease};
use super::{HEAD, Side};
use crate::{
    net::{Conn, Deadline, Trouble, Wire},
    policy::until_refused,
    serve::{Worker, refuse::tell_refused},
    upstream::{CONNECTION_WINDOW, HEADER_LIST, SEND_BUFFER, STREAM_WINDOW},
};

/// Requests of one caller's connection at the same time: as many as the connection's window has room for.
const STREAMS: u32 = CONNECTION_WINDOW / STREAM_WINDOW;
/// How long a connection lives on that was told to end, with nothing under way.
const LAST: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, conn: Conn, peer: SocketAddr, side: Side) {
    let wire = Wire::from_client(conn);
    let trouble = wire.trouble();
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(wire);
    let connection = match tokio::time::timeout(HEAD, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return broken(&worker, &side, peer, trouble.get(), &error),
        Err(_) => return worker.refused(side.direction(), "http2_preface_slow"),
    };
    let side = Rc::new(side);
    // Callers of the mesh are told when they ask next: cutting an idle connection could meet a request.
    let admission = side.admission().filter(|admission| admission.principal().is_none());
    let ended = until_refused(admission, pin!(accept(&worker, connection, peer, &side))).await;
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => broken(&worker, &side, peer, trouble.get(), &error),
        None => {
            if let Some(admission) = admission {
                tell_refused(&worker, admission);
            }
        }
    }
}

/// Takes requests until the connection ends.
async fn accept(
    worker: &Rc<Worker>,
    mut connection: Connection<Wire, Bytes>,
    peer: SocketAddr,
    side: &Rc<Side>,
) -> Result<(), h2::Error> {
    let mut idle = Deadline::default();
    let mut leaving = false;
    // Other proxies can go elsewhere; anybody else is served until the deadline.
    let drain = worker.shared.drain.clone();
    let closed = async { if side.is_mesh_caller() { drain.closed().await } else { std::future::pending().await } };
    let mut closed = pin!(closed);
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    tokio::task::spawn_local(stream::serve(worker.clone(), side.clone(), peer, request, respond));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if !leaving && closed.as_mut().poll(cx).is_ready() {
            leaving = true;
            connection.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        if connection.has_streams() {
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
            connection.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// A connection that ended by the caller's fault. One that was just cut is nothing to tell of.
fn broken(worker: &Worker, side: &Side, peer: SocketAddr, trouble: Option<Trouble>, error: &h2::Error) {
    if error.is_remote() {
        return;
    }
    let reason = match trouble {
        Some(Trouble::Flood(_)) => "http2_flood",
        Some(Trouble::SlowHead) => "http2_head_slow",
        None if error.is_io() => return,
        None if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) => "http2_flood",
        None => "http2_error",
    };
    worker.refused(side.direction(), reason);
    tracing::warn!(direction = side.direction().as_str(), %peer, reason, %error, "an HTTP/2 connection was ended");
}
