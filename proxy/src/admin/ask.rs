//! One question to the proxy of this pod. `weir-proxy wait` asks whether it is ready, `weir-proxy admin` for a page of its admin port:
//! that port is open to callers of the pod only, and the image has no other program to ask with.
//!
//! Standard library only, as the kubelet's hook is on the path of every pod start.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use weir_mesh::ports;

/// Time for a page.
const PAGE_LIMIT: Duration = Duration::from_secs(10);
/// Longest page that is read, in bytes: what a proxy with thousands of destinations says of them.
const MAX_PAGE: u64 = 256 * 1024 * 1024;

/// What was answered.
#[derive(Debug)]
pub struct Page {
    /// Status.
    pub status: u16,
    /// Everything after the head.
    pub body: Vec<u8>,
}

/// Asks for a page of the admin port, such as `/config_dump`.
///
/// # Errors
/// Why there is none, in one line.
pub fn page(path: &str) -> Result<Vec<u8>, String> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{path:?} is no page: say one such as /config_dump or /help"));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::ADMIN));
    let page = get(address, path, PAGE_LIMIT, MAX_PAGE)?;
    // A proxy that is not ready says why with 503.
    if page.status == 200 || path == "/ready" {
        return Ok(page.body);
    }
    let body = String::from_utf8_lossy(&page.body);
    Err(format!("{path} was answered with {}: {}", page.status, body.lines().next().unwrap_or_default()))
}

/// Asks by HTTP/1.0, so that the answer comes in one piece and its end is the connection's.
pub(super) fn get(address: SocketAddr, path: &str, limit: Duration, most: u64) -> Result<Page, String> {
    let until = Instant::now() + limit;
    let silent = |error: std::io::Error| format!("it does not answer on {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(silent)?;
    stream.set_write_timeout(Some(limit)).map_err(silent)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(silent)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(most);
    let mut piece = [0; 4096];
    loop {
        // A time-out of a socket is one for each read: the rest is counted here.
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("it does not answer on {address} in time"));
        }
        limited.get_ref().set_read_timeout(Some(left)).map_err(silent)?;
        match limited.read(&mut piece).map_err(silent)? {
            0 => break,
            n => answer.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
    parse(answer).ok_or_else(|| format!("it answers on {address} with something else than HTTP"))
}

fn parse(mut answer: Vec<u8>) -> Option<Page> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = answer.get(..end)?;
    let status = std::str::from_utf8(head).ok()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    let status = status.trim_end().parse().ok()?;
    answer.drain(..end + 4);
    Some(Page { status, body: answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let parsed = |text: &str| parse(text.into()).map(|page| (page.status, String::from_utf8(page.body).unwrap()));
        assert_eq!(parsed("HTTP/1.0 200 OK\r\na: b\r\n\r\nbody\r\n\r\n"), Some((200, "body\r\n\r\n".into())));
        assert_eq!(parsed("HTTP/1.1 503 No\r\n\r\n"), Some((503, String::new())));
        for none in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 x\r\n\r\n", "HTTP/1.1\r\n\r\n"] {
            assert_eq!(parsed(none), None, "{none:?}");
        }
    }

    #[test]
    fn only_paths_are_asked_for() {
        for path in ["", "config_dump", "/a b", "/a\r\nb: c"] {
            assert!(page(path).unwrap_err().contains("is no page"), "{path:?}");
        }
    }
}
