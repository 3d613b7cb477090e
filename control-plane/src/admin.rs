//! The admin server: health, metrics, and what a person asks at 3 a.m. No secrets, no changes; plaintext, on loopback unless
//! told otherwise.

use std::{fmt::Write as _, sync::Arc};

use tokio::sync::watch;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use weir_config::{
    gateway::{GRPC_ROUTE, HTTP_ROUTE, TCP_ROUTE, TLS_ROUTE},
    model::{Name, Origin},
};

use crate::{
    catalog::{Catalog, Start},
    describe,
    metrics::Metrics,
};

#[derive(Clone)]
struct Admin {
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
}

/// The admin server's pages.
pub fn router(catalog: Arc<Catalog>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(|State(admin): State<Admin>| async move { admin.metrics.render() }))
        .route("/debug/problems", get(problems))
        .route("/debug/resources", get(resources))
        .route("/debug/describe/{kind}/{namespace}/{name}", get(describe))
        .with_state(Admin { catalog, metrics })
}

/// The kubelet's pages: `/livez` says that the process turns, whatever the API server does; `/healthz` that proxies are answered.
pub fn health(catalog: Arc<Catalog>, shutdown: watch::Receiver<bool>) -> Router {
    let ready = async move || {
        if *shutdown.borrow() {
            (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".into())
        } else {
            readiness(&catalog)
        }
    };
    Router::new().route("/livez", get(async || "ok\n")).route("/healthz", get(ready))
}

async fn healthz(State(admin): State<Admin>) -> (StatusCode, String) {
    readiness(&admin.catalog)
}

fn readiness(catalog: &Catalog) -> (StatusCode, String) {
    match catalog.start() {
        Start::Done => (StatusCode::OK, "ok\n".into()),
        Start::Reading => (StatusCode::SERVICE_UNAVAILABLE, "the source is still being read\n".into()),
        Start::Held(places) => {
            let mut text =
                "not ready: these have not been read since the start; mend or remove them. Until then proxies are not \
                 answered and keep what they have.\n"
                    .to_owned();
            for place in places {
                writeln!(text, "{place}").ok();
            }
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn problems(State(admin): State<Admin>) -> String {
    let mut lines = admin.catalog.problems().join("\n");
    if !lines.is_empty() {
        lines.push('\n');
    }
    lines
}

async fn resources(State(admin): State<Admin>) -> String {
    let mut text = String::new();
    for (name, version, streams) in admin.catalog.asked() {
        writeln!(text, "{name} version={version} streams={streams}").ok();
    }
    text
}

/// What is in force for an object, as `weir describe` shows it.
async fn describe(
    State(admin): State<Admin>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Response {
    if admin.catalog.start() != Start::Done {
        return readiness(&admin.catalog).into_response();
    }
    let found = admin.catalog.inspect(|mesh, world, refused| {
        let name = Name::new(namespace.as_str(), name.as_str());
        let route = |kind| {
            let route = describe::route(world, &Origin { kind, name: name.clone() }, refused);
            route.map(|route| Json(route).into_response())
        };
        match kind.as_str() {
            "service" => describe::service(world, &name, refused).map(|service| Json(service).into_response()),
            "pod" => describe::pod(mesh, world, &name).map(|pod| Json(pod).into_response()),
            "httproute" => route(HTTP_ROUTE),
            "grpcroute" => route(GRPC_ROUTE),
            "tlsroute" => route(TLS_ROUTE),
            "tcproute" => route(TCP_ROUTE),
            _ => None,
        }
    });
    found.unwrap_or_else(|| {
        (StatusCode::NOT_FOUND, format!("the control plane knows no {kind} {namespace}/{name}\n")).into_response()
    })
}
