//! What goes back to the caller on its stream: an answer that is passed on, or the proxy's own.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::{
    http::{Asked, RequestHead, h2::grpc},
    serve::exchange::{fault::Fault, record::Record},
};

/// The way back.
pub(super) struct Reply {
    respond: SendResponse<Bytes>,
    /// Once the head has gone.
    pub stream: Option<SendStream<Bytes>>,
}

impl Reply {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        Self { respond, stream: None }
    }

    /// True when a head has gone.
    pub(super) fn has_begun(&self) -> bool {
        self.stream.is_some()
    }

    /// Ready when the caller has reset the stream, or is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }

    /// An answer before the answer.
    pub(super) fn interim(&mut self, head: Response<()>) {
        let _ = self.respond.send_informational(head); // a caller that is gone shows elsewhere
    }

    /// The head of an answer; true where the caller could be told.
    pub(super) fn begin(&mut self, head: Response<()>, ends: bool) -> bool {
        match self.respond.send_response(head, ends) {
            Ok(stream) => {
                self.stream = Some(stream);
                true
            }
            Err(_) => false,
        }
    }

    /// The caller is told that nothing more comes, and why.
    pub(super) fn reset(&mut self, reason: Reason) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    /// The proxy's own answer. The caller gets a status, an id, and no more than it may know; the reason is in the log.
    pub(super) fn own(&mut self, record: &mut Record, head: Option<&RequestHead>, fault: &Fault) {
        record.flags |= fault.flag;
        record.reason = Some(fault.detail.clone());
        if fault.status == 0 {
            return;
        }
        let id = head.and_then(|head| head.header("x-request-id").next()).or(record.request_id.as_deref());
        let id = id.and_then(|id| HeaderValue::from_bytes(id).ok());
        let text = format!(
            "weir: {}, request id {}",
            fault.summary(),
            id.as_ref().map_or_else(Default::default, |id| String::from_utf8_lossy(id.as_bytes()))
        );
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert("x-request-id", id);
        }
        if record.is_grpc {
            let status = grpc::of_http(fault.status);
            record.code = 200;
            record.grpc_status = Some(status);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
            headers.insert("grpc-message", grpc::message(&text));
            record.complete = self.begin(answer(StatusCode::OK, headers), true);
            return;
        }
        record.code = fault.status;
        let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = Bytes::from(text + "\n");
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
        let bodiless = head.is_some_and(|head| head.asked() == Asked::Head);
        record.sent = record.sent.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        record.complete = self.begin(answer(status, headers), bodiless);
        if let Some(stream) = self.stream.as_mut().filter(|_| !bodiless) {
            record.complete = stream.send_data(text, true).is_ok();
        }
    }
}

/// A head.
pub(super) fn answer(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
