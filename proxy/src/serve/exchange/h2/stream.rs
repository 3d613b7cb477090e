//! One request and its answer.

use std::{future::poll_fn, net::SocketAddr, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, request::Parts};

use super::{
    carry::{Answer, H2},
    flow::{Flow, FlowError, Waits},
    reply::{Reply, answer},
};
use crate::{
    http::{
        Edits, RequestHead,
        h2::{self as http2, grpc},
    },
    net::Deadline,
    policy::until_refused,
    serve::{
        Worker,
        exchange::{
            NOT_DELIVERED, STALL, Side,
            attempts::{self, Answered, Outcome},
            fault::Fault,
            record::Record,
        },
        refuse::tell_refused,
    },
    telemetry::ResponseFlags,
};

/// Serves one request, which the drain waits for and telemetry tells of.
pub(super) async fn serve(
    worker: Rc<Worker>,
    side: Rc<Side>,
    peer: SocketAddr,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let _counted = worker.shared.drain.enter(worker.id);
    let (parts, body) = request.into_parts();
    let mut reply = Reply::new(respond);
    let head = match http2::request(&parts, body.is_end_stream(), &worker.limits) {
        Ok(head) => head,
        Err(refused) => {
            let mut record = Record::new(0);
            record.is_grpc = grpc::is_grpc(&parts.headers);
            let fault = Fault::own(refused.status, ResponseFlags::DPE, refused.reason.to_owned());
            reply.own(&mut record, None, &fault);
            return record.finish(&worker, &side, peer, None);
        }
    };
    let mut record = Record::new(head.len());
    record.is_grpc = grpc::is_grpc(&parts.headers);
    let mut flow = Flow::new(body, true);
    // A request that is refused from its beginning is answered.
    let admission = side.admission().filter(|admission| !admission.is_refused());
    let done =
        until_refused(admission, within(&worker, &side, &parts, &head, &mut flow, &mut reply, &mut record)).await;
    if done.is_none() {
        if let Some(admission) = admission {
            tell_refused(&worker, admission);
            record.reason = admission.denied().map(|denied| denied.to_string());
        }
        record.flags |= ResponseFlags::LR;
        reply.reset(Reason::CANCEL);
    }
    record.received = record.received.saturating_add(flow.moved);
    record.finish(&worker, &side, peer, Some(&head));
}

/// The exchange, in the time that a gRPC caller gives it.
async fn within(
    worker: &Worker,
    side: &Side,
    parts: &Parts,
    head: &RequestHead,
    request: &mut Flow,
    reply: &mut Reply,
    record: &mut Record,
) {
    let limit = grpc::timeout(&parts.headers).filter(|_| record.is_grpc);
    let Some(limit) = limit else { return exchange(worker, side, parts, head, request, reply, record).await };
    let exchange = exchange(worker, side, parts, head, request, reply, record);
    if tokio::time::timeout(limit, exchange).await.is_ok() {
        return;
    }
    let fault = Fault::own(504, ResponseFlags::UT, format!("the caller's deadline of {limit:?} has passed"));
    if reply.has_begun() {
        record.flags |= fault.flag;
        record.reason = Some(fault.detail);
        record.grpc_status = Some(grpc::DEADLINE_EXCEEDED);
        reply.reset(Reason::CANCEL);
    } else {
        reply.own(record, Some(head), &fault);
    }
}

async fn exchange(
    worker: &Worker,
    side: &Side,
    parts: &Parts,
    head: &RequestHead,
    request: &mut Flow,
    reply: &mut Reply,
    record: &mut Record,
) {
    let outcome = match side {
        // Other proxies can go elsewhere; anybody else is served until the deadline.
        _ if side.is_mesh_caller() && worker.shared.drain.is_closed() => {
            let fault = Fault::own(503, ResponseFlags::OM, "this proxy is about to end".into());
            Err(Fault { unsent: true, ..fault })
        }
        Side::Outbound { entry } => {
            let mut carrier = H2 { worker, meant: entry.address, parts, head, request, reply };
            attempts::to_destination(worker, entry, head, &mut carrier, record).await
        }
        Side::Inbound { caller, .. } if caller.admission.is_refused() => {
            attempts::own_edits(head, record); // for the request's id, by which its refusal is found
            tell_refused(worker, &caller.admission);
            let why = caller.admission.denied().map(|denied| denied.to_string()).unwrap_or_default();
            Err(Fault::own(403, ResponseFlags::NONE, why))
        }
        Side::Inbound { app, .. } => {
            let mut carrier = H2 { worker, meant: *app, parts, head, request, reply };
            carrier.ask_app(record).await.map(Outcome::Answered)
        }
    };
    match outcome {
        Ok(Outcome::Answered(answered)) => pass_on(request, reply, answered, record).await,
        Ok(Outcome::Own { status, flag, reason }) => reply.own(record, Some(head), &Fault::own(status, flag, reason)),
        // A proxy of the mesh tries another endpoint.
        Err(fault) if fault.unsent && side.is_mesh_caller() => {
            record.flags |= fault.flag;
            record.reason = Some(fault.detail);
            record.code = fault.status;
            record.complete = true;
            reply.reset(Reason::REFUSED_STREAM);
        }
        Err(fault) => reply.own(record, Some(head), &fault),
    }
}

