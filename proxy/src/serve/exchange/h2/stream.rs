//! One request and its answer.

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, request::Parts};

use super::{
    carry::{Answer, H2},
    flow::{Flow, FlowError, Stall},
    reply::{Reply, answer},
};
use crate::{
    http::{
        Edits, RequestHead,
        h2::{self as http2, grpc},
    },
    policy::until_refused,
    serve::{
        Worker,
        exchange::{
            NOT_DELIVERED, Side,
            attempts::{self, Answered, Outcome},
            closed,
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
    let (mut parts, body) = request.into_parts();
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
    let exchange = Exchange {
        worker: &worker,
        side: &side,
        parts: &mut parts,
        head: &head,
        request: &mut flow,
        reply: &mut reply,
        record: &mut record,
    };
    let ended = until_refused(admission, pin!(exchange.in_time())).await;
    if ended.is_none() {
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

/// A request whose head can be read.
struct Exchange<'a> {
    worker: &'a Worker,
    side: &'a Side,
    parts: &'a mut Parts,
    head: &'a RequestHead,
    request: &'a mut Flow,
    reply: &'a mut Reply,
    record: &'a mut Record,
}

impl Exchange<'_> {
    /// The whole of it, in the time that a gRPC caller gives it.
    async fn in_time(mut self) {
        let limit = grpc::timeout(&self.parts.headers).filter(|_| self.record.is_grpc);
        let passed = {
            let whole = pin!(self.whole()); // in one place for both ways to wait for it
            match limit {
                None => {
                    whole.await;
                    None
                }
                Some(limit) => tokio::time::timeout(limit, whole).await.err().map(|_| limit),
            }
        };
        let Some(limit) = passed else { return };
        let Self { head, reply, record, .. } = self;
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

    async fn whole(&mut self) {
        let answered = self.answer().await;
        let Self { side, head, request, reply, record, .. } = self;
        match answered {
            Ok(Outcome::Answered(answered)) => pass_on(request, reply, answered, record).await,
            Ok(Outcome::Own { status, flag, reason }) => {
                reply.own(record, Some(head), &Fault::own(status, flag, reason));
            }
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

    /// Finds who answers, and waits until an answer begins.
    async fn answer(&mut self) -> Result<Outcome<Answer>, Fault> {
        let Self { worker, side, head, record, .. } = self;
        if let Some(fault) = closed(worker, side) {
            return Err(fault);
        }
        let meant = match side {
            Side::Outbound { entry } => entry.address,
            Side::Inbound { app, .. } => *app,
        };
        if let Side::Inbound { caller, .. } = side
            && caller.admission.is_refused()
        {
            attempts::own_edits(head, record); // for the request's id, by which its refusal is found
            tell_refused(worker, &caller.admission);
            let why = caller.admission.denied().map(|denied| denied.to_string()).unwrap_or_default();
            return Err(Fault::own(403, ResponseFlags::NONE, why));
        }
        let mut carrier =
            H2 { worker, meant, parts: &mut *self.parts, head, request: &mut *self.request, reply: &mut *self.reply };
        match side {
            Side::Outbound { entry } => attempts::to_destination(worker, entry, head, &mut carrier, record).await,
            Side::Inbound { .. } => carrier.ask_app(record).await.map(Outcome::Answered),
        }
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
    let mut stall = Stall::default();
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
        stall.poll(cx, response).map(|()| {
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
