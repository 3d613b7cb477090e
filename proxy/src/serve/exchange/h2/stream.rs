//! One request and its answer.

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, task::Poll};

use super::{
    carry::{Answer, H2, stands_still, too_large},
    flow::{Flow, FlowError, Stall},
    reply::Reply,
};
use crate::{
    http::{
        Edits, Name, RequestHead,
        h2::{Arrived, ForwardResponse, Reason, Sender, grpc},
    },
    net::Deadline,
    policy::until_refused,
    serve::{
        Worker,
        exchange::{
            MARKER, Side,
            attempts::{self, Answered, Limits, Outcome},
            closed,
            fault::Fault,
            record::Record,
        },
        refuse::tell_refused,
    },
    telemetry::ResponseFlags,
};

/// Serves one request, which the drain waits for and telemetry tells of.
pub(super) async fn serve(worker: Rc<Worker>, side: Rc<Side>, peer: SocketAddr, arrived: Arrived) {
    let _counted = worker.shared.drain.enter(worker.id);
    let Arrived { head, body, reply } = arrived;
    let mut reply = Reply::new(reply);
    let head = match head {
        Ok(head) => head,
        Err(refused) => {
            let mut record = Record::new(0);
            let fault = Fault::own(refused.status, ResponseFlags::DPE, refused.reason.to_owned());
            reply.own(&mut record, None, &fault, None).await;
            return record.finish(&worker, &side, peer, None);
        }
    };
    let mut record = Record::new(head.len());
    record.stranger = side.is_stranger();
    record.caller = Some(peer.ip());
    record.is_grpc = grpc::is_grpc(head.header("content-type").next());
    let mut flow = Flow::new(body, true);
    // A request that is refused from its beginning is answered.
    let admission = side.admission().filter(|admission| !admission.is_refused());
    let exchange = Exchange {
        worker: &worker,
        side: &side,
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
    head: &'a RequestHead,
    request: &'a mut Flow,
    reply: &'a mut Reply,
    record: &'a mut Record,
}

impl Exchange<'_> {
    /// The whole of it, in the time that a gRPC caller gives it.
    async fn in_time(mut self) {
        let limit = self.head.header("grpc-timeout").next().filter(|_| self.record.is_grpc).and_then(grpc::timeout);
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
            reply.own(record, Some(head), &fault, None).await;
        }
    }

    async fn whole(&mut self) {
        let answered = self.answer().await;
        let Self { side, head, request, reply, record, .. } = self;
        match answered {
            Ok(Outcome::Answered(answered)) => pass_on(request, reply, answered, record).await,
            Ok(Outcome::Own(fault)) => reply.own(record, Some(head), &fault, None).await,
            // A proxy of the mesh tries another endpoint.
            Err(fault) if fault.unsent && side.is_mesh_caller() => {
                record.flags |= fault.flag;
                record.reason = Some(fault.detail);
                record.code = fault.status;
                record.complete = true;
                reply.reset(Reason::REFUSED_STREAM);
            }
            Err(fault) => {
                let marker = fault.marker().filter(|_| side.is_mesh_caller());
                reply.own(record, Some(head), &fault, marker).await;
            }
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
        let mut carrier = H2 { worker, meant, head, request: &mut *self.request, reply: &mut *self.reply };
        match side {
            Side::Outbound { entry } => attempts::to_destination(worker, entry, head, &mut carrier, record).await,
            Side::Inbound { .. } => carrier.ask_app(record).await.map(Outcome::Answered),
        }
    }
}

/// Passes an answer on to its end, while what is left of the request goes up.
async fn pass_on(request: &mut Flow, reply: &mut Reply, answered: Answered<Answer>, record: &mut Record) {
    let Answered { answer: Answer { head, body, mut rest, _lease }, edits, limits, _in_flight, _slot, .. } = answered;
    request.release();
    record.code = head.status();
    record.grpc_status = head.header("grpc-status").next().filter(|_| record.is_grpc).map(grpc::status);
    record.sent = record.sent.saturating_add(size(head.len()));
    let mut response = Flow::new(body, false);
    let mut unmarked = Edits::new();
    if head.header(MARKER).next().is_some() {
        unmarked.remove(Name::from_static(MARKER));
    }
    if !reply.begin(&ForwardResponse { head: &head, edits: &[&unmarked, &edits[0], &edits[1]] }, response.is_empty()) {
        record.flags |= ResponseFlags::DC;
        return;
    }
    drop(head);
    let ended = both(request, &mut rest, &mut response, &mut reply.to, limits).await;
    record.sent = record.sent.saturating_add(response.moved);
    if let Some(trailers) = response.trailers() {
        record.sent = record.sent.saturating_add(size(trailers.len()));
        if let Some(status) = trailers.header("grpc-status").next().filter(|_| record.is_grpc) {
            record.grpc_status = Some(grpc::status(status));
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
    rest: &mut Sender,
    response: &mut Flow,
    stream: &mut Sender,
    limits: Limits,
) -> Result<(), (Fault, Option<Reason>)> {
    let mut sending = !request.is_done();
    let mut stall = Stall::default();
    let (mut whole, mut quiet, mut moved) = (Deadline::default(), Deadline::default(), None);
    if let Some(end) = limits.deadline {
        whole.set_at(end);
    }
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
                Poll::Ready(Err(FlowError::TooLarge)) => return Poll::Ready(Err((too_large(), Some(Reason::CANCEL)))),
            }
        }
        match response.poll(cx, stream) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(FlowError::Receiver | FlowError::TooLarge)) => {
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
        if whole.poll(cx).is_ready() {
            let detail = "the answer was not whole in the time that the route gives";
            return Poll::Ready(Err((Fault::upstream(ResponseFlags::UT, 0, detail), Some(Reason::CANCEL))));
        }
        if let Some(idle) = limits.idle {
            let now = Some((request.moved, response.moved));
            if moved != now {
                moved = now;
                quiet.set(idle);
            }
            if quiet.poll(cx).is_ready() {
                return Poll::Ready(Err((stands_still(0), Some(Reason::CANCEL))));
            }
        }
        stall.poll(cx, response).map(|()| {
            let fault = Fault::upstream(ResponseFlags::SI, 0, "the caller stopped taking the answer");
            Err((fault, Some(Reason::CANCEL)))
        })
    })
    .await
}

fn size(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
