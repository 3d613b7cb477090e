//! An HTTP client without retries and without a pool.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// http://HOST[:PORT]/PATH
    url: Uri,
    /// NAME:VALUE, any number of them
    #[arg(long)]
    header: Vec<String>,
    /// Sent by POST
    #[arg(long)]
    body: Option<String>,
    /// For the whole request, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Print the status and the headers too
    #[arg(long)]
    head: bool,
}

/// Ends with success for every answer below 400.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let limit = Duration::from_secs(arguments.seconds);
    timeout(limit, fetch(arguments)).await.with_context(|| format!("no answer within {limit:?}"))?
}

async fn fetch(arguments: &Arguments) -> Result<ExitCode> {
    let stream = TcpStream::connect(crate::host_and_port(&arguments.url)?).await.context("connect")?;
    let authority = arguments.url.authority().map_or("", |authority| authority.as_str());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = arguments.url.path_and_query().map_or("/", |path| path.as_str());
    let method = if arguments.body.is_some() { "POST" } else { "GET" };
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, authority);
    for header in &arguments.header {
        let (name, value) = header.split_once(':').context("a header is NAME:VALUE")?;
        request = request.header(name.trim(), value.trim());
    }
    let body = Bytes::from(arguments.body.clone().unwrap_or_default());
    let response = sender.send_request(request.body(Full::new(body))?).await.context("request")?;
    let status = response.status();
    if arguments.head {
        println!("{status}");
        for (name, value) in response.headers() {
            println!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
    }
    print!("{}", String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()));
    Ok(if status.as_u16() < 400 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
