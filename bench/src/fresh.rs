//! Fresh connections: each is opened, carries one byte there and one back, and ends. Through proxies that is a handshake each, since an
//! opaque connection is never shared.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{load::Outcome, serve::local};

/// Longest wait for one connection.
const LIMIT: Duration = Duration::from_secs(10);

/// Opens connections for so long from the calling thread's network namespace, `at_once` at a time; latencies are from the begin of a
/// connection to its answer.
///
/// # Errors
/// Where one fails.
pub fn run(address: SocketAddr, at_once: usize, duration: Duration) -> anyhow::Result<Outcome> {
    local(async {
        let outcome = Rc::new(RefCell::new(Outcome::default()));
        let start = Instant::now();
        let clients: Vec<_> = (0..at_once)
            .map(|_| {
                let outcome = outcome.clone();
                tokio::task::spawn_local(async move {
                    loop {
                        let begun = Instant::now();
                        timeout(LIMIT, once(address)).await.context("a connection takes too long")??;
                        let now = Instant::now();
                        let mut outcome = outcome.borrow_mut();
                        outcome.latencies.add(now - begun);
                        outcome.elapsed = now - start;
                        if now - start >= duration {
                            return anyhow::Ok(());
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.await??;
        }
        Ok(outcome.take())
    })
}

async fn once(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"x").await?;
    let mut byte = [0; 1];
    ensure!(stream.read(&mut byte).await? == 1, "a connection ended without an answer");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Server;

    #[test]
    fn connections_are_counted() {
        let greeter = Server::greeter("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let outcome = run(greeter.address, 4, Duration::from_millis(100)).unwrap();
        assert!(outcome.latencies.len() >= 4, "{}", outcome.latencies.len());
        let address = greeter.address;
        drop(greeter);
        assert!(run(address, 1, Duration::ZERO).is_err());
    }
}
