//! One request over a connection of HTTP/1.1: a kept one, or a new one.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::{
    body::BodyPump,
    copy::{Copying, copying},
    forward::{self, await_head},
};
use crate::{
    http::{
        RequestHead, ResponseHead, Version,
        h1::{ForwardRequest, write_request},
    },
    net::{Conn, Io, Slot},
    serve::{
        Worker,
        exchange::{
            MARKER,
            attempts::{Answered, Carrier, Kept, Onward, PATIENCE, is_safe, own_edits},
            convert,
            fault::Fault,
            record::Record,
        },
    },
    telemetry::ResponseFlags,
    tls::Alpn,
    upstream::{Breaker, ClusterInfo, Connected, Endpoint, Full, Keeping},
};

/// The first kept connection that will do.
pub(super) fn take(kept: Kept, next: impl Fn() -> Option<Connected>) -> Option<Connected> {
    match kept {
        Kept::Any => next(),
        Kept::Proven => std::iter::from_fn(next).find_map(|mut found| found.conn.is_quiet_now().then_some(found)),
        Kept::Never => None,
    }
}

/// A request and the caller that it comes from.
pub(super) struct H1<'a> {
    pub worker: &'a Worker,
    pub caller: &'a mut Conn,
    /// The address that the caller called.
    pub meant: SocketAddr,
    pub head: &'a RequestHead,
    pub body: &'a mut BodyPump,
    pub out: &'a mut BytesMut,
}

impl Carrier for H1<'_> {
    type Answer = (Conn, ResponseHead);

    async fn send(
        &mut self,
        to: &Endpoint,
        kept: Kept,
        cluster: &ClusterInfo,
        onward: &Onward<'_>,
    ) -> Result<Self::Answer, Fault> {
        let worker = self.worker;
        let limit = cluster.connect_timeout;
        // A tunnel goes on as it came.
        let converts =
            cluster.version == Some(Version::Http2) && self.head.upgrade().is_none() && !self.head.is_connect();
        let connected = if converts {
            Box::pin(convert::to_http2(worker, to, kept, cluster)).await?
        } else {
            match take(kept, || worker.pool.take(to, Some(&cluster.breaker), Instant::now())) {
                Some(connected) => connected,
                None => Box::pin(connected(worker, to, kept, limit, Some(&cluster.breaker))).await?,
            }
        };
        let (upstream, response) = self.over(connected, onward).await?;
        // Nothing else is looked through for it.
        if response.status() == 503
            && (to.mesh.is_some() || converts)
            && let Some(fault) = Fault::told(response.header(MARKER).next(), to.address)
        {
            return Err(fault);
        }
        Ok((upstream, response))
    }

    fn status((_, head): &Self::Answer) -> u16 {
        head.status()
    }

    fn header<'a>((_, head): &'a Self::Answer, name: &str) -> Option<&'a [u8]> {
        head.header(name).next()
    }

    fn discard(&mut self, (mut conn, head): Self::Answer, from: &Endpoint, keeping: Keeping) {
        let mut rest = BodyPump::new(head.framing(), false);
        // An answer that is not all here ends with its connection.
        if rest.look(&conn).is_ok() && rest.is_whole() && head.keep_alive() && self.body.is_done() {
            rest.discard(&mut conn);
            drop(head); // it holds the read buffer, which can only be given back when nobody else does
            if conn.read.is_empty() && !conn.eof {
                self.worker.pool.give(from, conn, keeping, Instant::now());
            }
        }
    }

    fn keep(&mut self) {
        self.body.keep(self.caller);
    }

    fn limit(&mut self, most: u64) {
        self.body.limit(most);
    }

    fn copy(&self, to: Arc<Endpoint>, info: Arc<ClusterInfo>, onward: &Onward<'_>) -> Option<Copying> {
        // A tunnel has no copy, and what goes on in another version is not sent by this one.
        let is_plain = self.head.upgrade().is_none() && !self.head.is_connect() && info.version != Some(Version::Http2);
        let body = self.body.all(self.caller).filter(|_| is_plain)?;
        copying(self.worker, self.head, &body, to, info, onward)
    }

    fn is_still_here(&self) -> bool {
        self.body.is_still_here()
    }

    fn is_whole(&self) -> bool {
        self.body.is_whole()
    }

    fn again(&mut self) {
        self.body.again(self.caller);
    }
}

