//! From HTTP/2 to HTTP/1.1.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
};

use http::{Request, StatusCode, response};
use hyper::{body::Body, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{DuplexStream, duplex},
    task::spawn_local,
};

use super::{
    body::{Lines, Received, Task, send},
    drop_hops, header_map,
};
use crate::{
    http::{
        Limits, RequestHead,
        h2::{Arrived, List, Reason, Receiver},
    },
    net::{Conn, Ended, Frames, Io, buffers},
    serve::{
        Worker,
        exchange::{
            MARKER,
            attempts::Kept,
            fault::{Fault, NOT_DELIVERED},
            h1::connected,
        },
    },
    upstream::{ClusterInfo, Endpoint, Lease, alone},
};

/// The right to send one request in HTTP/2, which goes on to the endpoint in HTTP/1.1, over a connection of its own.
///
/// # Errors
/// [`Fault`]: the endpoint is not reached.
pub(in crate::serve::exchange) async fn to_http1(
    worker: &Worker,
    to: &Endpoint,
    cluster: &ClusterInfo,
) -> Result<Lease, Fault> {
    let upstream = connected(worker, to, Kept::Never, cluster.connect_timeout, Some(&cluster.breaker)).await?.conn;
    let (near, far) = duplex(buffers::SIZE);
    spawn_local(async move {
        let _slot = upstream.slot;
        if let Err(error) = serve(far, upstream.io).await {
            tracing::debug!(%error, "a request that goes on in HTTP/1.1 was cut");
        }
    });
    Ok(alone(Conn::new(Io::Memory(near))))
}

/// Serves one request, until the caller's side of the connection ends.
async fn serve(from: DuplexStream, to: Io) -> Result<(), Ended> {
    let mut frames = Frames::from_client(Conn::new(Io::Memory(from)), Limits::default());
    let mut to = Some(to);
    let mut exchange: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
    poll_fn(|cx| {
        let ended = frames.poll(cx);
        while let Some(arrived) = frames.session().arrived() {
            if let Some(to) = to.take() {
                exchange = Some(Box::pin(pass_on(arrived, to))); // one was promised
            }
        }
        if let Some(under_way) = &mut exchange
            && under_way.as_mut().poll(cx).is_ready()
        {
            exchange = None;
        }
        ended
    })
    .await
}

async fn pass_on(arrived: Arrived, to: Io) {
    let Arrived { head, body, mut reply } = arrived;
    let asked = async {
        let (mut send, connection) = http1::handshake(TokioIo::new(to)).await?;
        let driver = Task(spawn_local(connection).abort_handle());
        let request = head.ok().and_then(|head| in_http1(&head, body));
        Ok::<_, hyper::Error>(match request {
            Some(request) => Some((send.send_request(request).await?, driver)),
            None => None,
        })
    };
    let (answer, _driver) = match asked.await {
        Ok(Some(answered)) => answered,
        Ok(None) => return reply.reset(Reason::INTERNAL_ERROR), // what was judged before is a request
        Err(error) => {
            tracing::debug!(%error, "no answer in HTTP/1.1");
            return reply.reset(Reason::INTERNAL_ERROR);
        }
    };
    let (mut parts, body) = answer.into_parts();
    let is_marked = parts.headers.get(MARKER).is_some_and(|marker| marker == NOT_DELIVERED);
    if parts.status == StatusCode::SERVICE_UNAVAILABLE && is_marked {
        return reply.reset(Reason::REFUSED_STREAM);
    }
    drop_hops(&mut parts.headers);
    let ends = body.is_end_stream();
    if reply.send(&Answering(&parts), ends).is_ok() && !ends {
        send(body, reply).await;
    }
}

/// The request as HTTP/1.1 has it: the path alone, and the host in a header.
fn in_http1(head: &RequestHead, from: Receiver) -> Option<Request<Received>> {
    let path = head.path_and_query();
    let mut request = Request::builder().method(head.method()).uri(&*path).body(Received::default()).ok()?;
    *request.headers_mut() = header_map(head.headers());
    request.body_mut().from = Some(from);
    Some(request)
}

/// The answer as HTTP/2 has it.
struct Answering<'a>(&'a response::Parts);

impl List for Answering<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":status", self.0.status.as_str().as_bytes());
        Lines(&self.0.headers).each(line);
    }
}
