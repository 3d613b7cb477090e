//! The load generator for HTTP/2: one thread, some connections with some streams each, every answer checked. Closed loop: a stream's next
//! request (or message) goes out when the last one was answered.

pub mod origin;

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client};
use http::{Method, Request};
use tokio::{net::TcpStream, runtime::Runtime, task::LocalSet, time::timeout};

use crate::{load::Outcome, origin::BODY};

/// Bytes in a message.
pub const MESSAGE: usize = 100;
/// Connections of a load.
pub const CONNECTIONS: usize = 4;
/// Streams at once on each.
pub const STREAMS: usize = 8;
pub(crate) const UNARY: &str = "/bench.Bench/Unary";
pub(crate) const STREAM: &str = "/bench.Bench/Stream";
/// Longest time beyond the load's own until the last answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A GET that is answered with 1 kB.
    Get,
    /// A call with one message there and one back.
    Unary,
    /// Messages on a stream that stays open, each sent when the last has come back.
    Stream,
}

/// Open connections.
pub struct Load {
    runtime: Runtime,
    tasks: LocalSet,
    address: SocketAddr,
    connections: Vec<client::SendRequest<Bytes>>,
}

impl Load {
    /// Opens [`CONNECTIONS`] connections to `address` from the calling thread's network namespace.
    ///
    /// # Errors
    /// Where one is not accepted.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let connections = tasks.block_on(&runtime, async {
            let mut all = Vec::with_capacity(CONNECTIONS);
            while all.len() < CONNECTIONS {
                let stream = timeout(LIMIT, TcpStream::connect(address)).await??;
                stream.set_nodelay(true)?;
                let (send, connection) = client::handshake(stream).await?;
                tokio::task::spawn_local(connection);
                all.push(send);
            }
            anyhow::Ok(all)
        });
        let connections = connections.with_context(|| format!("connecting to {address}"))?;
        Ok(Self { runtime, tasks, address, connections })
    }

    /// Asks for so long, at least once on every stream, and waits for the last answer.
    ///
    /// # Errors
    /// Where any answer is wrong, late or missing.
    pub fn run(&mut self, ask: Ask, duration: Duration) -> anyhow::Result<Outcome> {
        let outcome = Rc::new(RefCell::new(Outcome::default()));
        let start = Instant::now();
        let end = start + duration;
        let work = async {
            let mut streams = Vec::with_capacity(CONNECTIONS * STREAMS);
            for connection in self.connections.iter().cycle().take(CONNECTIONS * STREAMS) {
                let (connection, outcome, address) = (connection.clone(), outcome.clone(), self.address);
                streams.push(tokio::task::spawn_local(async move {
                    let note = |begun: Instant| {
                        let now = Instant::now();
                        let mut outcome = outcome.borrow_mut();
                        outcome.latencies.add(now - begun);
                        outcome.elapsed = now - start;
                        now < end
                    };
                    match ask {
                        Ask::Stream => messages(connection, address, note).await,
                        Ask::Get | Ask::Unary => requests(connection, address, ask, note).await,
                    }
                }));
            }
            for stream in streams {
                stream.await??;
            }
            anyhow::Ok(())
        };
        let limited = async { timeout(duration + LIMIT, work).await.context("no answer in time")? };
        self.tasks.block_on(&self.runtime, limited)?;
        Ok(outcome.take())
    }
}

fn head(address: SocketAddr, ask: Ask) -> anyhow::Result<Request<()>> {
    let (method, path) = match ask {
        Ask::Get => (Method::GET, "/"),
        Ask::Unary => (Method::POST, UNARY),
        Ask::Stream => (Method::POST, STREAM),
    };
    let request = Request::builder().method(method).uri(format!("http://{}{path}", address.ip()));
    let request = request.header("user-agent", "weir-bench");
    Ok(match ask {
        Ask::Get => request.body(())?,
        Ask::Unary | Ask::Stream => {
            request.header("content-type", "application/grpc").header("te", "trailers").body(())?
        }
    })
}

async fn requests(
    mut connection: client::SendRequest<Bytes>,
    address: SocketAddr,
    ask: Ask,
    mut note: impl FnMut(Instant) -> bool,
) -> anyhow::Result<()> {
    let (head, message) = (head(address, ask)?, origin::message());
    loop {
        let begun = Instant::now();
        connection = connection.ready().await?;
        let (response, mut out) = connection.send_request(head.clone(), ask == Ask::Get)?;
        if ask == Ask::Unary {
            out.send_data(message.clone(), true)?;
        }
        let response = response.await?;
        ensure!(response.status() == 200, "an answer that is not 200: {response:?}");
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            length += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        if ask == Ask::Get {
            ensure!(length == BODY, "an answer of {length} bytes and not {BODY}");
        } else {
            let trailers = body.trailers().await?.context("an answer without trailers")?;
            let status = trailers.get("grpc-status");
            ensure!(status.is_some_and(|status| status == "0"), "a call that failed: {trailers:?}");
            ensure!(length == message.len(), "an answer of {length} bytes and not {}", message.len());
        }
        if !note(begun) {
            return Ok(());
        }
    }
}

async fn messages(
    mut connection: client::SendRequest<Bytes>,
    address: SocketAddr,
    mut note: impl FnMut(Instant) -> bool,
) -> anyhow::Result<()> {
    let message = origin::message();
    connection = connection.ready().await?;
    let (response, mut out) = connection.send_request(head(address, Ask::Stream)?, false)?;
    out.send_data(message.clone(), false)?; // some proxies answer when they have seen data
    let mut begun = Instant::now();
    let response = response.await?;
    ensure!(response.status() == 200, "an answer that is not 200: {response:?}");
    let mut body = response.into_body();
    loop {
        let mut length = 0;
        while length < message.len() {
            let data = body.data().await.context("a stream that ended before its time")??;
            length += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        ensure!(length == message.len(), "{length} bytes came back of {}", message.len());
        if !note(begun) {
            break;
        }
        begun = Instant::now();
        out.send_data(message.clone(), false)?;
    }
    out.send_data(Bytes::new(), true)?;
    ensure!(body.data().await.is_none(), "bytes behind the last message");
    let trailers = body.trailers().await?.context("a stream without trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "a stream that failed: {trailers:?}");
    Ok(())
}

/// Passes data on from one stream to the other, as fast as the other takes it.
///
/// # Errors
/// Where either stream has ended.
pub(crate) async fn hand_on(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    mut data: Bytes,
) -> Result<(), h2::Error> {
    let length = data.len();
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        while to.capacity() == 0 {
            poll_fn(|cx| to.poll_capacity(cx)).await.ok_or(h2::Reason::CANCEL)??;
        }
        let piece = data.split_to(to.capacity().min(data.len()));
        to.send_data(piece, false)?;
    }
    from.flow_control().release_capacity(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_against_the_origin() {
        let origin = origin::start("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let mut load = Load::connect(origin.address).unwrap();
        for ask in [Ask::Get, Ask::Unary, Ask::Stream, Ask::Unary] {
            let once = load.run(ask, Duration::ZERO).unwrap();
            assert_eq!(once.latencies.len(), 32, "{ask:?}");
            let some = load.run(ask, Duration::from_millis(50)).unwrap();
            assert!(some.latencies.len() > 32, "{ask:?}: {}", some.latencies.len());
        }
        drop(origin);
        assert!(load.run(Ask::Unary, Duration::ZERO).is_err());
    }
}
