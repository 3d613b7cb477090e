//! One attempt: a request to one upstream connection, and the head of its answer.

use std::{future::poll_fn, task::Poll, time::Duration};

use bytes::BytesMut;

use super::body::{BodyError, BodyPump, Waits};
use crate::{
    http::{Asked, Limits, ResponseHead, h1::ResponseDecoder},
    net::{Conn, Deadline},
    serve::exchange::{STALL, attempts, fault::Fault},
    telemetry::ResponseFlags,
};

/// A caller that has ended its sending side may still wait for its answer, but not for ever.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// Bytes of further requests that are read while an answer is awaited; more of them wait in the kernel.
const AHEAD: usize = 16 * 1024;

/// The caller is gone, or what it sends is no body.
pub(super) fn caller_fault(error: BodyError) -> Fault {
    match error {
        BodyError::Malformed(refused) => Fault::upstream(ResponseFlags::DPE, refused.status, refused.reason),
        BodyError::TooLarge => Fault::own(413, ResponseFlags::NONE, "the body is larger than the route allows".into()),
        BodyError::Truncated | BodyError::Read | BodyError::Write => {
            Fault::upstream(ResponseFlags::DC, 0, "the caller went away")
        }
    }
}

/// Waits for the head of the answer, while the rest of the request's body goes up and the caller is watched. Nothing may stand still for
/// longer than `idle`.
///
/// # Errors
/// [`Fault`].
pub(super) async fn await_head(
    caller: &mut Conn,
    upstream: &mut Conn,
    request: &mut BodyPump,
    asked: Asked,
    limits: &Limits,
    idle: Option<Duration>,
) -> Result<ResponseHead, Fault> {
    let mut decoder = ResponseDecoder::new();
    let mut deadline = Deadline::default();
    let mut quiet = Deadline::default();
    if let Some(idle) = idle {
        quiet.set(idle);
    }
    // Also for a body that is written: what the TLS layer still holds of it is pushed out by the pump.
    let mut sending = true;
    if !request.is_done() {
        deadline.set(STALL);
    }
    let mut half_closed = false;
    poll_fn(|cx| {
        if sending {
            let before = request.moved;
            match request.poll(cx, caller, upstream) {
                Poll::Ready(Ok(())) => {
                    sending = false;
                    deadline.clear();
                }
                // The upstream takes no more: its answer may be here already.
                Poll::Ready(Err(BodyError::Write)) => {
                    sending = false;
                    deadline.clear();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(caller_fault(error))),
                Poll::Pending if request.moved != before => deadline.set(STALL),
                Poll::Pending => {}
            }
            if let Some(idle) = idle.filter(|_| request.moved != before) {
                quiet.set(idle);
            }
        }
        loop {
            if !upstream.read.is_empty() {
                match decoder.decode(&mut upstream.read, asked, limits) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(refused) => {
                        let detail = format!("the upstream's answer is malformed: {}", refused.reason);
                        return Poll::Ready(Err(Fault::upstream(ResponseFlags::UPE, 502, detail)));
                    }
                }
            }
            let failed = match upstream.poll_fill(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => "the upstream closed the connection before it answered".to_owned(),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => format!("the upstream's connection failed: {error}"),
            };
            let silent = upstream.read.is_empty() && !decoder.has_begun();
            return Poll::Ready(Err(Fault { silent, ..Fault::upstream(ResponseFlags::UC, 503, failed) }));
        }
        if !sending && !caller.eof && caller.read.len() < AHEAD {
            match caller.poll_fill(cx) {
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller reset its connection")));
                }
                Poll::Ready(Ok(n)) if n > 0 => cx.waker().wake_by_ref(),
                _ => {}
            }
        }
        if caller.eof && !sending && !half_closed {
            half_closed = true;
            deadline.set(HALF_CLOSED);
        }
        if quiet.poll(cx).is_ready() {
            let fault = Fault::own(504, ResponseFlags::SI, "nothing moved for as long as the route allows".into());
            return Poll::Ready(Err(fault));
        }
        deadline.poll(cx).map(|()| {
            Err(match (sending, request.waits) {
                (true, Waits::ForSender) => {
                    Fault::upstream(ResponseFlags::SI, 408, "the caller stopped in the middle of its request")
                }
                (true, Waits::ForReceiver) => {
                    Fault::upstream(ResponseFlags::UT, 504, "the upstream stopped reading the request")
                }
                (false, _) => Fault::upstream(ResponseFlags::DC, 0, "the caller closed its side and got no answer"),
            })
        })
    })
    .await
}

