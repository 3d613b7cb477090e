//! A copy of a request, for somebody whose answer nobody reads.

use std::{future::poll_fn, sync::Arc};

use bytes::Bytes;

use super::lease::{Peer, Terms, lease};
use crate::{
    http::{
        Edits, RequestHead,
        h2::{Error, ForwardRequest},
    },
    serve::{
        Worker,
        exchange::{
            carrier::{Kept, Onward},
            fault::Fault,
            h1::Copying,
        },
    },
    telemetry::ResponseFlags,
    upstream::{ClusterInfo, Endpoint},
};

/// Sends this head and body and reads the answer to its end; `None` where the worker is gone.
pub(super) fn copying(
    worker: &Worker,
    head: &RequestHead,
    mut body: Bytes,
    to: Arc<Endpoint>,
    info: Arc<ClusterInfo>,
    onward: &Onward<'_>,
) -> Option<Copying> {
    let worker = worker.me.upgrade()?;
    let head = head.clone();
    let edits: Vec<Edits> = onward.edits.iter().map(|list| (*list).clone()).collect();
    let [path, host] = [onward.path_and_query, onward.host].map(|text| text.map(<[u8]>::to_vec));
    Some(Box::pin(async move {
        let lease = lease(&worker, Peer::Endpoint(&to), Kept::Proven, Terms::of(&info)).await?;
        let edits: Vec<&Edits> = edits.iter().collect();
        let request =
            ForwardRequest { head: &head, edits: &edits, path_and_query: path.as_deref(), authority: host.as_deref() };
        let failed = |error: Error| Fault::upstream(ResponseFlags::UC, 503, error.to_string());
        poll_fn(|cx| lease.send.poll_room(cx)).await.map_err(failed)?;
        let sent = lease.send.send(&request, head.asked(), body.is_empty());
        let (mut answer, mut rest) = sent.map_err(failed)?;
        while !body.is_empty() {
            poll_fn(|cx| rest.poll_send(cx, &mut body, true)).await.map_err(failed)?;
        }
        poll_fn(|cx| {
            while answer.interim().is_some() {}
            answer.poll_head(cx)
        })
        .await
        .map_err(failed)?;
        while poll_fn(|cx| answer.poll_data(cx)).await.map_err(failed)?.is_some() {}
        Ok(())
    }))
}
