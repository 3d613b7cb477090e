//! A TCP server that speaks first, and a client that measures how long that takes.

use std::{
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

pub(crate) async fn run(listen: SocketAddr) -> Result<ExitCode> {
    each(listen, talk).await
}

/// Gives every connection a task of its own, until SIGTERM.
pub(crate) async fn each<F, T>(listen: SocketAddr, handle: impl Fn(TcpStream) -> F) -> Result<ExitCode>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let listener = TcpListener::bind(listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on {listen}");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(handle(stream));
                }
            }
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn talk(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(format!("{}\n", crate::pod()).as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    copy(&mut read, &mut write).await?;
    write.shutdown().await
}

#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    /// HOST:PORT
    to: String,
    /// Said after the server has spoken
    #[arg(long, default_value = "")]
    send: String,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Prints what the server said first, after how many milliseconds since the call began, and what it answered.
pub(crate) async fn call(arguments: &Call) -> Result<ExitCode> {
    let limit = Duration::from_secs(arguments.seconds);
    timeout(limit, hear(arguments)).await.with_context(|| format!("no end within {limit:?}"))??;
    Ok(ExitCode::SUCCESS)
}

async fn hear(arguments: &Call) -> Result<()> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&*arguments.to).await.context("connect")?;
    let mut buffer = vec![0; 4096];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let read = stream.read(&mut buffer).await.context("greeting")?;
    let ms = begun.elapsed().as_millis();
    let greeting = text(buffer.get(..read).unwrap_or_default());
    let mut answer = String::new();
    if !arguments.send.is_empty() {
        stream.write_all(arguments.send.as_bytes()).await?;
        let read = stream.read(&mut buffer).await.context("answer")?;
        answer = text(buffer.get(..read).unwrap_or_default());
    }
    println!("{}", serde_json::json!({"ms": ms, "greeting": greeting, "answer": answer}));
    Ok(())
}
