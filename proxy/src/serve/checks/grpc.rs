//! gRPC's own health check: a call of `grpc.health.v1.Health/Check` (grpc/doc/health-checking.md).

use std::{
    future::poll_fn,
    io,
    pin::pin,
    task::{Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use weir_xds::prost::encoding::encode_varint;

use crate::{
    http::{
        Asked,
        h2::{Error, List, Requests},
    },
    net::{Conn, Frames},
};

/// An answer is a field and its value; one that is far longer is none.
const LONGEST: usize = 1024;
/// `status: SERVING`, the first field of the answer.
const SERVING: &[u8] = &[0x08, 1];

/// Asks once, over a connection of its own.
///
/// # Errors
/// Why the service does not count as well.
pub(super) async fn check(conn: Conn, host: &str, service: &str) -> io::Result<()> {
    let (requests, mut frames) = Frames::to_server(conn);
    let mut call = pin!(call(requests, host, service));
    poll_fn(|cx| {
        // What a call writes wakes the one who moves it, which is this task.
        let ended = frames.poll(cx);
        match call.as_mut().poll(cx) {
            Poll::Pending if ended.is_ready() => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            answered => answered,
        }
    })
    .await
}

async fn call(requests: Requests, host: &str, service: &str) -> io::Result<()> {
    let failed = |error: Error| io::Error::other(error.to_string());
    let (mut answer, mut rest) = requests.send(&Call { host }, Asked::Other, false).map_err(failed)?;
    let mut message = message(service);
    while !message.is_empty() {
        poll_fn(|cx| rest.poll_send(cx, &mut message, true)).await.map_err(failed)?;
    }
    let head = poll_fn(|cx| {
        while answer.interim().is_some() {}
        answer.poll_head(cx)
    })
    .await
    .map_err(failed)?;
    let mut body = BytesMut::new();
    let ended = poll_fn(|cx| {
        while let Some(data) = ready!(answer.poll_data(cx))? {
            if body.len().saturating_add(data.len()) > LONGEST {
                return Poll::Ready(Err(Error::Io("the answer to a health check is far too long".into())));
            }
            body.extend_from_slice(&data);
        }
        Poll::Ready(Ok(()))
    });
    ended.await.map_err(failed)?;
    let trailers = answer.trailers();
    let of_trailers = trailers.as_ref().and_then(|trailers| trailers.header("grpc-status").next());
    let status = of_trailers.or(head.header("grpc-status").next()).unwrap_or_default();
    if head.status() != 200 || status != b"0" {
        let status = String::from_utf8_lossy(status);
        return Err(io::Error::other(format!("status {}, grpc-status {status:?}", head.status())));
    }
    // A message that is not compressed: a byte, its length in four, and the fields.
    match body.get(5..) {
        Some(fields) if fields.starts_with(SERVING) => Ok(()),
        _ => Err(io::Error::other("the service says that it does not serve")),
    }
}

/// The request: the service's name as the first field.
fn message(service: &str) -> Bytes {
    let mut fields = BytesMut::new();
    if !service.is_empty() {
        fields.put_u8(0x0a);
        encode_varint(u64::try_from(service.len()).unwrap_or(0), &mut fields);
        fields.put_slice(service.as_bytes());
    }
    let mut message = BytesMut::with_capacity(fields.len().saturating_add(5));
    message.put_u8(0);
    message.put_u32(u32::try_from(fields.len()).unwrap_or(0));
    message.put_slice(&fields);
    message.freeze()
}

struct Call<'a> {
    host: &'a str,
}

impl List for Call<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":method", b"POST");
        line(b":scheme", b"http");
        line(b":authority", self.host.as_bytes());
        line(b":path", b"/grpc.health.v1.Health/Check");
        line(b"content-type", b"application/grpc");
        line(b"te", b"trailers");
        line(b"user-agent", b"weir-health-check");
    }
}
