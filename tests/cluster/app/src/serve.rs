//! An HTTP server that answers with what it got, HTTP/1.1 and HTTP/2.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, header::HeaderValue};

/// Largest body that is read, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Longest pause that a request can ask for.
const MAX_DELAY: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Said with every answer
    #[arg(long, default_value = "")]
    version: String,
    /// Folder for what was served of a load, a file for each pod
    #[arg(long)]
    record: Option<std::path::PathBuf>,
    /// HTTPS, with a certificate made at the start
    #[arg(long)]
    tls: bool,
    /// Percent of the requests that are answered with 500; the kubelet's are not
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100))]
    fail: u64,
    /// Print method and path of each request
    #[arg(long)]
    log: bool,
}

/// What is the same for all requests.
#[derive(Debug)]
struct Answering {
    version: String,
    log: bool,
    fail: u64,
    requests: AtomicU64,
}

impl Answering {
    /// True for this share of the requests, as evenly as can be.
    fn fails(&self, number: u64, headers: &HeaderMap) -> bool {
        let is_probe = headers.get("user-agent").is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"));
        !is_probe && number * self.fail / 100 > (number - 1) * self.fail / 100
    }
}

/// Serves until SIGTERM, and then accepts no more. Open requests are answered.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(folder) = &arguments.record {
        crate::load::record_into(folder)?;
    }
    let tls = if arguments.tls { Some(crate::tls::self_signed()?) } else { None };
    let (log, fail) = (arguments.log, arguments.fail);
    let answering = Answering { version: arguments.version.clone(), log, fail, requests: AtomicU64::default() };
    let answering = Arc::new(answering);
    crate::listen::serve_by(arguments.listen, tls, move |request, peer| answer(request, answering.clone(), peer)).await
}

/// Path `/status/CODE` answers with that code, `/delay/MS` after that time, `/metrics` with the number of requests.
async fn answer(
    request: Request<Incoming>,
    answering: Arc<Answering>,
    peer: Option<SocketAddr>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    crate::load::record(&head.method, &head.headers);
    let number = answering.requests.fetch_add(1, Relaxed).saturating_add(1);
    if answering.log {
        println!("{} {}", head.method, head.uri.path());
    }
    if head.uri.path() == "/metrics" {
        let text = format!("# TYPE app_requests_total counter\napp_requests_total {number}\n");
        let mut response = Response::new(Full::new(Bytes::from(text)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain; version=0.0.4"));
        return Ok(response);
    }
    let fails = answering.fails(number, &head.headers);
    let mut status = if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    match head.uri.path().trim_start_matches('/').split_once('/') {
        Some(("status", code)) => status = code.parse().unwrap_or(StatusCode::BAD_REQUEST),
        Some(("delay", ms)) => {
            let delay = Duration::from_millis(ms.parse().unwrap_or(0));
            tokio::time::sleep(delay.min(MAX_DELAY)).await;
        }
        _ => {}
    }
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.entry(name.to_string()).or_default().push(value);
    }
    let said = serde_json::json!({
        "pod": crate::pod(),
        "version": answering.version,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(ToString::to_string),
        "protocol": format!("{:?}", head.version),
        "peer": peer.map(|peer| peer.ip().to_canonical().to_string()),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{said}\n"))));
    *response.status_mut() = status;
    for (name, value) in
        [("content-type", "application/json"), ("x-version", &*answering.version), ("x-pod", &*crate::pod())]
    {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}
