//! Servers of the benchmarks that are written with tokio: a listener, a thread and an end.

use std::{
    net::{SocketAddr, TcpListener},
    thread::JoinHandle,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::LocalSet,
};

use crate::lab::Netns;

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address`, in a network namespace where one is given, and hands each connection to `serve`.
    ///
    /// # Errors
    /// Where the address can not be had.
    pub fn start<F: Future<Output = ()> + 'static>(
        address: SocketAddr,
        netns: Option<&Netns>,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> anyhow::Result<Self> {
        let bind = || TcpListener::bind(address).with_context(|| format!("listening on {address}"));
        let listener = match netns {
            Some(netns) => netns.run(bind)?,
            None => bind()?,
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            let result = local(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        stream.set_nodelay(true).ok();
                        tokio::task::spawn_local(serve(stream));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
                Ok(())
            });
            if let Err(error) = result {
                eprintln!("a server of the benchmark fails: {error:#}");
            }
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Answers the first byte of each connection with a byte, and leaves it to the client to end.
    ///
    /// # Errors
    /// Where the address can not be had.
    pub fn greeter(address: SocketAddr, netns: Option<&Netns>) -> anyhow::Result<Self> {
        Self::start(address, netns, |mut stream| async move {
            let mut byte = [0; 1];
            while matches!(stream.read(&mut byte).await, Ok(1)) {
                if stream.write_all(&byte).await.is_err() {
                    return;
                }
            }
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `work` and what it spawns on the calling thread.
///
/// # Errors
/// Those of `work`.
pub fn local<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}
