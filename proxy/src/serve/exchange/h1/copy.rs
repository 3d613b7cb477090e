//! A copy of a request, for somebody whose answer nobody reads.

use std::{pin::Pin, sync::Arc};

use bytes::{Buf, BytesMut};
use tokio::time::Instant;

use super::carry::{connected, take};
use crate::{
    http::{
        Asked, RequestHead, ResponseHead,
        h1::{BodyScanner, ForwardRequest, ResponseDecoder, write_request},
    },
    net::Conn,
    serve::{
        Worker,
        exchange::{
            carrier::{Kept, Onward},
            fault::Fault,
        },
    },
    telemetry::ResponseFlags,
    upstream::{ClusterInfo, Endpoint},
};

/// The work of sending a copy.
pub(in crate::serve::exchange) type Copying = Pin<Box<dyn Future<Output = Result<(), Fault>>>>;

/// Sends this head and body and reads the answer to its end; `None` where the worker is gone.
pub(super) fn copying(
    worker: &Worker,
    head: &RequestHead,
    body: &[u8],
    to: Arc<Endpoint>,
    info: Arc<ClusterInfo>,
    onward: &Onward<'_>,
) -> Option<Copying> {
    let worker = worker.me.upgrade()?;
    let mut out = BytesMut::new();
    let how = ForwardRequest {
        authority: onward.host,
        path_and_query: onward.path_and_query,
        ..ForwardRequest::unchanged(head)
    };
    write_request(&mut out, head, onward.edits, &how);
    out.extend_from_slice(body);
    let asked = head.asked();
    Some(Box::pin(async move {
        let found = take(Kept::Proven, || worker.pool.take(&to, Some(&info.breaker), Instant::now()));
        let mut conn = match found {
            Some(found) => found.conn,
            None => connected(&worker, &to, Kept::Never, info.connect_timeout, Some(&info.breaker)).await?.conn,
        };
        let failed = |error: std::io::Error| Fault::upstream(ResponseFlags::UC, 503, error.to_string());
        conn.write_all(&out, &[]).await.map_err(failed)?;
        let head = answer(&worker, &mut conn, asked).await?;
        let mut body = BodyScanner::new(head.framing());
        let mut done = head.framing().is_empty();
        while !done {
            let scanned =
                body.scan(&conn.read).map_err(|refused| Fault::upstream(ResponseFlags::UPE, 502, refused.reason))?;
            conn.read.advance(scanned.len);
            done = scanned.done;
            if !done && conn.fill().await.map_err(failed)? == 0 {
                return Ok(()); // as far as it came
            }
        }
        let keeps = head.keep_alive();
        drop(head); // it holds the read buffer
        if keeps && conn.read.is_empty() && !conn.eof {
            worker.pool.give(&to, conn, info.keeping, Instant::now());
        }
        Ok(())
    }))
}

/// The head of the answer, interim ones passed over.
async fn answer(worker: &Worker, conn: &mut Conn, asked: Asked) -> Result<ResponseHead, Fault> {
    let mut decoder = ResponseDecoder::new();
    loop {
        if !conn.read.is_empty() {
            match decoder.decode(&mut conn.read, asked, &worker.limits) {
                Ok(Some(head)) if head.is_interim() => continue,
                Ok(Some(head)) => return Ok(head),
                Ok(None) => {}
                Err(refused) => return Err(Fault::upstream(ResponseFlags::UPE, 502, refused.reason)),
            }
        }
        if !matches!(conn.fill().await, Ok(n) if n > 0) {
            return Err(Fault::upstream(ResponseFlags::UC, 503, "the upstream closed the connection"));
        }
    }
}
