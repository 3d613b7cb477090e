//! One request over a connection of HTTP/2: one that carries others as well, or a new one.

use std::{future::poll_fn, net::SocketAddr, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use tokio::time::Instant;

use super::{
    flow::{Flow, FlowError, Stall},
    lease::{Peer, lease},
    reply::Reply,
};
use crate::{
    http::{Edits, RequestHead, Version, h2::forwarded},
    serve::{
        Worker,
        exchange::{
            attempts::{Answered, Carrier, Kept, is_safe, own_edits},
            convert,
            fault::Fault,
            record::Record,
        },
    },
    telemetry::ResponseFlags,
    upstream::{ClusterInfo, Endpoint, Lease},
};

/// Interim answers to one request: they wait to be sent outside of the caller's windows.
const INTERIMS: u32 = 100;
/// Connections to the application for one request.
const ATTEMPTS: usize = 3;

/// A request and the caller that it comes from.
pub(super) struct H2<'a> {
    pub worker: &'a Worker,
    /// The address that the caller called.
    pub meant: SocketAddr,
    /// Its headers go with the first attempt; others write them anew from the head.
    pub parts: &'a mut Parts,
    pub head: &'a RequestHead,
    pub request: &'a mut Flow,
    pub reply: &'a mut Reply,
}

/// An answer that has begun.
pub(super) struct Answer {
    pub head: http::response::Parts,
    pub body: RecvStream,
    /// Where the rest of the request goes.
    pub rest: SendStream<Bytes>,
    pub _lease: Lease,
}

impl Carrier for H2<'_> {
    type Answer = Answer;

    async fn send(
        &mut self,
        to: &Endpoint,
        kept: Kept,
        cluster: &ClusterInfo,
        edits: &[&Edits],
    ) -> Result<Answer, Fault> {
        let lease = match cluster.version {
            Some(Version::Http11) if !self.head.is_connect() => {
                Box::pin(convert::to_http1(self.worker, to, cluster.connect_timeout)).await?
            }
            _ => lease(self.worker, Peer::Endpoint(to), kept, cluster.connect_timeout).await?,
        };
        self.over(lease, edits).await.map_err(|fault| Fault {
            // A proxy of the mesh refuses a stream whose application it does not reach.
            not_delivered: fault.not_delivered && to.mesh.is_some(),
            ..fault
        })
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
            let lease = lease(self.worker, Peer::App(app), kept, Duration::ZERO).await?;
            match self.over(lease, &[&edits]).await {
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
    async fn over(&mut self, mut lease: Lease, edits: &[&Edits]) -> Result<Answer, Fault> {
        let Some(request) = forwarded(self.parts, self.head, edits) else {
            return Err(Fault::own(400, ResponseFlags::DPE, "the request has no form in HTTP/2".into()));
        };
        let sent = lease.send.send_request(request, self.request.is_empty());
        let (mut answer, mut rest) = match sent {
            Ok(sent) => sent,
            Err(error) => return Err(Fault { unsent: true, ..gone(&error, lease.reused) }),
        };
        let (mut stall, mut interims) = (Stall::default(), 0_u32);
        let mut sending = !self.request.is_done();
        let head = poll_fn(|cx| {
            if sending {
                match self.request.poll(cx, &mut rest) {
                    Poll::Ready(Ok(())) => sending = false,
                    // The upstream takes no more: its answer may be here already.
                    Poll::Ready(Err(FlowError::Receiver)) => sending = false,
                    Poll::Ready(Err(FlowError::Sender(_))) => {
                        return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller ended its request")));
                    }
                    Poll::Pending => {}
                }
            }
            while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
                interims = interims.saturating_add(1);
                if interims > INTERIMS {
                    let detail = "the upstream sends interim answers without end";
                    return Poll::Ready(Err(Fault::upstream(ResponseFlags::UPE, 502, detail)));
                }
                self.reply.interim(interim);
            }
            if let Poll::Ready(head) = std::pin::Pin::new(&mut answer).poll(cx) {
                return Poll::Ready(head.map_err(|error| gone(&error, lease.reused)));
            }
            if self.reply.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Fault::upstream(ResponseFlags::DC, 0, "the caller took its request back")));
            }
            if !sending {
                return Poll::Pending;
            }
            stall
                .poll(cx, self.request)
                .map(|()| Err(Fault::upstream(ResponseFlags::UT, 504, "the upstream stopped reading the request")))
        })
        .await?;
        self.request.release();
        let (head, body) = head.into_parts();
        Ok(Answer { head, body, rest, _lease: lease })
    }
}

/// What an error means for the request: whether the peer says that it has not looked at it.
fn gone(error: &h2::Error, reused: bool) -> Fault {
    // A stream that the peer refuses, or that comes after the last one that it takes (RFC 9113, 8.7).
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        let fault = Fault::upstream(ResponseFlags::UF, 503, format!("the upstream did not take the request: {error}"));
        return Fault { unsent: true, not_delivered: error.is_reset(), ..fault };
    }
    if error.is_reset() && error.is_remote() {
        return Fault::upstream(ResponseFlags::UR, 503, format!("the upstream reset the stream: {error}"));
    }
    if error.is_reset() || error.is_go_away() {
        return Fault::upstream(ResponseFlags::UPE, 502, format!("the upstream's answer is malformed: {error}"));
    }
    let fault = Fault::upstream(ResponseFlags::UC, 503, format!("the upstream's connection failed: {error}"));
    Fault { silent: reused, ..fault }
}
