//! The ports that anybody may reach: readiness, metrics, probes. They change nothing.

use futures_util::{StreamExt, stream};
use hyper::{Method, Request, StatusCode};

use super::{
    Admin, app_call, app_metrics,
    body::{self, Answer},
    server::Abort,
};

/// Where the readiness of the proxy is asked for.
pub(super) const READY_PATH: &str = "/healthz/ready";
const METRICS_PATH: &str = "/stats/prometheus";

pub(super) fn is_read<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

/// 15021
pub(super) fn readiness<B>(admin: &Admin, request: &Request<B>) -> Answer {
    if !is_read(request) {
        return body::method_not_allowed("GET, HEAD");
    }
    match request.uri().path() {
        READY_PATH => state(admin),
        _ => body::not_found(),
    }
}

/// 200, or 503 with one reason a line.
pub(super) fn state(admin: &Admin) -> Answer {
    let reasons = admin.readiness.reasons();
    let ready = reasons.is_empty();
    admin.registry.proxy.ready.set(ready.into());
    if ready { body::text(StatusCode::OK, "ready\n") } else { body::text(StatusCode::SERVICE_UNAVAILABLE, reasons) }
}

/// 15090
pub(super) fn metrics<B>(admin: &Admin, request: &Request<B>) -> Answer {
    if !is_read(request) {
        return body::method_not_allowed("GET, HEAD");
    }
    match request.uri().path() {
        METRICS_PATH => {
            admin.registry.proxy.ready.set(admin.readiness.is_ready().into());
            body::metrics(stream::iter(admin.registry.encoder()))
        }
        _ => body::not_found(),
    }
}

/// 15020
pub(super) async fn merged<B>(admin: &Admin, request: &Request<B>) -> Result<Answer, Abort> {
    if !is_read(request) {
        return Ok(body::method_not_allowed("GET, HEAD"));
    }
    let path = request.uri().path();
    if path == METRICS_PATH {
        admin.registry.proxy.ready.set(admin.readiness.is_ready().into());
        let Some(target) = &admin.app.metrics else {
            return Ok(body::metrics(stream::iter(admin.registry.encoder())));
        };
        let ours = stream::iter(admin.registry.encoder().without_process());
        let theirs = app_metrics::scrape(&admin.app, target, request.headers(), admin.registry.clone()).await;
        return Ok(match theirs {
            Some(theirs) => body::metrics(ours.chain(theirs)),
            None => body::metrics(stream::iter(admin.registry.encoder().without_process())),
        });
    }
    match admin.app.calls.get(path) {
        Some(call) => app_call::perform(&admin.app, path, call, request.headers(), &admin.registry).await,
        None => Ok(body::not_found()),
    }
}
