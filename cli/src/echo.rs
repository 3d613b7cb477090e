//! The image `weir.dev/echo`: an HTTP server that answers with what it got.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::failure::Failure;

/// Where it listens, for all that reach it by either family.
const PORT: u16 = 8080;
/// Largest body that is read, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Longest pause that a request can ask for.
const MAX_DELAY: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to listen; port 8080 of all addresses where nothing is said
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Sent as `x-version` with every answer
    #[arg(long, default_value = "")]
    version: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(serve(arguments)).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &Arguments) -> std::io::Result<()> {
    let listener = listen(arguments.listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let version: Arc<str> = arguments.version.as_str().into();
    say!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, caller) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of file descriptors, most likely: connections must end first.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
            _ = terminate.recv() => return Ok(()),
        };
        let version = version.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, version.clone(), caller.ip()));
            // A client that breaks off is no news.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn listen(given: Option<SocketAddr>) -> std::io::Result<TcpListener> {
    match given {
        Some(address) => TcpListener::bind(address).await,
        // A kernel without IPv6 has the other only.
        None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await,
        },
    }
}

/// Path `/status/CODE` answers with that code, `/delay/MS` after that time.
async fn answer(
    request: Request<Incoming>,
    version: Arc<str>,
    caller: IpAddr,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut status = StatusCode::OK;
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
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let said = serde_json::json!({
        "pod": pod,
        "from": caller.to_canonical(),
        "version": &*version,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(ToString::to_string),
        "protocol": format!("{:?}", head.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{said}\n"))));
    *response.status_mut() = status;
    for (name, value) in [("content-type", "application/json"), ("x-version", &version), ("x-pod", &pod)] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}
