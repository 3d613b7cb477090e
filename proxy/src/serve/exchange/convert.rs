//! Conversion between HTTP/1.1 and HTTP/2, for backends that are to be called in another version than their caller speaks.
//!
//! The exchange goes on as ever, in the caller's version, over a connection inside this process; a task at its other end speaks with
//! the backend. That costs copies and wake-ups that other requests do not pay, and needs no exchange of its own for each pair of
//! versions. HTTP/1.1 is read and written by hyper there: what it gets was judged by this proxy's own reader before.
//!
//! Interim answers do not pass. Trailers of HTTP/1.1 pass as hyper has them: where `Trailer` names them, and the caller asked by `TE`.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{PathAndQuery, Scheme},
};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming},
    client,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{DuplexStream, duplex},
    task::{AbortHandle, spawn_local},
};

use super::{
    NOT_DELIVERED,
    attempts::Kept,
    fault::Fault,
    h1::connected,
    h2::{Peer, lease},
};
use crate::{
    net::{Conn, Io, buffers},
    serve::Worker,
    telemetry::ResponseFlags,
    upstream::{Connected, Endpoint, Lease, alone},
};

/// Header lines that hyper reads: more than this proxy's reader lets through.
const HEADERS: usize = 256;

/// A connection of HTTP/1.1 for one request, which goes on to the endpoint in HTTP/2.
///
/// # Errors
/// [`Fault`]: the endpoint is not reached.
pub(super) async fn to_http2(worker: &Worker, to: &Endpoint, kept: Kept, limit: Duration) -> Result<Connected, Fault> {
    let lease = lease(worker, Peer::Endpoint(to), kept, limit).await?;
    let reused = lease.reused;
    let (near, far) = duplex(buffers::SIZE);
    let lease = Cell::new(Some(lease));
    let service = service_fn(move |request| {
        let lease = lease.take();
        async move {
            match lease {
                Some(lease) => ask(lease, request).await,
                None => Err(Reason::REFUSED_STREAM.into()), // one request was promised
            }
        }
    });
    spawn_local(async move {
        let served = http1::Builder::new()
            .keep_alive(false)
            .auto_date_header(false)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(far), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a request that goes on in HTTP/2 was cut");
        }
    });
    Ok(Connected { conn: Conn::new(Io::Memory(near)), reused })
}

async fn ask(mut lease: Lease, request: Request<Incoming>) -> Result<Response<Received>, h2::Error> {
    let (mut parts, body) = request.into_parts();
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let host = parts.headers.remove(HOST);
    uri.authority = host.and_then(|host| host.as_bytes().try_into().ok());
    uri.scheme = Some(Scheme::HTTP);
    let Ok(uri) = Uri::from_parts(uri) else { return Err(Reason::PROTOCOL_ERROR.into()) };
    parts.uri = uri;
    parts.version = http::Version::HTTP_2;
    drop_hops(&mut parts.headers);
    let (answer, rest) = lease.send.send_request(Request::from_parts(parts, ()), body.is_end_stream())?;
    let upload = if body.is_end_stream() { None } else { Some(Upload(spawn_local(send(body, rest)).abort_handle())) };
    match answer.await {
        Ok(answer) => Ok(answer.map(|from| Received { from: Some(from), _upload: upload, _lease: Some(lease) })),
        Err(error) if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) => {
            let mut refused = Response::new(Received { from: None, _upload: None, _lease: None });
            *refused.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            refused.headers_mut().insert(NOT_DELIVERED, HeaderValue::from_static("1"));
            Ok(refused)
        }
        Err(error) => Err(error),
    }
}

/// The right to send one request in HTTP/2, which goes on to the endpoint in HTTP/1.1, over a connection of its own.
///
/// # Errors
/// [`Fault`]: the endpoint is not reached.
pub(super) async fn to_http1(worker: &Worker, to: &Endpoint, limit: Duration) -> Result<Lease, Fault> {
    let upstream = connected(worker, to, Kept::Never, limit).await?.conn;
    let (near, far) = duplex(buffers::SIZE);
    spawn_local(async move {
        if let Err(error) = serve(far, upstream.io).await {
            tracing::debug!(%error, "a request that goes on in HTTP/1.1 was cut");
        }
    });
    alone(Conn::new(Io::Memory(near))).await.map_err(|error| {
        let fault = Fault::upstream(ResponseFlags::UF, 503, format!("HTTP/2 did not begin: {error}"));
        Fault { unsent: true, ..fault }
    })
}

