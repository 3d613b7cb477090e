//! One request over a connection of HTTP/1.1: a kept one, or a new one.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::{
    body::BodyPump,
    forward::{self, await_head},
    is_not_delivered,
};
use crate::{
    http::{
        Edits, RequestHead, ResponseHead, Version,
        h1::{ForwardRequest, write_request},
    },
    net::{Conn, Io},
    serve::{
        Worker,
        exchange::{
            attempts::{Answered, Carrier, Kept, PATIENCE, is_safe, own_edits},
            convert,
            fault::Fault,
            record::Record,
        },
    },
    telemetry::ResponseFlags,
    tls::Alpn,
    upstream::{ClusterInfo, Connected, Endpoint},
};

/// The first kept connection that will do.
fn take(kept: Kept, next: impl Fn() -> Option<Connected>) -> Option<Connected> {
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
        edits: &[&Edits],
    ) -> Result<Self::Answer, Fault> {
        let worker = self.worker;
        let limit = cluster.connect_timeout;
        // A tunnel goes on as it came.
        let converts =
            cluster.version == Some(Version::Http2) && self.head.upgrade().is_none() && !self.head.is_connect();
        let connected = if converts {
            Box::pin(convert::to_http2(worker, to, kept, limit)).await?
        } else {
            match take(kept, || worker.pool.take(to, Instant::now())) {
                Some(connected) => connected,
                None => Box::pin(connected(worker, to, kept, limit)).await?,
            }
        };
        let (upstream, response) = self.over(connected, edits).await?;
        if (to.mesh.is_some() || converts) && is_not_delivered(&response) {
            let detail = format!("the application behind {} did not accept the request", to.address);
            let fault = Fault::upstream(ResponseFlags::UF, 503, detail);
            return Err(Fault { unsent: true, not_delivered: true, ..fault });
        }
        Ok((upstream, response))
    }

    fn is_still_here(&self) -> bool {
        self.body.is_still_here()
    }

    fn is_whole(&self) -> bool {
        self.body.is_whole()
    }

    fn again(&mut self) {
        self.body.again();
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
            match self.over(connected, &edits).await {
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
                    self.body.again();
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Sends the request over this connection and waits for the head of the answer.
    async fn over(
        &mut self,
        Connected { mut conn, reused }: Connected,
        edits: &[&Edits],
    ) -> Result<(Conn, ResponseHead), Fault> {
        let Self { worker, caller, meant, head, body, out } = self;
        out.clear();
        // An HTTP/1.0 client need not name a host; what goes out is HTTP/1.1, whose readers refuse a request without one.
        let named = head.authority().is_empty().then(|| meant.to_string());
        let authority = named.as_deref().map(str::as_bytes);
        write_request(out, head, edits, &ForwardRequest { authority, ..ForwardRequest::unchanged(head) });
        if let Err(error) = forward::write_first(&mut conn, out, caller, body).await {
            let fault = Fault::upstream(ResponseFlags::UC, 503, format!("sending the request failed: {error}"));
            return Err(Fault { silent: reused, ..fault });
        }
        body.first_written(caller);
        match await_head(caller, &mut conn, body, head.asked(), &worker.limits).await {
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
) -> Result<Connected, Fault> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(_room) = worker.pool.room(endpoint) {
            return match worker.connector.connect(endpoint, Alpn::Http1, limit).await {
                Ok(conn) => {
                    endpoint.state.reached();
                    Ok(Connected { conn, reused: false })
                }
                Err(error) => {
                    endpoint.state.unreachable(Instant::now());
                    tracing::debug!(endpoint = %endpoint.address, %error, "endpoint not reached");
                    Err(Fault::unreachable(&error))
                }
            };
        }
        let waited = timeout_at(end, worker.pool.freed(endpoint)).await;
        if let Some(connected) = take(kept, || worker.pool.take(endpoint, Instant::now())) {
            return Ok(connected);
        }
        // What the others have met would meet this one as well.
        if waited.is_err() || endpoint.state.is_avoided(Instant::now()) {
            return Err(Fault::no_room(endpoint.address));
        }
    }
}