/// Passes an answer on to its end, while what is left of the request goes up.
async fn pass_on(request: &mut Flow, reply: &mut Reply, answered: Answered<Answer>, record: &mut Record) {
    let Answered { answer: Answer { mut head, body, mut rest, _lease }, edits, _in_flight, .. } = answered;
    head.headers.remove(NOT_DELIVERED);
    let lists: [&Edits; 2] = [&edits[0], &edits[1]];
    http2::apply(&mut head.headers, &lists);
    record.code = head.status.as_u16();
    record.grpc_status = grpc::status(&head.headers).filter(|_| record.is_grpc);
    record.sent = record.sent.saturating_add(size(&head.headers));
    let mut response = Flow::new(body, false);
    if !reply.begin(answer(head.status, head.headers), response.is_empty()) {
        record.flags |= ResponseFlags::DC;
        return;
    }
    let ended = match reply.stream.take() {
        Some(mut stream) => {
            let ended = both(request, &mut rest, &mut response, &mut stream).await;
            reply.stream = Some(stream);
            ended
        }
        None => Ok(()),
    };
    record.sent = record.sent.saturating_add(response.moved);
    if let Some(trailers) = response.trailers() {
        record.sent = record.sent.saturating_add(size(trailers));
        if record.is_grpc {
            record.grpc_status = grpc::status(trailers).or(record.grpc_status);
        }
    }
    match ended {
        Ok(()) => record.complete = true,
        Err((fault, reason)) => {
            record.flags |= fault.flag;
            record.reason = Some(fault.detail);
            // The head is out already: a reset is the only way left to say that the answer is not whole.
            if let Some(reason) = reason {
                reply.reset(reason);
            }
        }
    }
}

/// Moves both bodies until the answer's is done.
async fn both(
    request: &mut Flow,
    rest: &mut h2::SendStream<Bytes>,
    response: &mut Flow,
    stream: &mut h2::SendStream<Bytes>,
) -> Result<(), (Fault, Option<Reason>)> {
    let mut sending = !request.is_done();
    let mut deadline = Deadline::default();
    let mut moved = response.moved;
    poll_fn(|cx| {
        if sending {
            match request.poll(cx, rest) {
                Poll::Pending => {}
                // The upstream has answered and takes no more: that is its right.
                Poll::Ready(Ok(()) | Err(FlowError::Receiver)) => sending = false,
                Poll::Ready(Err(FlowError::Sender(_))) => {
                    return Poll::Ready(Err((
                        Fault::upstream(ResponseFlags::DC, 0, "the caller ended its request"),
                        None,
                    )));
                }
            }
        }
        match response.poll(cx, stream) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(FlowError::Receiver)) => {
                return Poll::Ready(Err((Fault::upstream(ResponseFlags::DC, 0, "the caller went away"), None)));
            }
            Poll::Ready(Err(FlowError::Sender(error))) => {
                let flag = if error.is_remote() { ResponseFlags::UR } else { ResponseFlags::UC };
                let fault = Fault::upstream(flag, 0, format!("the upstream's answer was cut short: {error}"));
                let reason = error.reason().filter(|_| error.is_reset() && error.is_remote());
                return Poll::Ready(Err((fault, Some(reason.unwrap_or(Reason::INTERNAL_ERROR)))));
            }
            Poll::Pending => {}
        }
        if stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Err((Fault::upstream(ResponseFlags::DC, 0, "the caller took its request back"), None)));
        }
        // A quiet upstream may stream events for hours; a caller that takes nothing holds buffers and a connection.
        if response.waits == Waits::ForReceiver {
            if deadline.is_clear() || response.moved != moved {
                deadline.set(STALL);
            }
            moved = response.moved;
        } else {
            deadline.clear();
        }
        deadline.poll(cx).map(|()| {
            let fault = Fault::upstream(ResponseFlags::SI, 0, "the caller stopped taking the answer");
            Err((fault, Some(Reason::CANCEL)))
        })
    })
    .await
}

/// Bytes of a list of headers, about as they are in HTTP/1.1.
fn size(headers: &http::HeaderMap) -> u64 {
    let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    u64::try_from(size).unwrap_or(u64::MAX)
}
