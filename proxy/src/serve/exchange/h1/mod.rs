//! HTTP/1.1: exchanges on one connection of a caller, one after the other.
//!
//! The task that reads a request takes an upstream connection of its worker's pool, writes to it and reads the answer itself.

mod body;
mod carry;
mod copy;
mod forward;

use std::{future::poll_fn, net::SocketAddr, pin::pin, task::Poll, time::Duration};

use bytes::BytesMut;
use tokio::time::{Instant, timeout};

use self::{body::BodyPump, carry::H1};
pub(super) use self::{carry::connected, copy::Copying};
use super::{
    HEAD, MARKER, STALL, Side,
    attempts::{self, Answered, Outcome, Place},
    closed,
    fault::Fault,
    record::Record,
    tries::within,
};
use crate::{
    http::{
        Asked, Edits, Framing, Name, RequestHead, ResponseHead, Version,
        h1::{ForwardResponse, LocalResponse, RequestDecoder, write_local_response, write_response},
    },
    net::{Conn, Deadline},
    policy::until_refused,
    serve::{
        Worker,
        refuse::{self, tell_refused},
    },
    tcp::{self, Moved},
    telemetry::ResponseFlags,
};

/// What a caller still sends after an answer that ends the connection is read for this long, so that the answer is not lost.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub(super) async fn serve(worker: &Worker, mut conn: Conn, peer: SocketAddr, side: &Side) {
    let mut out = BytesMut::new();
    let mut deadline = Deadline::default();
    loop {
        // Callers of the mesh are told when they ask next: cutting an idle connection could meet a request.
        let admission = side.admission().filter(|admission| admission.principal().is_none());
        let read = until_refused(admission, pin!(read_head(worker, &mut conn, side, &mut deadline))).await;
        let head = match read {
            Some(Ok(Some(head))) => head,
            Some(Ok(None)) => return,
            None => {
                if let Some(admission) = admission {
                    tell_refused(worker, admission);
                }
                return refuse::reset(&conn.io);
            }
            Some(Err(fault)) => {
                let mut record = Record::new(0);
                Box::pin(answer_fault(&mut conn, &mut out, &mut record, None, &fault, None, false)).await;
                record.finish(worker, side, peer, None);
                return Box::pin(linger(&mut conn)).await;
            }
        };
        // Most connections wait for a request most of the time: what a request needs is kept only while there is one.
        let next = Box::pin(counted(worker, &mut conn, peer, side, head, &mut out)).await;
        match next {
            Next::Request => {}
            Next::Close => return Box::pin(linger(&mut conn)).await,
            Next::Gone => return,
        }
        out.clear();
        if out.capacity() > 64 * 1024 {
            out = BytesMut::new();
        }
    }
}

/// What follows an exchange.
enum Next {
    /// The connection can carry another request.
    Request,
    /// The connection ends after what was sent.
    Close,
    /// There is nobody any more.
    Gone,
}

/// Reads a head; `None` at a quiet end of the connection.
async fn read_head(
    worker: &Worker,
    conn: &mut Conn,
    side: &Side,
    deadline: &mut Deadline,
) -> Result<Option<RequestHead>, Fault> {
    let mut decoder = RequestDecoder::new();
    deadline.set(if conn.read.is_empty() { side.idle() } else { HEAD });
    loop {
        if !conn.read.is_empty() {
            match decoder.decode(&mut conn.read, &worker.limits) {
                Ok(Some(head)) => return Ok(Some(head)),
                Ok(None) => {}
                Err(refused) => return Err(Fault::upstream(ResponseFlags::DPE, refused.status, refused.reason)),
            }
        }
        let begun = !conn.read.is_empty() || decoder.has_begun();
        let filled = poll_fn(|cx| match conn.poll_fill(cx) {
            Poll::Ready(filled) => Poll::Ready(Some(filled)),
            Poll::Pending => deadline.poll(cx).map(|()| None),
        })
        .await;
        match filled {
            Some(Ok(0)) | Some(Err(_)) => return Ok(None),
            Some(Ok(_)) if !begun => deadline.set(HEAD),
            Some(Ok(_)) => {}
            None if begun => {
                return Err(Fault::upstream(ResponseFlags::SI, 408, "the head of the request did not come in time"));
            }
            None => return Ok(None),
        }
    }
}

/// One request and its answer, which the drain waits for and telemetry tells of.
async fn counted(
    worker: &Worker,
    conn: &mut Conn,
    peer: SocketAddr,
    side: &Side,
    head: RequestHead,
    out: &mut BytesMut,
) -> Next {
    let _counted = worker.shared.drain.enter(worker.id);
    let mut record = Record::new(head.len());
    record.stranger = side.is_stranger();
    record.caller = Some(peer.ip());
    // A request that is refused from its beginning is answered.
    let admission = side.admission().filter(|admission| !admission.is_refused());
    let next = until_refused(admission, pin!(exchange(worker, conn, side, &head, out, &mut record))).await;
    let next = next.unwrap_or_else(|| {
        if let Some(admission) = admission {
            tell_refused(worker, admission);
            record.reason = admission.denied().map(|denied| denied.to_string());
        }
        record.flags |= ResponseFlags::LR;
        refuse::reset(&conn.io);
        Next::Gone
    });
    record.finish(worker, side, peer, Some(&head));
    next
}

