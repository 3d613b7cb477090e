//! The webhook's paths.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::metrics::Metrics;
use crate::{
    review::{Judgement, review},
    settings::Settings,
};

/// Largest body, as the API server's own limit for an object (3 MiB).
pub(crate) const MAX_BODY: usize = 3 << 20;
/// Longest time that a body may take to arrive. The API server gives the whole call 5 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(4);
/// Bodies of all requests together, in KiB, so that many slow senders can not fill the memory.
const BODIES_KIB: usize = 64 * 1024;
/// Reviews that are worked on at the same time. Each holds its parsed object, many times its text.
const WORKING: usize = 4;

pub(crate) struct App {
    settings: Settings,
    metrics: Arc<Metrics>,
    bodies: Semaphore,
    working: Semaphore,
}

pub(crate) fn router(settings: Settings, metrics: Arc<Metrics>) -> Router {
    let app = App { settings, metrics, bodies: Semaphore::new(BODIES_KIB), working: Semaphore::new(WORKING) };
    let app = Arc::new(app);
    Router::new()
        .route("/inject", post(judge))
        .route("/rules", post(judge))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics_text))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), count_rejections))
        .with_state(app)
}

/// An HTTP error: the status, and one line that says what to do.
struct Rejection(StatusCode, String);

impl Rejection {
    fn new(status: StatusCode, text: &str) -> Self {
        Self(status, text.to_owned())
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

async fn count_rejections(
    State(app): State<Arc<App>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let response = next.run(request).await;
    if !response.status().is_success() {
        app.metrics.rejected(response.status().as_u16());
    }
    response
}

async fn metrics_text(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render())
}

async fn judge(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Rejection> {
    if !is_json(&headers) {
        let text = "send an AdmissionReview with Content-Type: application/json";
        return Err(Rejection::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let slow = |_| Rejection::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
    let (bytes, _budget) = tokio::time::timeout(BODY_TIMEOUT, read(&app, &headers, body)).await.map_err(slow)??;
    let closed = |_| Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "the webhook is shutting down");
    let _turn = app.working.acquire().await.map_err(closed)?;

    let start = Instant::now();
    let answer = review(&app.settings, &bytes);
    let took = start.elapsed();
    let elapsed_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match answer {
        Ok(answer) => {
            app.metrics.reviewed(answer.result, took);
            let (object, result) = (answer.object, answer.result.as_str());
            match answer.message {
                Some(reason) => tracing::warn!(object, result, elapsed_us, reason, "review"),
                None if !answer.warnings.is_empty() => {
                    tracing::warn!(object, result, elapsed_us, reason = answer.warnings.join("; "), "review");
                }
                None if answer.result == Judgement::Skipped => tracing::debug!(object, result, elapsed_us, "review"),
                None => tracing::info!(object, result, elapsed_us, "review"),
            }
            Ok(([(header::CONTENT_TYPE, "application/json")], answer.body).into_response())
        }
        Err(error) => {
            tracing::debug!(%error, elapsed_us, "bad review");
            Err(Rejection(StatusCode::BAD_REQUEST, error.to_string()))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Reads a body within the limits of one request and of all together; the latter's share is given back with the permit.
async fn read<'a>(
    app: &'a App,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<(Bytes, Option<SemaphorePermit<'a>>), Rejection> {
    let too_large = || Rejection(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_BODY} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut budget: Option<SemaphorePermit<'a>> = None;
    while let Some(frame) = body.frame().await {
        let broken = |_| Rejection::new(StatusCode::BAD_REQUEST, "the body broke off");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len().saturating_add(data.len()) > MAX_BODY {
            return Err(too_large());
        }
        let kib = u32::try_from(data.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let busy = |_| Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "too many large requests at once: try again");
        let share = app.bodies.try_acquire_many(kib).map_err(busy)?;
        match &mut budget {
            Some(budget) => budget.merge(share),
            None => budget = Some(share),
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), budget))
}