impl H1<'_> {
    /// Sends the request to the pod's own application.
    ///
    /// # Errors
    /// The fault of the last attempt.
    pub(super) async fn ask_app(&mut self, record: &mut Record) -> Result<Answered<(Conn, ResponseHead)>, Fault> {
        let edits = own_edits(self.head, record);
        let (worker, app) = (self.worker, self.meant);
        record.app = Some(app);
        let edits = [&edits];
        let onward = Onward::with_edits(&edits);
        let sent = Instant::now();
        let mut kept = Kept::of(self.head);
        loop {
            let connected = match take(kept, || worker.pool.take_app(app, Instant::now())) {
                Some(connected) => connected,
                None => match worker.connector.connect_app(app).await {
                    Ok(stream) => Connected { conn: Conn::new(Io::Plain(stream)), reused: false },
                    Err(error) => return Err(Fault::unreachable(&error)),
                },
            };
            let reused = connected.reused;
            match self.over(connected, &onward).await {
                Ok(answer) => {
                    record.first_byte = Some(sent.elapsed());
                    return Ok(Answered::by_app(answer, app));
                }
                Err(fault)
                    if reused
                        && fault.silent
                        && is_safe(self.head)
                        && self.body.is_whole()
                        && self.body.is_still_here() =>
                {
                    kept = Kept::Never;
                    self.body.again(self.caller);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Sends the request over this connection and waits for the head of the answer.
    async fn over(
        &mut self,
        Connected { mut conn, reused }: Connected,
        onward: &Onward<'_>,
    ) -> Result<(Conn, ResponseHead), Fault> {
        let Self { worker, caller, meant, head, body, out } = self;
        out.clear();
        // An HTTP/1.0 client need not name a host; what goes out is HTTP/1.1, whose readers refuse a request without one.
        let named = (onward.host.is_none() && head.authority().is_empty()).then(|| meant.to_string());
        let authority = onward.host.or(named.as_deref().map(str::as_bytes));
        let how =
            ForwardRequest { authority, path_and_query: onward.path_and_query, ..ForwardRequest::unchanged(head) };
        write_request(out, head, onward.edits, &how);
        if let Err(error) = forward::write_first(&mut conn, out, caller, body).await {
            let fault = Fault::upstream(ResponseFlags::UC, 503, format!("sending the request failed: {error}"));
            return Err(Fault { silent: reused, ..fault });
        }
        body.first_written(caller);
        match await_head(caller, &mut conn, body, head.asked(), &worker.limits, onward.idle).await {
            Ok(response) => Ok((conn, response)),
            Err(fault) => Err(Fault { silent: fault.silent && reused, ..fault }),
        }
    }
}

/// A new connection to an endpoint, or a kept one that has become free meanwhile.
///
/// # Errors
/// [`Fault`]: there is nobody, or no room within [`PATIENCE`].
pub(in crate::serve::exchange) async fn connected(
    worker: &Worker,
    endpoint: &Endpoint,
    kept: Kept,
    limit: Duration,
    breaker: Option<&Breaker>,
) -> Result<Connected, Fault> {
    let full = |full: Full| Fault::full(full, &endpoint.address.to_string());
    let end = Instant::now() + PATIENCE;
    let _pending = breaker.map(Breaker::pending).transpose().map_err(full)?;
    let mut slot = None;
    if let Some(breaker) = breaker {
        slot = match worker.slot(breaker) {
            Ok(slot) => slot,
            // Apart: what there is to remember is not in every request's way.
            Err(_) => match Box::pin(slot_or_kept(worker, endpoint, kept, breaker, end)).await.map_err(full)? {
                Free::Slot(slot) => slot,
                Free::Kept(connected) => return Ok(connected),
            },
        };
    }
    loop {
        if let Some(_room) = worker.pool.room(endpoint) {
            return connect(worker, endpoint, limit, slot).await;
        }
        let waited = timeout_at(end, worker.pool.freed(endpoint)).await;
        if let Some(connected) = take(kept, || worker.pool.take(endpoint, breaker, Instant::now())) {
            return Ok(connected);
        }
        // What the others have met would meet this one as well.
        if waited.is_err() || endpoint.state.is_avoided(Instant::now()) {
            return Err(Fault::no_room(endpoint.address));
        }
    }
}

enum Free {
    Slot(Option<Slot>),
    Kept(Connected),
}

/// What comes first, where there are as many connections as there may be: room for another one, or a connection that has become free.
async fn slot_or_kept(
    worker: &Worker,
    endpoint: &Endpoint,
    kept: Kept,
    breaker: &Breaker,
    end: Instant,
) -> Result<Free, Full> {
    // A kept one is better than none, if the kernel knows of no end of it.
    let kept = if kept == Kept::Never { Kept::Proven } else { kept };
    let mut slot = pin!(worker.slot_in_turn(breaker, end));
    loop {
        tokio::select! {
            biased;
            slot = &mut slot => return slot.map(Free::Slot),
            () = worker.pool.given(endpoint) => {
                if let Some(connected) = take(kept, || worker.pool.take(endpoint, Some(breaker), Instant::now())) {
                    return Ok(Free::Kept(connected));
                }
            }
        }
    }
}

async fn connect(
    worker: &Worker,
    endpoint: &Endpoint,
    limit: Duration,
    slot: Option<Slot>,
) -> Result<Connected, Fault> {
    match worker.connector.connect(endpoint, Alpn::Http1, limit).await {
        Ok(mut conn) => {
            conn.slot = slot;
            endpoint.state.reached();
            Ok(Connected { conn, reused: false })
        }
        Err(error) => {
            endpoint.state.unreachable(Instant::now());
            tracing::debug!(endpoint = %endpoint.address, %error, "endpoint not reached");
            Err(Fault::unreachable(&error))
        }
    }
}
