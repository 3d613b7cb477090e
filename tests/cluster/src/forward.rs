//! The way from the machine to the API server: a port on the machine's loopback, whose connections go on inside the cluster's network.
//!
//! A socket belongs to the namespace it was made in, whoever uses it: the supervisor listens in the machine's and connects from the
//! control plane's. So a client needs no privileges and no knowledge of namespaces, and two clusters have different ports.

use std::{
    net::{SocketAddr, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
};

use crate::place::Place;

/// A stopped server refuses at once; this is for one that hangs.
const CONNECT: Duration = Duration::from_secs(5);

/// Starts to forward, and says at which port.
pub(crate) async fn start(inside: Arc<Place>, to: SocketAddr) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        loop {
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let inside = inside.clone();
            // A connection that fails is closed, which is what the client must know.
            tokio::spawn(async move { forward(client, inside, to).await });
        }
    });
    Ok(port)
}

async fn forward(mut client: TcpStream, inside: Arc<Place>, to: SocketAddr) -> Result<()> {
    let connect = move || inside.run(|| Ok(StdStream::connect_timeout(&to, CONNECT)?));
    let server = spawn_blocking(connect).await??;
    server.set_nonblocking(true)?;
    let mut server = TcpStream::from_std(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