/// One request and its answer.
async fn exchange(
    worker: &Worker,
    conn: &mut Conn,
    side: &Side,
    head: &RequestHead,
    out: &mut BytesMut,
    record: &mut Record,
) -> Next {
    let mut request = BodyPump::new(head.framing(), false);
    let outcome = match request.look(conn).map_err(forward::caller_fault).and(closed(worker, side).map_or(Ok(()), Err))
    {
        Err(fault) => Err(fault),
        Ok(()) => match side {
            Side::Outbound { entry } => {
                let mut carrier = H1 { worker, caller: conn, meant: entry.address, head, body: &mut request, out };
                attempts::to_destination(worker, entry, head, &mut carrier, record).await
            }
            Side::Inbound { caller, .. } if caller.admission.is_refused() => {
                attempts::own_edits(head, record); // for the request's id, by which its refusal is found
                tell_refused(worker, &caller.admission);
                let why = caller.admission.denied().map(|denied| denied.to_string()).unwrap_or_default();
                Err(Fault::upstream(ResponseFlags::NONE, 403, why))
            }
            Side::Inbound { app, .. } => {
                let mut carrier = H1 { worker, caller: conn, meant: *app, head, body: &mut request, out };
                carrier.ask_app(record).await.map(Outcome::Answered)
            }
        },
    };
    let wants_more = head.keep_alive() && !worker.shared.drain.is_draining();
    let next = match outcome {
        Ok(Outcome::Answered(answered)) => {
            answer(worker, conn, head, &mut request, answered, out, record, wants_more).await
        }
        Ok(Outcome::Own(fault)) => {
            // A body that nobody reads stands between this request and the next one.
            let keep = wants_more && request.is_whole();
            request.discard(conn);
            answer_fault(conn, out, record, Some(head), &fault, None, keep).await;
            if keep { Next::Request } else { Next::Close }
        }
        Err(fault) => {
            let keep = wants_more && request.is_whole() && fault.status != 400;
            request.discard(conn);
            answer_fault(conn, out, record, Some(head), &fault, fault.marker().filter(|_| side.is_mesh_caller()), keep)
                .await;
            match fault.status {
                0 => Next::Gone,
                _ if keep => Next::Request,
                _ => Next::Close,
            }
        }
    };
    record.received = record.received.saturating_add(request.moved);
    next
}

/// Sends the upstream's answer to the caller.
#[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
async fn answer(
    worker: &Worker,
    conn: &mut Conn,
    head: &RequestHead,
    request: &mut BodyPump,
    answered: Answered<(Conn, ResponseHead)>,
    out: &mut BytesMut,
    record: &mut Record,
    wants_more: bool,
) -> Next {
    let Answered { answer: (mut upstream, mut response), edits, place, limits, _in_flight, _slot } = answered;
    let strip = strip();
    let edits: [&Edits; 3] = [&strip, &edits[0], &edits[1]];
    loop {
        record.code = response.status();
        if response.status() == 101 && head.upgrade().is_none() {
            let fault =
                Fault::upstream(ResponseFlags::UPE, 502, "the upstream switched protocols, which nobody had asked for");
            request.discard(conn);
            answer_fault(conn, out, record, Some(head), &fault, None, false).await;
            return Next::Close;
        }
        let tunnel = response.status() == 101 || (head.is_connect() && response.status() / 100 == 2);
        let interim = response.is_interim();
        let keep_alive = wants_more && !(conn.eof && conn.read.is_empty());
        let how = ForwardResponse::new(&response, head.version(), keep_alive);
        let payload_only = how.framing != response.framing();
        let mut pump = BodyPump::new(if interim || tunnel { Framing::None } else { response.framing() }, payload_only);
        if let Err(error) = pump.look(&upstream) {
            let fault =
                Fault::upstream(ResponseFlags::UPE, 502, format!("the upstream's answer is malformed: {error:?}"));
            answer_fault(conn, out, record, Some(head), &fault, None, false).await;
            return Next::Close;
        }
        // An HTTP/1.0 client knows no interim answers (RFC 9110, section 15.2).
        if !(interim && head.version() == Version::Http10) {
            out.clear();
            write_response(out, &response, &edits, &how);
            record.sent = record.sent.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
            let written = timeout(STALL, forward::write_first(conn, out, &upstream, &pump)).await;
            if !matches!(written, Ok(Ok(()))) {
                record.flags |= ResponseFlags::DC;
                return Next::Gone;
            }
        }
        if interim {
            let next = {
                let asked = head.asked();
                let head = forward::await_head(conn, &mut upstream, request, asked, &worker.limits, limits.idle);
                within(limits.deadline, pin!(head)).await
            };
            let late = || Fault::upstream(ResponseFlags::UT, 504, "the time that the route gives has passed");
            match next.unwrap_or_else(|| Err(late())) {
                Ok(next) => response = next,
                Err(fault) => {
                    answer_fault(conn, out, record, Some(head), &fault, None, false).await;
                    return if fault.status == 0 { Next::Gone } else { Next::Close };
                }
            }
            continue;
        }
        request.release(conn);
        if tunnel {
            let end = tcp::relay(conn, &mut upstream, |moved: Moved| {
                record.received = record.received.saturating_add(moved.sent);
                record.sent = record.sent.saturating_add(moved.received);
            })
            .await;
            record.complete = matches!(end, tcp::End::Closed);
            return Next::Gone;
        }
        pump.first_written(&mut upstream);
        pump.release(&mut upstream);
        if !pump.is_done()
            && let Err(fault) = forward::finish(conn, &mut upstream, request, &mut pump, limits).await
        {
            record.sent = record.sent.saturating_add(pump.moved);
            record.flags |= fault.flag;
            record.reason = Some(fault.detail);
            // The head is out already: a cut connection is the only way left to say that the answer is not whole.
            refuse::reset(&conn.io);
            return Next::Gone;
        }
        record.sent = record.sent.saturating_add(pump.moved);
        record.complete = true;
        if response.keep_alive() && request.is_done() && upstream.read.is_empty() && !upstream.eof {
            drop(response); // it holds the read buffer, which can only be given back when nobody else does
            keep(worker, &place, upstream);
        }
        return if how.keep_alive && request.is_done() { Next::Request } else { Next::Close };
    }
}

