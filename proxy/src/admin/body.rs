//! Answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type Answer = Response<Body>;

/// Prometheus' text format.
pub(super) const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn answer(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Plain text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", Full::new(text.into()).boxed_unsync())
}

/// JSON, indented for people.
pub(super) fn json(value: &serde_json::Value) -> Answer {
    let text = serde_json::to_vec_pretty(value).unwrap_or_default();
    answer(StatusCode::OK, "application/json", Full::new(text.into()).boxed_unsync())
}

/// Pieces that are made while they are sent.
pub(super) fn metrics(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Answer {
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    answer(StatusCode::OK, METRICS_TYPE, StreamBody::new(frames).boxed_unsync())
}

pub(super) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "not found; see /help\n")
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "this endpoint has other methods\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