async fn serve(from: DuplexStream, to: Io) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(from).await?;
    let Some(accepted) = connection.accept().await else { return Ok(()) };
    let (request, respond) = accepted?;
    let mut exchange = std::pin::pin!(pass_on(request, respond, to));
    tokio::select! {
        () = &mut exchange => {}
        // The caller is gone: there is nobody to ask for.
        next = connection.accept() => return next.map_or(Ok(()), |next| next.map(drop)),
    }
    connection.graceful_shutdown();
    std::future::poll_fn(|cx| connection.poll_closed(cx)).await
}

async fn pass_on(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, to: Io) {
    let asked = async {
        let (mut send, connection) = client::conn::http1::handshake(TokioIo::new(to)).await?;
        let driver = Upload(spawn_local(connection).abort_handle());
        Ok::<_, hyper::Error>((send.send_request(in_http1(request)).await?, driver))
    };
    let (answer, _driver) = match asked.await {
        Ok(answered) => answered,
        Err(error) => {
            tracing::debug!(%error, "no answer in HTTP/1.1");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    let (mut parts, body) = answer.into_parts();
    if parts.status == StatusCode::SERVICE_UNAVAILABLE && parts.headers.contains_key(NOT_DELIVERED) {
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    drop_hops(&mut parts.headers);
    let mut head = Response::new(());
    *head.status_mut() = parts.status;
    *head.headers_mut() = parts.headers;
    let ends = body.is_end_stream();
    if let Ok(stream) = respond.send_response(head, ends)
        && !ends
    {
        send(body, stream).await;
    }
}

/// The request as HTTP/1.1 has it: the path alone, and the host in a header.
fn in_http1(request: Request<RecvStream>) -> Request<Received> {
    let (mut parts, from) = request.into_parts();
    let authority = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = authority {
        parts.headers.insert(HOST, host);
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.unwrap_or(PathAndQuery::from_static("/")).into();
    parts.version = http::Version::HTTP_11;
    Request::from_parts(parts, Received { from: Some(from), _upload: None, _lease: None })
}

/// Takes out what belongs to one connection of HTTP/1.1.
fn drop_hops(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
}

/// Sends a body as fast as it is taken. One that is cut short is not taken for a whole one.
async fn send<B: Body<Data = Bytes> + Unpin>(mut body: B, mut to: SendStream<Bytes>) {
    loop {
        let sent = match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send_data(&mut to, data).await,
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        let _ = to.send_trailers(trailers); // nobody is there any more otherwise
                        return;
                    }
                    Err(_) => Ok(()),
                },
            },
            Some(Err(_)) => return to.send_reset(Reason::CANCEL),
            None => {
                let _ = to.send_data(Bytes::new(), true); // as above
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send_data(to: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        while to.capacity() == 0 {
            match std::future::poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(more) => drop(more?),
                None => return Err(Reason::STREAM_CLOSED.into()),
            }
        }
        to.send_data(data.split_to(to.capacity().min(data.len())), false)?;
    }
    Ok(())
}

/// A task that ends with whoever waits for it.
struct Upload(AbortHandle);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body that comes in HTTP/2; none in an answer of our own.
struct Received {
    from: Option<RecvStream>,
    _upload: Option<Upload>,
    _lease: Option<Lease>,
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(from) = &mut self.from else { return Poll::Ready(None) };
        if let Some(data) = ready!(from.poll_data(cx)) {
            return Poll::Ready(Some(data.map(|data| {
                let _ = from.flow_control().release_capacity(data.len()); // the connection has ended otherwise
                Frame::data(data)
            })));
        }
        let trailers = ready!(from.poll_trailers(cx));
        self.from = None;
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.from.as_ref().is_none_or(RecvStream::is_end_stream)
    }
}
