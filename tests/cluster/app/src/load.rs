//! A client that goes on asking at a steady rate, whatever the answers, and counts. It never sends anything twice.
//!
//! Open loop: a request starts when its time has come, also while others hang. In turn GET and POST, on kept connections and on fresh
//! ones. A kept connection that the server has closed is passed over as long as nothing was written to it, as every client does.
//! The server's half of it is [`record`]: who was served with what, in files, so that a request that was served twice is found.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    error::Error as _,
    fs::{File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Method, Request, Response, Uri, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

/// Names a request, the same for nobody else.
const ID: &str = "x-load-id";
/// For one request, from its time on.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the name of the server, which may be news to the cluster's DNS.
const FOUND: Duration = Duration::from_secs(60);
/// Longest time that can be asked for.
const LONGEST: u64 = 300;
/// Requests under way; more are failures, so that nothing grows without end.
const MOST_UNDER_WAY: usize = 4000;
/// Failures that are told in full.
const TOLD: usize = 20;
/// Kept connections that nobody has used for so long are closed: below what servers wait.
const IDLE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// http://HOST[:PORT]; resolved once
    #[arg(long)]
    url: Uri,
    /// Requests a second
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// Ends asking by itself after this time
    #[arg(long, default_value_t = LONGEST, value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    seconds: u64,
    /// Where the counts are: GET / for all, /reset for all and to begin anew, /stop to end asking and for all when the last has come
    #[arg(long, default_value = "[::]:8081")]
    listen: SocketAddr,
}

struct Load {
    /// Begins every id.
    name: String,
    host: String,
    to: SocketAddr,
    kept: Mutex<VecDeque<(Instant, Sender)>>,
    counts: Mutex<Counts>,
}

type Sender = http1::SendRequest<Full<Bytes>>;

#[derive(Default)]
struct Counts {
    stopped: bool,
    begun: Option<Instant>,
    next: u64,
    under_way: usize,
    ok: u64,
    failed: u64,
    told: Vec<Value>,
    by_pod: BTreeMap<String, u64>,
    by_kind: BTreeMap<&'static str, u64>,
    slowest: Duration,
}

impl Counts {
    fn to_json(&self) -> Value {
        json!({
            "sent": self.ok + self.failed + self.under_way as u64,
            "under_way": self.under_way,
            "ok": self.ok,
            "failed": self.failed,
            "reasons": self.told,
            "by_pod": self.by_pod,
            "by_kind": self.by_kind,
            "slowest_ms": self.slowest.as_millis() as u64,
            "seconds": self.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()),
        })
    }

    fn begin_anew(&mut self) {
        let Self { stopped, next, under_way, .. } = *self;
        *self = Self { stopped, next, under_way, begun: Some(Instant::now()), ..Self::default() };
    }
}

/// Asks until its time is over, and tells the counts until it is terminated.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let to = resolve(&arguments.url).await?;
    let nonce = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let load = Arc::new(Load {
        name: format!("{}-{nonce:x}", crate::pod()),
        host: arguments.url.authority().map(ToString::to_string).unwrap_or_default(),
        to,
        kept: Mutex::default(),
        counts: Mutex::default(),
    });
    load.counts().begin_anew();
    tokio::spawn(ask(load.clone(), arguments.rate, Duration::from_secs(arguments.seconds)));
    crate::listen::serve(arguments.listen, move |request, _peer| tell(load.clone(), request)).await
}

