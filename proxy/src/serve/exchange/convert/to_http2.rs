//! From HTTP/1.1 to HTTP/2.

use std::{cell::Cell, future::poll_fn};

use http::{HeaderValue, Request, Response, StatusCode, header::HOST, request::Parts};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{io::duplex, task::spawn_local};

use super::{
    body::{Lines, Received, Task, send},
    drop_hops, header_map,
};
use crate::{
    http::{
        Asked,
        h2::{Error, List},
    },
    net::{Conn, Io, buffers},
    serve::{
        Worker,
        exchange::{
            MARKER,
            attempts::Kept,
            fault::{Fault, NOT_DELIVERED},
            h2::{Peer, Terms, lease},
        },
    },
    upstream::{ClusterInfo, Connected, Endpoint, Lease},
};

/// Header lines that hyper reads: more than this proxy's reader lets through.
const HEADERS: usize = 256;

/// A connection of HTTP/1.1 for one request, which goes on to the endpoint in HTTP/2.
///
/// # Errors
/// [`Fault`]: the endpoint is not reached.
pub(in crate::serve::exchange) async fn to_http2(
    worker: &Worker,
    to: &Endpoint,
    kept: Kept,
    cluster: &ClusterInfo,
) -> Result<Connected, Fault> {
    let lease = lease(worker, Peer::Endpoint(to), kept, Terms::of(cluster)).await?;
    let reused = lease.reused;
    let (near, far) = duplex(buffers::SIZE);
    let lease = Cell::new(Some(lease));
    let service = service_fn(move |request| {
        let lease = lease.take();
        async move {
            match lease {
                Some(lease) => ask(lease, request).await,
                None => Err(Error::Io("one request was promised".into())),
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

async fn ask(lease: Lease, request: Request<Incoming>) -> Result<Response<Received>, Error> {
    let (mut parts, body) = request.into_parts();
    let host = parts.headers.remove(HOST);
    drop_hops(&mut parts.headers);
    let asked = if parts.method == http::Method::HEAD { Asked::Head } else { Asked::Other };
    poll_fn(|cx| lease.send.poll_room(cx)).await?;
    let (mut answer, rest) =
        lease.send.send(&Asking { parts: &parts, host: host.as_ref() }, asked, body.is_end_stream())?;
    let upload = if body.is_end_stream() { None } else { Some(Task(spawn_local(send(body, rest)).abort_handle())) };
    let head = poll_fn(|cx| {
        while answer.interim().is_some() {}
        answer.poll_head(cx)
    })
    .await;
    match head {
        Ok(head) => {
            let mut response = Response::new(Received { from: Some(answer), _upload: upload, _lease: Some(lease) });
            *response.status_mut() = StatusCode::from_u16(head.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            *response.headers_mut() = header_map(head.headers());
            Ok(response)
        }
        Err(error) if error.is_unprocessed() && error.is_reset() => {
            let mut refused = Response::new(Received::default());
            *refused.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            refused.headers_mut().insert(MARKER, HeaderValue::from_static(NOT_DELIVERED));
            Ok(refused)
        }
        Err(error) => Err(error),
    }
}

/// The request as HTTP/2 has it.
struct Asking<'a> {
    parts: &'a Parts,
    host: Option<&'a HeaderValue>,
}

impl List for Asking<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":method", self.parts.method.as_str().as_bytes());
        line(b":scheme", b"http");
        line(b":authority", self.host.map(HeaderValue::as_bytes).unwrap_or_default());
        line(b":path", self.parts.uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
        Lines(&self.parts.headers).each(line);
    }
}
