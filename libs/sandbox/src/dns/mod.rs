//! The cluster's DNS: names of Services, answered from a table that is replaced with every change.
//!
//! It is authoritative for the cluster domain and knows nothing else: a sandbox has no way out, so every other name does not
//! exist in it.

pub mod codec;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use crate::layout::CLUSTER_DOMAIN;

/// Most TCP clients at a time.
const MAX_TCP: usize = 64;
/// Longest silence of a TCP client.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Host names (lower case, without the final dot) and their addresses.
pub type Table = BTreeMap<String, Vec<IpAddr>>;

/// The zone, shared between the server and who changes it.
#[derive(Debug, Clone, Default)]
pub struct Zone(Arc<RwLock<Table>>);

/// Name of a Service.
pub fn service_name(namespace: &str, service: &str) -> String {
    format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

impl Zone {
    /// Replaces all names.
    pub fn replace(&self, table: Table) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    fn answer(&self, packet: &[u8], limit: usize) -> Option<Vec<u8>> {
        let query = codec::parse(packet)?;
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let suffix = format!(".{}", query.name);
        // A name between a known name and the domain exists without having addresses.
        let found = table.get(&query.name).map(Vec::as_slice).or_else(|| {
            let inner = query.name == CLUSTER_DOMAIN || table.keys().any(|name| name.ends_with(&suffix));
            inner.then_some([].as_slice())
        });
        Some(codec::answer(&query, found, limit))
    }

    /// Serves the zone on an address, over UDP and TCP, until the task is dropped.
    ///
    /// # Errors
    /// Where the address can not be bound.
    pub async fn serve(self, address: SocketAddr) -> io::Result<()> {
        let udp = UdpSocket::bind(address).await?;
        let tcp = TcpListener::bind(address).await?;
        let clients = Arc::new(Semaphore::new(MAX_TCP));
        let zone = self.clone();
        let streams = async move {
            loop {
                let Ok(permit) = clients.clone().acquire_owned().await else { return };
                let Ok((stream, _)) = tcp.accept().await else {
                    // Out of file descriptors, most likely: others must end first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let zone = zone.clone();
                tokio::spawn(async move {
                    let _ = zone.client(stream).await;
                    drop(permit);
                });
            }
        };
        let packets = async move {
            let mut buffer = [0; 4096];
            loop {
                // An error here is that of an earlier answer whose client has gone.
                let Ok((n, client)) = udp.recv_from(&mut buffer).await else { continue };
                if let Some(answer) = buffer.get(..n).and_then(|packet| self.answer(packet, codec::MAX_UDP)) {
                    let _ = udp.send_to(&answer, client).await;
                }
            }
        };
        tokio::join!(streams, packets);
        Ok(())
    }

    async fn client(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = timeout(TCP_IDLE, stream.read_u16()).await??;
            let mut packet = vec![0; usize::from(length)];
            timeout(TCP_IDLE, stream.read_exact(&mut packet)).await??;
            let Some(answer) = self.answer(&packet, usize::from(u16::MAX)) else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&answer).await?;
        }
    }
}
