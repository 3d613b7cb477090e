//! One request over a connection of HTTP/2: one that carries others as well, or a new one.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll};

use tokio::time::Instant;

use super::{
    copy::copying,
    flow::{Flow, FlowError, Stall},
    lease::{Peer, Terms, lease},
    reply::Reply,
};
use crate::{
    http::{
        RequestHead, ResponseHead, Version,
        h2::{Error, ForwardRequest, ForwardResponse, Receiver, Sender},
    },
    net::Deadline,
    serve::{
        Worker,
        exchange::{
            MARKER,
            attempts::{Answered, Carrier, Kept, Onward, is_safe, own_edits},
            convert,
            fault::Fault,
            h1::Copying,
            record::Record,
        },
    },
    telemetry::ResponseFlags,
    upstream::{ClusterInfo, Endpoint, Keeping, Lease},
};

/// Interim answers to one request: they go outside of the caller's windows.
const INTERIMS: u32 = 100;
/// Connections to the application for one request.
const ATTEMPTS: usize = 3;

/// A request and the caller that it comes from.
pub(super) struct H2<'a> {
    pub worker: &'a Worker,
    /// The address that the caller called.
    pub meant: SocketAddr,
    pub head: &'a RequestHead,
    pub request: &'a mut Flow,
    pub reply: &'a mut Reply,
}

/// An answer that has begun.
pub(super) struct Answer {
    pub head: ResponseHead,
    pub body: Receiver,
    /// Where the rest of the request goes.
    pub rest: Sender,
    pub _lease: Lease,
}

impl Carrier for H2<'_> {
    type Answer = Answer;

    async fn send(
        &mut self,
        to: &Endpoint,
        kept: Kept,
        cluster: &ClusterInfo,
        onward: &Onward<'_>,
    ) -> Result<Answer, Fault> {
        let lease = match cluster.version {
            Some(Version::Http11) if !self.head.is_connect() => {
                Box::pin(convert::to_http1(self.worker, to, cluster)).await?
            }
            _ => lease(self.worker, Peer::Endpoint(to), kept, Terms::of(cluster)).await?,
        };
        let answer = self.over(lease, onward).await.map_err(|fault| Fault {
            // A proxy of the mesh refuses a stream whose application it does not reach.
            not_delivered: fault.not_delivered && to.mesh.is_some(),
            ..fault
        })?;
        // Nothing else is looked through for it: a proxy says so with 503, or to callers of gRPC with 200 and no more behind it.
        if (answer.head.status() == 503 || answer.body.is_at_end())
            && to.mesh.is_some()
            && let Some(fault) = Fault::told(answer.head.header(MARKER).next(), to.address)
        {
            return Err(fault);
        }
        Ok(answer)
    }

    fn status(answer: &Answer) -> u16 {
        answer.head.status()
    }

    fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a [u8]> {
        answer.head.header(name).next()
    }

    /// The stream is ended; its connection carries others.
    fn discard(&mut self, _: Answer, _: &Endpoint, _: Keeping) {}

    /// What comes of a request is kept anyway, until it is answered.
    fn keep(&mut self) {}

    fn limit(&mut self, most: u64) {
        self.request.limit(most);
    }

    fn copy(&self, to: Arc<Endpoint>, info: Arc<ClusterInfo>, onward: &Onward<'_>) -> Option<Copying> {
        let is_plain = !self.head.is_connect() && info.version != Some(Version::Http11);
        let body = self.request.all().filter(|_| is_plain)?;
        copying(self.worker, self.head, body, to, info, onward)
    }

    fn is_still_here(&self) -> bool {
        self.request.is_still_here()
    }

    fn is_whole(&self) -> bool {
        self.request.is_whole()
    }

    fn again(&mut self) {
        self.request.again();
    }
}

