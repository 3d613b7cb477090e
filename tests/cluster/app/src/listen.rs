//! An HTTP server's sockets: HTTP/1.1 and HTTP/2 until SIGTERM, and then no more: what a plain program does.

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
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Serves each request, of which it is said who sent it. Open ones are answered before it ends.
pub(crate) async fn serve<A, F, B>(listen: SocketAddr, answer: A) -> Result<ExitCode>
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
        let server = auto::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        // A client that breaks off is no news.
        tokio::spawn(open.watch(connection));
    }
    drop(listener);
    open.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
