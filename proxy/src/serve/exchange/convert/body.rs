//! Bodies between hyper and streams of HTTP/2.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::task::AbortHandle;

use super::header_map;
use crate::{
    http::h2::{Error, List, Reason, Receiver, Sender},
    upstream::Lease,
};

/// A task that ends with whoever waits for it.
pub(super) struct Task(pub(super) AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body that comes in HTTP/2; none in an answer of our own.
#[derive(Default)]
pub(super) struct Received {
    pub(super) from: Option<Receiver>,
    /// What sends the other direction.
    pub(super) _upload: Option<Task>,
    pub(super) _lease: Option<Lease>,
}

impl Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(from) = &mut self.from else { return Poll::Ready(None) };
        if let Some(data) = ready!(from.poll_data(cx)).transpose() {
            return Poll::Ready(Some(data.map(Frame::data)));
        }
        let trailers = from.trailers();
        self.from = None;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(header_map(trailers.headers())))))
    }

    fn is_end_stream(&self) -> bool {
        self.from.as_ref().is_none_or(Receiver::is_at_end)
    }
}

/// Sends a body as fast as it is taken. One that is cut short is not taken for a whole one.
pub(super) async fn send<B: Body<Data = Bytes> + Unpin>(mut body: B, mut to: Sender) {
    loop {
        let sent = match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send_data(&mut to, data).await,
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        let _ = to.send(&Lines(&trailers), true); // nobody is there any more otherwise
                        return;
                    }
                    Err(_) => Ok(()),
                },
            },
            Some(Err(_)) => return to.reset(Reason::CANCEL),
            None => {
                let _ = poll_fn(|cx| to.poll_send(cx, &mut Bytes::new(), true)).await; // as above
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send_data(to: &mut Sender, mut data: Bytes) -> Result<(), Error> {
    while !data.is_empty() {
        poll_fn(|cx| to.poll_send(cx, &mut data, false)).await?;
    }
    Ok(())
}

/// Headers of hyper's as a list, without pseudo headers.
pub(super) struct Lines<'a>(pub(super) &'a HeaderMap);

impl List for Lines<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.iter().for_each(|(name, value)| line(name.as_str().as_bytes(), value.as_bytes()));
    }
}
