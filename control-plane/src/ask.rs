//! `weir-control admin`: a page of the admin server of this pod. That server is on loopback unless told otherwise, and the image has no
//! other program to ask with; `weir describe` runs it by `kubectl exec`.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::settings::{ADMIN, ADMIN_VARIABLE};

/// Time for a page.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// Prints a page of the admin server of the control plane in this pod.
#[derive(Debug, Clone, Parser)]
#[command(name = "weir-control admin", version)]
pub struct Ask {
    /// The page, such as /debug/problems.
    path: String,
    /// Where that server listens.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADMIN, env = ADMIN_VARIABLE)]
    admin: SocketAddr,
}

/// Asks, and prints what is answered with 200.
///
/// # Errors
/// Anything else, with the first line of the answer.
pub async fn ask(question: Ask) -> anyhow::Result<()> {
    let Ask { path, admin } = question;
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{path:?} is no page: say one such as /debug/problems");
    }
    let address = reachable(admin);
    let answer = timeout(LIMIT, get(address, &path)).await.context("no answer in time").and_then(|answer| answer);
    let answer = answer.with_context(|| format!("the admin server on {address}"))?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the answer is no HTTP")?;
    let (head, body) = answer.split_at(end + 4);
    let status = String::from_utf8_lossy(head).split(' ').nth(1).unwrap_or_default().to_owned();
    if status != "200" {
        let text = String::from_utf8_lossy(body);
        bail!("{status}: {}", text.lines().next().unwrap_or_default());
    }
    std::io::stdout().write_all(body).context("standard output")
}

/// By HTTP/1.0, so that the answer comes in one piece and its end is the connection's.
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A server on all addresses is asked by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_by_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("127.0.0.1:2", "127.0.0.1:2"),
            ("198.18.0.1:3", "198.18.0.1:3"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()), asked.parse().unwrap(), "{listens}");
        }
    }
}