impl H2<'_> {
    /// Sends the request to the pod's own application.
    ///
    /// # Errors
    /// The fault of the last attempt.
    pub(super) async fn ask_app(&mut self, record: &mut Record) -> Result<Answered<Answer>, Fault> {
        let edits = own_edits(self.head, record);
        let app = self.meant;
        record.app = Some(app);
        let sent = Instant::now();
        let mut kept = Kept::of(self.head);
        for _ in 0..ATTEMPTS {
            let lease = lease(self.worker, Peer::App(app), kept, Terms::default()).await?;
            match self.over(lease, &Onward::with_edits(&[&edits])).await {
                Ok(answer) => {
                    record.first_byte = Some(sent.elapsed());
                    return Ok(Answered::by_app(answer, app));
                }
                // An application that ends its connections says so, and which requests it has not looked at. What it refuses is for the
                // caller's proxy to try elsewhere.
                Err(fault)
                    if self.request.is_still_here()
                        && (fault.unsent && !fault.not_delivered
                            || fault.silent && is_safe(self.head) && self.request.is_whole()) =>
                {
                    kept = Kept::Never;
                    self.request.again();
                }
                Err(fault) => return Err(fault),
            }
        }
        let detail =
            format!("the application behind {app} ended {ATTEMPTS} connections before it looked at the request");
        Err(Fault { unsent: true, ..Fault::upstream(ResponseFlags::UF, 503, detail) })
    }

    /// Sends the request over this connection and waits for the head of the answer.
    async fn over(&mut self, lease: Lease, onward: &Onward<'_>) -> Result<Answer, Fault> {
        let reused = lease.reused;
        let unsent = |error: &Error| Fault { unsent: true, ..gone(error, reused) };
        poll_fn(|cx| {
            if self.reply.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller took its request back")));
            }
            lease.send.poll_room(cx).map_err(|error| unsent(&error))
        })
        .await?;
        let request = ForwardRequest {
            head: self.head,
            edits: onward.edits,
            path_and_query: onward.path_and_query,
            authority: onward.host,
        };
        let sent = lease.send.send(&request, self.head.asked(), self.request.is_empty());
        let (mut answer, mut rest) = sent.map_err(|error| unsent(&error))?;
        let (mut stall, mut interims) = (Stall::default(), 0_u32);
        let mut sending = !self.request.is_done();
        let (mut quiet, mut moved) = (Deadline::default(), self.request.moved);
        if let Some(idle) = onward.idle {
            quiet.set(idle);
        }
        let head = poll_fn(|cx| {
            if sending {
                match self.request.poll(cx, &mut rest) {
                    Poll::Ready(Ok(())) => sending = false,
                    // The upstream takes no more: its answer may be here already.
                    Poll::Ready(Err(FlowError::Receiver)) => sending = false,
                    Poll::Ready(Err(FlowError::Sender(_))) => {
                        return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller ended its request")));
                    }
                    Poll::Ready(Err(FlowError::TooLarge)) => return Poll::Ready(Err(too_large())),
                    Poll::Pending => {}
                }
                if let Some(idle) = onward.idle.filter(|_| moved != self.request.moved) {
                    moved = self.request.moved;
                    quiet.set(idle);
                }
            }
            while let Some(interim) = answer.interim() {
                interims = interims.saturating_add(1);
                if interims > INTERIMS {
                    let detail = "the upstream sends interim answers without end";
                    return Poll::Ready(Err(Fault::upstream(ResponseFlags::UPE, 502, detail)));
                }
                self.reply.interim(&ForwardResponse { head: &interim, edits: &[] });
            }
            if let Poll::Ready(head) = answer.poll_head(cx) {
                return Poll::Ready(head.map_err(|error| gone(&error, reused)));
            }
            if self.reply.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller took its request back")));
            }
            if quiet.poll(cx).is_ready() {
                return Poll::Ready(Err(stands_still(504)));
            }
            if !sending {
                return Poll::Pending;
            }
            stall
                .poll(cx, self.request)
                .map(|()| Err(Fault::upstream(ResponseFlags::UT, 504, "the upstream stopped reading the request")))
        })
        .await?;
        Ok(Answer { head, body: answer, rest, _lease: lease })
    }
}

/// A rule allows no body as large as this.
pub(super) fn too_large() -> Fault {
    Fault::own(413, ResponseFlags::NONE, "the body is larger than the route allows".into())
}

/// A rule allows no pause as long as this.
pub(super) fn stands_still(status: u16) -> Fault {
    Fault::own(status, ResponseFlags::SI, "nothing moved for as long as the route allows".into())
}

/// What an error means for the request: whether the peer says that it has not looked at it.
fn gone(error: &Error, reused: bool) -> Fault {
    if error.is_unprocessed() {
        let fault = Fault::upstream(ResponseFlags::UF, 503, format!("the upstream did not take the request: {error}"));
        return Fault { unsent: true, not_delivered: error.is_reset(), ..fault };
    }
    if error.is_reset() && error.is_remote() {
        return Fault::upstream(ResponseFlags::UR, 503, format!("the upstream reset the stream: {error}"));
    }
    if !error.is_io() {
        return Fault::upstream(ResponseFlags::UPE, 502, format!("the upstream's answer is malformed: {error}"));
    }
    let fault = Fault::upstream(ResponseFlags::UC, 503, format!("the upstream's connection failed: {error}"));
    Fault { silent: reused, ..fault }
}
