//! A TCP server that speaks first.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;
use tokio::{
    io::{AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

pub(crate) async fn run(listen: SocketAddr) -> Result<ExitCode> {
    let listener = TcpListener::bind(listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on {listen}");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(talk(stream));
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
