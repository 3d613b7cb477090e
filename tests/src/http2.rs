//! Applications and clients of HTTP/2 and gRPC, without anything between them and the `h2` crate.

use std::{
    future::poll_fn,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};

use crate::netns::Netns;

/// The longest that a step of a test takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a test's client side.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(work))
}

/// A listening application. Stops when it is dropped.
pub struct H2App {
    /// Connections that came.
    pub connections: Arc<AtomicUsize>,
    /// Requests that came.
    pub requests: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
}

impl H2App {
    /// Hands each connection to `serve`.
    pub fn raw<F: Future<Output = ()> + 'static>(
        netns: &Netns,
        port: u16,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = netns.listen((Ipv6Addr::UNSPECIFIED, port).into());
        listener.set_nonblocking(true).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let counted = connections.clone();
        std::thread::spawn(move || {
            run(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        counted.fetch_add(1, Relaxed);
                        stream.set_nodelay(true).ok();
                        tokio::task::spawn_local(serve(stream));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self { connections, requests: Arc::default(), stop: Some(stop) }
    }

    /// Hands each request to `answer`, with settings of its own.
    pub fn new<F: Future<Output = ()> + 'static>(
        netns: &Netns,
        port: u16,
        settings: server::Builder,
        answer: impl Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> F + Clone + Send + 'static,
    ) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let mut app = Self::raw(netns, port, move |stream| {
            let (settings, answer, counted) = (settings.clone(), answer.clone(), counted.clone());
            async move {
                let Ok(mut connection) = settings.handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    counted.fetch_add(1, Relaxed);
                    tokio::task::spawn_local(answer(request, respond));
                }
            }
        });
        app.requests = requests;
        app
    }

    /// A gRPC server that sends back every message as it comes: headers `x-pod`, `x-path`, `x-headers` say what it got, trailers `grpc-status` and
    /// `x-bytes`. The request's headers `x-status` and `x-fail: trailers-only` choose the end.
    pub fn echo(netns: &Netns, port: u16, name: &str) -> Self {
        let name = name.to_owned();
        // Its own connection must not be what is full.
        let settings = server::Builder::new().initial_connection_window_size(64 << 20).clone();
        Self::new(netns, port, settings, move |request, respond| echo(name.clone(), request, respond))
    }
}

impl Drop for H2App {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

async fn echo(name: String, request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let status = parts.headers.get("x-status").and_then(|status| status.to_str().ok()).unwrap_or("0").to_owned();
    let mut names: Vec<&str> = parts.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .header("x-pod", name)
        .header("x-path", parts.uri.path_and_query().map_or("", |path| path.as_str()))
        .header("x-authority", parts.uri.authority().map_or("", |authority| authority.as_str()))
        .header("x-headers", names.join(","));
    if parts.headers.get("x-fail").is_some_and(|fail| fail == "trailers-only") {
        let _ = respond.send_response(head.header("grpc-status", status).body(()).unwrap(), true);
        return;
    }
    let Ok(mut out) = respond.send_response(head.body(()).unwrap(), false) else { return };
    let mut count = 0;
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        count += data.len();
        if send(&mut out, data, false).await.is_err() {
            return;
        }
    }
    let sent = body.trailers().await.ok().flatten();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    trailers.insert("x-bytes", count.into());
    if let Some(value) = sent.as_ref().and_then(|sent| sent.get("x-sent")) {
        trailers.insert("x-sent", value.clone());
    }
    let _ = out.send_trailers(trailers);
}

/// Sends data as fast as the peer takes it.
///
/// # Errors
/// What the stream says.
pub async fn send(out: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    loop {
        out.reserve_capacity(data.len());
        while out.capacity() == 0 && !data.is_empty() {
            match poll_fn(|cx| out.poll_capacity(cx)).await {
                Some(result) => result?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            };
        }
        let piece = data.split_to(out.capacity().min(data.len()));
        out.send_data(piece, end && data.is_empty())?;
        if data.is_empty() {
            return Ok(());
        }
    }
}

/// A client's connection.
pub struct H2Client {
    /// For requests.
    pub send: client::SendRequest<Bytes>,
    /// Ready when the connection has ended.
    pub ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// What came of a request.
#[derive(Debug, Default)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: HeaderMap,
}

impl Reply {
    /// The status of a gRPC call.
    pub fn grpc(&self) -> Option<u8> {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"))?;
        status.to_str().ok()?.parse().ok()
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl H2Client {
    /// Connects from inside a namespace.
    ///
    /// # Errors
    /// What the connection says.
    pub async fn connect(netns: &Netns, to: SocketAddr) -> Result<Self, h2::Error> {
        Self::with(netns, to, &client::Builder::new()).await
    }

    /// The same with settings.
    ///
    /// # Errors
    /// What the connection says.
    pub async fn with(netns: &Netns, to: SocketAddr, settings: &client::Builder) -> Result<Self, h2::Error> {
        let (send, connection) = settings.handshake(stream(netns, to)).await?;
        Ok(Self { send, ended: tokio::task::spawn_local(connection) })
    }

    /// Begins a request.
    ///
    /// # Errors
    /// What the connection says.
    pub async fn begin(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        poll_fn(|cx| self.send.poll_ready(cx)).await?;
        self.send.send_request(request, end)
    }

    /// Sends a request with this body and reads the whole answer.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn ask(&mut self, request: Request<()>, body: Bytes) -> Result<Reply, h2::Error> {
        let (response, mut out) = self.begin(request, body.is_empty()).await?;
        let sending = async {
            if !body.is_empty() {
                let _ = send(&mut out, body, true).await; // the answer says why
            }
        };
        let (reply, ()) = tokio::join!(timeout(LIMIT, whole(response)), sending);
        reply.expect("an answer in time")
    }

    /// A gRPC call with one message.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn call(&mut self, path: &str, message: &[u8]) -> Result<Reply, h2::Error> {
        let mut body = BytesMut::from(&[0][..]);
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
        self.ask(grpc(path, &[]), body.freeze()).await
    }
}

/// A connected stream.
pub fn stream(netns: &Netns, to: SocketAddr) -> TcpStream {
    let stream = netns.connect(to).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream.set_nodelay(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

/// The head of a gRPC call with these headers besides.
pub fn grpc(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://catalog{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// The whole of an answer.
///
/// # Errors
/// What the stream says.
pub async fn whole(response: client::ResponseFuture) -> Result<Reply, h2::Error> {
    let (parts, mut body) = response.await?.into_parts();
    let mut data = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        let _ = body.flow_control().release_capacity(chunk.len());
        data.extend(chunk);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body: data.freeze(), trailers })
}
