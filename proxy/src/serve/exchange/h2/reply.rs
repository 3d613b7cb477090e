//! What goes back to the caller on its stream: an answer that is passed on, or the proxy's own.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    http::{
        Asked, RequestHead,
        h2::{Error, List, Reason, Sender, grpc},
    },
    serve::exchange::{MARKER, fault::Fault, record::Record},
};

/// How long a caller may take to take the proxy's own answer, which is one line.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way back.
pub(super) struct Reply {
    pub(super) to: Sender,
    /// The head of the answer has gone.
    begun: bool,
}

impl Reply {
    pub(super) fn new(to: Sender) -> Self {
        Self { to, begun: false }
    }

    /// True when a head has gone.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Ready when the caller has reset the stream, or is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.to.poll_reset(cx)
    }

    /// An answer before the answer.
    pub(super) fn interim(&mut self, head: &impl List) {
        let _ = self.to.send(head, false); // a caller that is gone shows elsewhere
    }

    /// The head of an answer; true where the caller could be told.
    pub(super) fn begin(&mut self, head: &impl List, ends: bool) -> bool {
        self.begun = self.to.send(head, ends).is_ok();
        self.begun
    }

    /// The caller is told that nothing more comes, and why.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.to.reset(reason);
    }

    /// The proxy's own answer. The caller gets a status, an id, and no more than it may know; the reason is in the log.
    pub(super) async fn own(
        &mut self,
        record: &mut Record,
        head: Option<&RequestHead>,
        fault: &Fault,
        marker: Option<&'static str>,
    ) {
        record.flags |= fault.flag;
        record.reason = Some(fault.detail.clone());
        if fault.status == 0 {
            return;
        }
        let id = head.and_then(|head| head.header("x-request-id").next()).or(record.request_id.as_deref());
        let text = format!("weir: {}, request id {}", fault.summary(), String::from_utf8_lossy(id.unwrap_or_default()));
        let id = Line("x-request-id", id.unwrap_or_default());
        let marker = marker.map(|marker| Line(MARKER, marker.as_bytes()));
        let common = || fault.headers.iter().map(|(name, value)| Line(name, value)).chain([id]).chain(marker);
        if record.is_grpc && !fault.is_bare {
            let status = fault.grpc_status.unwrap_or_else(|| grpc::of_http(fault.status));
            let (code, message) = (status.to_string(), grpc::message(&text));
            let of_grpc = [
                Line("content-type", b"application/grpc"),
                Line("grpc-status", code.as_bytes()),
                Line("grpc-message", &message),
            ];
            let lines: Lines<'_> = common().chain(of_grpc).collect();
            let complete = self.begin(&Own { status: 200, lines: &lines }, true);
            (record.code, record.grpc_status, record.complete) = (200, Some(status), complete);
            return;
        }
        let text = if fault.is_bare { Bytes::new() } else { Bytes::from(text + "\n") };
        let length = text.len().to_string();
        let kind: &[u8] = if fault.is_bare { b"" } else { b"text/plain; charset=utf-8" };
        let of_text = [Line("content-type", kind), Line("content-length", length.as_bytes())];
        let lines: Lines<'_> = common().chain(of_text).collect();
        let bodiless = fault.is_bare || head.is_some_and(|head| head.asked() == Asked::Head);
        let complete = self.begin(&Own { status: fault.status, lines: &lines }, bodiless);
        record.code = fault.status;
        record.sent = record.sent.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        record.complete = complete && (bodiless || Box::pin(self.finish(text)).await);
    }

    /// Sends all of a text, which a caller with a small window may take its time for.
    async fn finish(&mut self, mut text: Bytes) -> bool {
        let all = poll_fn(|cx| {
            loop {
                ready!(self.to.poll_send(cx, &mut text, true))?;
                if text.is_empty() {
                    return Poll::Ready(Ok::<_, Error>(()));
                }
            }
        });
        matches!(tokio::time::timeout(PATIENCE, all).await, Ok(Ok(())))
    }
}

/// Most answers have no more.
type Lines<'a> = SmallVec<[Line<'a>; 4]>;

/// A header of the proxy's own; left out where it is empty.
#[derive(Clone, Copy)]
struct Line<'a>(&'a str, &'a [u8]);

/// The head of an answer of the proxy's own.
struct Own<'a> {
    status: u16,
    lines: &'a [Line<'a>],
}

impl List for Own<'_> {
    fn each(&self, line: &mut dyn FnMut(&[u8], &[u8])) {
        line(b":status", self.status.to_string().as_bytes());
        for Line(name, value) in self.lines.iter().filter(|Line(_, value)| !value.is_empty()) {
            line(name.as_bytes(), value);
        }
    }
}
