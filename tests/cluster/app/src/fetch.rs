//! An HTTP client without retries: one request, or a number of them that are counted.

use std::{
    cell::Cell,
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// http://HOST[:PORT]/PATH
    url: Uri,
    /// NAME:VALUE, any number of them
    #[arg(long)]
    header: Vec<String>,
    /// GET, or POST where there is a body
    #[arg(long)]
    method: Option<String>,
    #[arg(long)]
    body: Option<String>,
    /// For each request, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// As many requests; then only who answered how often is printed, as one line of JSON
    #[arg(long)]
    count: Option<u32>,
    /// Ends sooner, when this version has answered so many requests one after the other: VERSION:NUMBER. Prints a line when a
    /// first request, which is not counted, was answered
    #[arg(long, requires = "count", value_parser = version_and_number)]
    until: Option<(String, u32)>,
    /// Kept connections that share the requests
    #[arg(long, default_value_t = 1, requires = "count")]
    concurrency: u32,
    /// Pause of each connection between its requests
    #[arg(long, default_value_t = 0, requires = "count")]
    pause_ms: u64,
    /// Print the status and the headers too
    #[arg(long)]
    head: bool,
}

fn version_and_number(text: &str) -> Result<(String, u32), String> {
    let (version, number) = text.split_once(':').ok_or("it is VERSION:NUMBER")?;
    Ok((version.to_owned(), number.parse().map_err(|error| format!("{error}"))?))
}

/// Ends with success for every answer below 400, or where all requests were answered at all.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(count) = arguments.count {
        return many(arguments, count).await;
    }
    let (response, body) = once(arguments, &mut None).await?;
    let status = response.status();
    if arguments.head {
        println!("{status}");
        for (name, value) in response.headers() {
            println!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
    }
    print!("{}", String::from_utf8_lossy(&body));
    Ok(if status.as_u16() < 400 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Sender = SendRequest<Full<Bytes>>;

/// One request, on the connection that is kept, or on a new one, which is kept then.
async fn once(arguments: &Arguments, kept: &mut Option<Sender>) -> Result<(Response<()>, Bytes)> {
    let limit = Duration::from_secs(arguments.seconds);
    let exchange = async {
        let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => connect(&arguments.url).await?,
        };
        sender.ready().await?;
        let response: Response<Incoming> = sender.send_request(request(arguments)?).await.context("request")?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("body")?.to_bytes();
        *kept = Some(sender);
        Ok((Response::from_parts(head, ()), body))
    };
    timeout(limit, exchange).await.with_context(|| format!("no answer within {limit:?}"))?
}

async fn connect(url: &Uri) -> Result<Sender> {
    let stream = TcpStream::connect(crate::host_and_port(url)?).await.context("connect")?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(arguments: &Arguments) -> Result<Request<Full<Bytes>>> {
    let authority = arguments.url.authority().map_or("", |authority| authority.as_str());
    let path = arguments.url.path_and_query().map_or("/", |path| path.as_str());
    let method = arguments.method.as_deref().unwrap_or(if arguments.body.is_some() { "POST" } else { "GET" });
    let mut request = Request::builder().method(method).uri(path);
    let named = |header: &String| header.get(..5).is_some_and(|name| name.eq_ignore_ascii_case("host:"));
    if !arguments.header.iter().any(named) {
        request = request.header(header::HOST, authority);
    }
    for header in &arguments.header {
        let (name, value) = header.split_once(':').context("a header is NAME:VALUE")?;
        request = request.header(name.trim(), value.trim());
    }
    let body = Bytes::from(arguments.body.clone().unwrap_or_default());
    Ok(request.body(Full::new(body))?)
}

/// What a version answered.
#[derive(Default)]
struct Answers {
    count: u32,
    pods: BTreeMap<String, u32>,
    /// When the first and the last request that it answered were sent, in milliseconds since 1970.
    first_ms: u128,
    last_ms: u128,
}

async fn many(arguments: &Arguments, count: u32) -> Result<ExitCode> {
    let begun = Instant::now();
    if arguments.until.is_some() {
        once(arguments, &mut None).await?;
        println!("answered");
    }
    let (left, row) = (Cell::new(count), Cell::new(0));
    let all = join_all((0..arguments.concurrency.max(1)).map(|_| some(arguments, &left, &row))).await;
    let mut versions: BTreeMap<String, Answers> = BTreeMap::new();
    let mut statuses: BTreeMap<String, u32> = BTreeMap::new();
    let mut failures: Vec<String> = Vec::new();
    for (sent, outcome) in all.into_iter().flatten() {
        let response = match outcome {
            Ok(response) => response,
            Err(error) => {
                failures.push(format!("{error:#}"));
                continue;
            }
        };
        *statuses.entry(response.status().as_str().to_owned()).or_default() += 1;
        let answers = versions.entry(said(&response, "x-version")).or_default();
        answers.first_ms = if answers.count == 0 { sent } else { answers.first_ms.min(sent) };
        answers.last_ms = answers.last_ms.max(sent);
        answers.count += 1;
        *answers.pods.entry(said(&response, "x-pod")).or_default() += 1;
    }
    let versions: BTreeMap<_, _> = versions
        .into_iter()
        .map(|(version, Answers { count, pods, first_ms, last_ms })| {
            (version, json!({"count": count, "pods": pods, "first_ms": first_ms, "last_ms": last_ms}))
        })
        .collect();
    let ms = begun.elapsed().as_millis();
    println!("{}", json!({"versions": versions, "statuses": statuses, "failures": failures, "ms": ms}));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn said(response: &Response<()>, name: &str) -> String {
    response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

/// One connection's requests: when each was sent, and what became of it.
async fn some(arguments: &Arguments, left: &Cell<u32>, row: &Cell<u32>) -> Vec<(u128, Result<Response<()>>)> {
    let (mut kept, mut outcomes) = (None, Vec::new());
    while let Some(fewer) = left.get().checked_sub(1) {
        left.set(fewer);
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let outcome = once(arguments, &mut kept).await.map(|(response, _)| response);
        if let Some((version, enough)) = &arguments.until {
            let is_it = outcome.as_ref().is_ok_and(|response| said(response, "x-version") == *version);
            row.set(if is_it { row.get() + 1 } else { 0 });
            if row.get() >= *enough {
                left.set(0);
            }
        }
        outcomes.push((sent, outcome));
        sleep(Duration::from_millis(arguments.pause_ms)).await;
    }
    outcomes
}
