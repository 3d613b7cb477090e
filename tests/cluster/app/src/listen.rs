//! An HTTP server's sockets: HTTP/1.1 and HTTP/2 until SIGTERM, and then no more: what a plain program does.
//! With TLS or without.

use std::{convert::Infallible, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Result;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

/// A connection, whatever it is made of.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// [`serve_by`] without TLS.
pub(crate) async fn serve<A, F, B>(listen: SocketAddr, answer: A) -> Result<ExitCode>
where
    A: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Failure>> + Send + 'static,
{
    serve_by(listen, None, answer).await
}

/// Serves each request, of which it is said who sent it. Open ones are answered before it ends.
pub(crate) async fn serve_by<A, F, B>(listen: SocketAddr, tls: Option<TlsAcceptor>, answer: A) -> Result<ExitCode>
where
    A: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Failure>> + Send + 'static,
{
    let listener = TcpListener::bind(listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let open = GracefulShutdown::new();
    println!("listening on {listen}");
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of file descriptors, most likely: connections must end first.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
            _ = terminate.recv() => break,
        };
        let (answer, peer) = (answer.clone(), stream.peer_addr().ok());
        let service = service_fn(move |request| answer(request, peer));
        let (tls, watcher) = (tls.clone(), open.watcher());
        tokio::spawn(async move {
            let stream: Box<dyn Stream> = match tls {
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => return,
                },
                None => Box::new(stream),
            };
            let server = auto::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
            // A client that breaks off is no news.
            let _ = watcher.watch(connection).await;
        });
    }
    drop(listener);
    open.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
