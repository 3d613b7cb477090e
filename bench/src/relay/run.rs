//! What a relay does: bytes are copied, and on the port for HTTP/2 streams are, by the `h2` crate. Nothing is looked at, chosen, counted
//! or logged. What a proxy costs above this is its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
};

use anyhow::Context as _;
use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{Request, Response};
use nix::sys::socket::{getsockopt, sockopt::OriginalDst};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weir_mesh::ports;

use super::tls;
use crate::{
    candidate::{GRPC_PORT, HTTP_PORT, SERVICE_PORT},
    grpc::hand_on,
    serve::local,
};

/// Buffer of each direction.
const BUFFER: usize = 64 * 1024;

/// Which of the two a relay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Plaintext in, TLS out.
    Client,
    /// TLS in, plaintext out.
    Server,
}

enum Tls {
    Out(TlsConnector),
    In(TlsAcceptor),
}

struct Relay {
    tls: Tls,
    target: IpAddr,
    /// The one connection on which all streams of HTTP/2 go out.
    http2: Mutex<Option<client::SendRequest<Bytes>>>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Relays whatever the redirect brings to `target`, for ever; certificates are in `dir`.
///
/// # Errors
/// Where it can not begin.
pub fn run(side: Side, target: IpAddr, dir: &Path) -> anyhow::Result<()> {
    let (tls, port) = match side {
        Side::Client => (Tls::Out(tls::client(dir)?.into()), ports::OUTBOUND),
        Side::Server => (Tls::In(tls::server(dir)?.into()), ports::INBOUND),
    };
    let relay = Rc::new(Relay { tls, target, http2: Mutex::default() });
    local(async move {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let relay = relay.clone();
            tokio::task::spawn_local(async move {
                // The other side sees the end; a benchmark fails by what its load generator sees.
                let _ = relay.serve(stream).await;
            });
        }
    })
}

impl Relay {
    async fn serve(self: Rc<Self>, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let asked = u16::from_be(getsockopt(&stream, OriginalDst)?.sin_port);
        let port = if asked == SERVICE_PORT { HTTP_PORT } else { asked };
        let mut stream: Box<dyn Stream> = match &self.tls {
            Tls::Out(_) => Box::new(stream),
            Tls::In(acceptor) => Box::new(acceptor.accept(stream).await?),
        };
        if port == GRPC_PORT {
            return self.streams(stream, port).await;
        }
        let mut out = self.connect(port).await?;
        copy_bidirectional_with_sizes(&mut stream, &mut out, BUFFER, BUFFER).await?;
        Ok(())
    }

    async fn connect(&self, port: u16) -> anyhow::Result<Box<dyn Stream>> {
        let to = SocketAddr::from((self.target, port));
        let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            Tls::Out(connector) => Box::new(connector.connect(ServerName::from(self.target), stream).await?),
            Tls::In(_) => Box::new(stream),
        })
    }

    async fn streams(self: Rc<Self>, stream: Box<dyn Stream>, port: u16) -> anyhow::Result<()> {
        let mut connection = server::handshake(stream).await?;
        while let Some(accepted) = connection.accept().await {
            let (request, respond) = accepted?;
            let relay = self.clone();
            tokio::task::spawn_local(async move {
                let _ = relay.exchange(request, respond, port).await;
            });
        }
        Ok(())
    }

    async fn exchange(
        &self,
        request: Request<RecvStream>,
        mut respond: server::SendResponse<Bytes>,
        port: u16,
    ) -> anyhow::Result<()> {
        let (head, body) = request.into_parts();
        let mut upstream = self.upstream(port).await?.ready().await?;
        let (response, out) = upstream.send_request(Request::from_parts(head, ()), body.is_end_stream())?;
        let there = async {
            if !body.is_end_stream() {
                let _ = pump(body, out).await; // the answer says why
            }
        };
        let back = async {
            let (head, body) = response.await?.into_parts();
            let end = body.is_end_stream();
            let out = respond.send_response(Response::from_parts(head, ()), end)?;
            if !end {
                pump(body, out).await?;
            }
            anyhow::Ok(())
        };
        let ((), back) = tokio::join!(there, back);
        back
    }

    async fn upstream(&self, port: u16) -> anyhow::Result<client::SendRequest<Bytes>> {
        let mut http2 = self.http2.lock().await;
        if let Some(open) = &*http2 {
            return Ok(open.clone());
        }
        let (open, connection) = client::handshake(self.connect(port).await?).await?;
        tokio::task::spawn_local(connection);
        Ok(http2.insert(open).clone())
    }
}

async fn pump(mut from: RecvStream, mut to: SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(data) = from.data().await {
        hand_on(&mut from, &mut to, data?).await?;
    }
    match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
}
