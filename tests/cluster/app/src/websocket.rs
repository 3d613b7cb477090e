//! A WebSocket server that answers with its pod's name and what it got. And its client.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::Uri;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{accept_async, client_async, tungstenite::Message};

/// Serves until SIGTERM.
pub(crate) async fn run(listen: SocketAddr) -> Result<ExitCode> {
    crate::tcp::each(listen, echo).await
}

async fn echo(stream: TcpStream) -> Result<()> {
    let mut socket = accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => socket.send(format!("{}: {text}", crate::pod()).into()).await?,
            message @ Message::Binary(_) => socket.send(message).await?,
            // Pings and the closing handshake are answered by the library.
            _ => {}
        }
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    /// ws://HOST[:PORT]/PATH
    url: Uri,
    /// How many messages, each of which waits for the answer to the one before
    #[arg(long, default_value_t = 1)]
    count: u32,
    #[arg(long, default_value = "hello")]
    text: String,
    /// Between messages
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// For everything, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Prints every answer as a line, and ends with success if the server ended as agreed.
pub(crate) async fn call(arguments: &Call) -> Result<ExitCode> {
    let limit = Duration::from_secs(arguments.seconds);
    timeout(limit, talk(arguments)).await.with_context(|| format!("no end within {limit:?}"))??;
    Ok(ExitCode::SUCCESS)
}

async fn talk(arguments: &Call) -> Result<()> {
    let (host, port) = crate::host_and_port(&arguments.url)?;
    let stream = TcpStream::connect((host, port)).await.context("connect")?;
    let (mut socket, response) = client_async(arguments.url.clone(), stream).await?;
    println!("{}", response.status());
    for _ in 0..arguments.count {
        socket.send(arguments.text.as_str().into()).await?;
        let answer = socket.next().await.context("the server ended")??;
        println!("{}", answer.to_text()?);
        tokio::time::sleep(Duration::from_millis(arguments.pause_ms)).await;
    }
    socket.close(None).await?;
    match socket.next().await.context("no answer to the end")?? {
        Message::Close(_) => Ok(()),
        other => bail!("{other:?} instead of the end"),
    }
}
