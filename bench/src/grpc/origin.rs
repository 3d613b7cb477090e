//! The server behind the proxies that speaks HTTP/2: a GET is answered with 1 kB, a call with a message of the size of its own, and of a
//! stream every message comes back.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, server};
use http::{HeaderMap, Request, Response};

use super::{MESSAGE, STREAM, UNARY, hand_on};
use crate::{lab::Netns, origin::BODY, serve::Server};

/// Starts it.
///
/// # Errors
/// Where the address can not be had.
pub fn start(address: SocketAddr, netns: Option<&Netns>) -> anyhow::Result<Server> {
    Server::start(address, netns, |stream| async move {
        let Ok(mut connection) = server::handshake(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                // What goes wrong shows at the client, which checks every answer.
                let _ = answer(request, respond).await;
            });
        }
    })
}

/// A message of gRPC with its prefix: not compressed, then the length.
pub(super) fn message() -> Bytes {
    let mut message = BytesMut::with_capacity(5 + MESSAGE);
    message.put_u8(0);
    message.put_u32(u32::try_from(MESSAGE).unwrap_or(u32::MAX));
    message.put_bytes(b'w', MESSAGE);
    message.freeze()
}

async fn answer(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let head = |kind: &'static str| {
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
        response
    };
    match parts.uri.path() {
        STREAM => {
            let mut out = respond.send_response(head("application/grpc"), false)?;
            while let Some(data) = body.data().await {
                hand_on(&mut body, &mut out, data?).await?;
            }
            out.send_trailers(ok())
        }
        UNARY => {
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data?.len())?;
            }
            let mut out = respond.send_response(head("application/grpc"), false)?;
            out.send_data(message(), false)?;
            out.send_trailers(ok())
        }
        _ => {
            let mut out = respond.send_response(head("application/octet-stream"), false)?;
            out.send_data(Bytes::from_static(&[b'w'; BODY]), true)
        }
    }
}

fn ok() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))])
}