/// Keeps a connection for the next request.
fn keep(worker: &Worker, place: &Place, conn: Conn) {
    let now = Instant::now();
    match place {
        Place::Endpoint(endpoint, info) if info.breaker.is_wanted_elsewhere(worker.pool.waiting(endpoint)) => {}
        Place::Endpoint(endpoint, info) => worker.pool.give(endpoint, conn, info.keeping, now),
        Place::App(address) => worker.pool.give_app(*address, conn, now),
    }
}

/// The marker never leaves the mesh, and no application may set it.
fn strip() -> Edits {
    let mut edits = Edits::new();
    edits.remove(const { Name::from_static(MARKER) });
    edits
}

/// Sends the proxy's own answer. The caller gets a status, an id, and no more than it may know; the reason is in the log.
async fn answer_fault(
    conn: &mut Conn,
    out: &mut BytesMut,
    record: &mut Record,
    head: Option<&RequestHead>,
    fault: &Fault,
    marker: Option<&'static str>,
    keep_alive: bool,
) {
    record.flags |= fault.flag;
    record.reason = Some(fault.detail.clone());
    if fault.status == 0 {
        return;
    }
    let id = head.and_then(|head| head.header("x-request-id").next()).or(record.request_id.as_deref());
    let id = id.unwrap_or_default();
    let text = || format!("weir: {}, request id {}\n", fault.summary(), String::from_utf8_lossy(id));
    let body = if fault.is_bare { String::new() } else { text() };
    let mut headers: Vec<(&str, &[u8])> = fault.headers.iter().map(|(name, value)| (*name, &value[..])).collect();
    if !id.is_empty() {
        headers.push(("x-request-id", id));
    }
    headers.extend(marker.map(|marker| (MARKER, marker.as_bytes())));
    out.clear();
    write_local_response(
        out,
        &LocalResponse {
            status: fault.status,
            headers: &headers,
            body: body.as_bytes(),
            keep_alive,
            client: head.map_or(Version::Http11, RequestHead::version),
            asked: head.map_or(Asked::Other, RequestHead::asked),
        },
    );
    record.code = fault.status;
    record.sent = record.sent.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
    record.complete = matches!(timeout(STALL, conn.write_all(out, &[])).await, Ok(Ok(())));
}

/// Ends a connection so that the answer is not lost: a socket that is closed with unread bytes sends a reset, and the caller's kernel
/// then throws away what it has not read yet.
async fn linger(conn: &mut Conn) {
    let _ = timeout(LINGER, async {
        if poll_fn(|cx| conn.poll_flush(cx)).await.is_err() || poll_fn(|cx| conn.poll_shutdown(cx)).await.is_err() {
            return;
        }
        loop {
            conn.read.clear();
            if !matches!(conn.fill().await, Ok(n) if n > 0) {
                return;
            }
        }
    })
    .await;
}