/// Moves the body of the answer, while what is left of the request's body goes up.
///
/// # Errors
/// What went wrong; the answer is cut then.
pub(super) async fn finish(
    caller: &mut Conn,
    upstream: &mut Conn,
    request: &mut BodyPump,
    response: &mut BodyPump,
    rule: attempts::Limits,
) -> Result<(), Fault> {
    let mut deadline = Deadline::default();
    let mut whole = Deadline::default();
    if let Some(end) = rule.deadline {
        whole.set_at(end);
    }
    let mut sending = true; // as in `await_head`
    let mut waited_for = response.waits;
    poll_fn(|cx| {
        if sending {
            match request.poll(cx, caller, upstream) {
                Poll::Pending => {}
                // The upstream has answered and takes no more: that is its right.
                Poll::Ready(Ok(()) | Err(BodyError::Write)) => sending = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault { status: 0, ..caller_fault(error) })),
            }
        }
        let before = response.moved;
        match response.poll(cx, upstream, caller) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(match error {
                    BodyError::Malformed(refused) => Fault::upstream(ResponseFlags::UPE, 0, refused.reason),
                    BodyError::TooLarge | BodyError::Truncated | BodyError::Read => {
                        Fault::upstream(ResponseFlags::UC, 0, "the upstream's answer was cut short")
                    }
                    BodyError::Write => Fault::upstream(ResponseFlags::DC, 0, "the caller went away"),
                }));
            }
            Poll::Pending => {}
        }
        // A quiet upstream may stream events for hours; a caller that takes nothing holds buffers and a connection.
        let limit = match response.waits {
            Waits::ForReceiver => Some(rule.idle.map_or(STALL, |idle| idle.min(STALL))),
            Waits::ForSender if caller.eof => Some(rule.idle.map_or(HALF_CLOSED, |idle| idle.min(HALF_CLOSED))),
            Waits::ForSender => rule.idle,
        };
        match limit {
            None => deadline.clear(),
            Some(limit) if response.moved != before || response.waits != waited_for || deadline.is_clear() => {
                deadline.set(limit);
            }
            Some(_) => {}
        }
        waited_for = response.waits;
        if response.waits == Waits::ForSender && !sending && !caller.eof && caller.read.len() < AHEAD {
            match caller.poll_fill(cx) {
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller reset its connection")));
                }
                Poll::Ready(Ok(n)) if n > 0 => cx.waker().wake_by_ref(),
                _ => {}
            }
        }
        if whole.poll(cx).is_ready() {
            let detail = "the answer was not whole in the time that the route gives";
            return Poll::Ready(Err(Fault::upstream(ResponseFlags::UT, 0, detail)));
        }
        deadline.poll(cx).map(|()| {
            Err(match response.waits {
                Waits::ForReceiver => Fault::upstream(ResponseFlags::SI, 0, "the caller stopped taking the answer"),
                Waits::ForSender if caller.eof => {
                    Fault::upstream(ResponseFlags::DC, 0, "the caller closed its side of a quiet answer")
                }
                Waits::ForSender => {
                    Fault::upstream(ResponseFlags::SI, 0, "nothing moved for as long as the route allows")
                }
            })
        })
    })
    .await
}

/// Writes a head and the first bytes of its body in one call.
///
/// # Errors
/// What the stream says.
pub(super) async fn write_first(to: &mut Conn, head: &BytesMut, from: &Conn, pump: &BodyPump) -> std::io::Result<()> {
    to.write_all(head, from.read.get(..pump.first()).unwrap_or_default()).await
}