/// Name servers may be among what the test ends: the address is what counts here.
async fn resolve(url: &Uri) -> Result<SocketAddr> {
    let (host, port) = crate::host_and_port(url)?;
    let end = Instant::now() + FOUND;
    loop {
        match tokio::net::lookup_host((host, port)).await.map(|mut found| found.next()) {
            Ok(Some(address)) => return Ok(address),
            Ok(None) => {}
            Err(error) if Instant::now() > end => return Err(error).with_context(|| format!("resolve {host}")),
            Err(_) => {}
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn ask(load: Arc<Load>, rate: u32, time: Duration) {
    let end = Instant::now() + time;
    let mut ticks = interval(Duration::from_secs(1) / rate);
    // Late is late, but none is left out.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while Instant::now() < end {
        ticks.tick().await;
        let number = {
            let mut counts = load.counts();
            if counts.stopped {
                return;
            }
            if counts.under_way >= MOST_UNDER_WAY {
                counts.failed += 1;
                continue;
            }
            counts.under_way += 1;
            counts.next += 1;
            counts.next
        };
        tokio::spawn(one(load.clone(), number));
    }
}

/// One request: by its number the method and the kind of connection.
async fn one(load: Arc<Load>, number: u64) {
    let (post, kept) = (number.is_multiple_of(2), number / 2 % 2 == 1);
    let kind = match (post, kept) {
        (false, false) => "GET fresh",
        (false, true) => "GET kept",
        (true, false) => "POST fresh",
        (true, true) => "POST kept",
    };
    let id = format!("{}-{number}", load.name);
    let begun = Instant::now();
    let ended = timeout(PATIENCE, load.request(&id, post, kept)).await;
    let took = begun.elapsed();
    let ended = ended.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
    let mut counts = load.counts();
    counts.under_way = counts.under_way.saturating_sub(1);
    counts.slowest = counts.slowest.max(took);
    match ended {
        Ok(pod) => {
            counts.ok += 1;
            *counts.by_pod.entry(pod).or_default() += 1;
            *counts.by_kind.entry(kind).or_default() += 1;
        }
        Err(why) => {
            counts.failed += 1;
            if counts.told.len() < TOLD {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
                let told = json!({"at_ms": at, "took_ms": took.as_millis() as u64, "kind": kind, "id": id, "why": why});
                counts.told.push(told);
            }
        }
    }
}

impl Load {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> MutexGuard<'_, VecDeque<(Instant, Sender)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod that has answered as it should.
    async fn request(&self, id: &str, post: bool, keep: bool) -> Result<String, String> {
        let path = format!("/load/{id}");
        let body = if post { format!("body of {id}") } else { String::new() };
        let mut request = Request::builder()
            .method(if post { Method::POST } else { Method::GET })
            .uri(&path)
            .header(header::HOST, &self.host)
            .header(ID, id)
            .body(Full::new(Bytes::from(body.clone())))
            .map_err(|error| error.to_string())?;
        if !keep {
            request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        }
        let (sender, response) = self.send(request, keep).await?;
        let status = response.status();
        let answer = response.into_body().collect().await.map_err(|error| format!("{status}, {}", chain(&error)))?;
        let answer = answer.to_bytes();
        if status.as_u16() >= 400 {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&answer)));
        }
        let said: Value =
            serde_json::from_slice(&answer).map_err(|error| format!("{status}, not our server: {error}"))?;
        if said["path"] != *path || said["body"] != *body {
            return Err(format!("{status}, the answer to another request: {said}"));
        }
        if keep {
            self.pool().push_back((Instant::now(), sender));
        }
        Ok(said["pod"].as_str().unwrap_or_default().to_owned())
    }

    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        keep: bool,
    ) -> Result<(Sender, Response<Incoming>), String> {
        while let Some((since, mut sender)) = keep.then(|| self.pool().pop_back()).flatten() {
            if since.elapsed() > IDLE || sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((sender, response)),
                // Nothing of it was written: the connection's end was seen before.
                Err(mut unsent) => match unsent.take_message() {
                    Some(message) => request = message,
                    None => return Err(format!("on a kept connection: {}", chain(unsent.error()))),
                },
            }
        }
        let stream = TcpStream::connect(self.to).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
        tokio::spawn(connection);
        let response =
            sender.send_request(request).await.map_err(|error| format!("on a fresh connection: {}", chain(&error)))?;
        Ok((sender, response))
    }
}

fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

async fn tell(load: Arc<Load>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path() {
        "/reset" => {
            let mut counts = load.counts();
            let told = counts.to_json();
            counts.begin_anew();
            return Ok(answer(&told));
        }
        "/stop" => {
            load.counts().stopped = true;
            // Each ends by its own time limit.
            while load.counts().under_way > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        }
        _ => {}
    }
    Ok(answer(&load.counts().to_json()))
}

fn answer(told: &Value) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(format!("{told}\n"))))
}

/// Where [`record`] writes.
static RECORD: OnceLock<Mutex<File>> = OnceLock::new();

/// From now on, [`record`] writes into a file of this pod in a folder.
pub(crate) fn record_into(folder: &Path) -> Result<()> {
    let path: PathBuf = folder.join(crate::pod());
    let file = OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    RECORD.get_or_init(|| Mutex::new(file));
    Ok(())
}

/// Writes down that a request of a load was served: a line with method and id.
pub(crate) fn record(method: &Method, headers: &HeaderMap) {
    let (Some(file), Some(id)) = (RECORD.get(), headers.get(ID).and_then(|id| id.to_str().ok())) else { return };
    let line = format!("{method} {id}\n");
    let written = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    if let Err(error) = written {
        eprintln!("app: what was served can not be written down: {error}");
    }
}
