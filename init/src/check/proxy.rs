//! The check that the proxy makes of its own pod, as the user that it is, without any privilege.
//!
//! No one listens on the two check ports, so an answer there can only have come by the redirect: port `CHECK_INBOUND` by the
//! rule for calls to the own pod, port `CHECK_OUTBOUND` by a rule of its own before it.

use std::{
    fs,
    io::{self, ErrorKind, Read},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use weir_mesh::ports;

use super::{CheckError, Direction, INBOUND_BANNER, OUTBOUND_BANNER};

/// One attempt takes no longer: on an address that is not usable yet a connection may just hang.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Time between attempts: short against the 1-2 s of duplicate address detection.
const PAUSE: Duration = Duration::from_millis(20);
/// `IFA_F_TENTATIVE`
const TENTATIVE: u32 = 0x40;
/// `IFA_F_DADFAILED`
const DUPLICATE: u32 = 0x08;

/// Proves that the redirect works in both directions for each of the pod's own addresses. To be called in the pod, as the
/// proxy's user, while the proxy's listeners answer with [`INBOUND_BANNER`] and [`OUTBOUND_BANNER`].
///
/// Waits for what passes by itself (duplicate address detection, a listener that does not accept yet) for at most `timeout`;
/// missing rules are an error at once.
///
/// # Errors
/// The first connection that did not go where it should.
pub fn check_as_proxy(own: &[IpAddr], timeout: Duration) -> Result<(), CheckError> {
    let deadline = Instant::now().checked_add(timeout);
    for address in own {
        for direction in [Direction::Inbound, Direction::Outbound] {
            check(*address, direction, deadline)?;
        }
    }
    Ok(())
}

fn check(address: IpAddr, direction: Direction, deadline: Option<Instant>) -> Result<(), CheckError> {
    let (port, banner) = match direction {
        Direction::Inbound => (ports::CHECK_INBOUND, INBOUND_BANNER),
        _ => (ports::CHECK_OUTBOUND, OUTBOUND_BANNER),
    };
    loop {
        let error = match answer(SocketAddr::new(address, port), banner.len()) {
            Ok(said) if said == banner.as_bytes() => return Ok(()),
            Ok(_) => CheckError::WrongAnswer { direction, address },
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                CheckError::NotRedirected { direction, address }
            }
            Err(source) => CheckError::NoAnswer { direction, address, source },
        };
        let error = match detection(address) {
            Some(Detection::Duplicate) => return Err(CheckError::Duplicate(address)),
            Some(Detection::Running) => CheckError::Tentative(address),
            None if matches!(error, CheckError::NotRedirected { .. }) => return Err(error),
            None => error,
        };
        // Without a deadline (a time-out beyond what the clock can say) it waits on.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(error);
        }
        thread::sleep(PAUSE);
    }
}

/// What the listener says, up to `len` bytes.
fn answer(to: SocketAddr, len: usize) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&to, ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    let mut said = Vec::with_capacity(len);
    let limit = u64::try_from(len).unwrap_or(u64::MAX);
    stream.take(limit).read_to_end(&mut said)?;
    Ok(said)
}

enum Detection {
    Running,
    Duplicate,
}

/// State of duplicate address detection; `None` where it is over, or the kernel does not say.
fn detection(address: IpAddr) -> Option<Detection> {
    let IpAddr::V6(address) = address else { return None };
    let flags = flags(&fs::read_to_string("/proc/thread-self/net/if_inet6").ok()?, address)?;
    if flags & DUPLICATE != 0 {
        Some(Detection::Duplicate)
    } else {
        (flags & TENTATIVE != 0).then_some(Detection::Running)
    }
}

/// Flags of an address in the text of `/proc/net/if_inet6`: address, index, prefix length, scope, flags, name.
fn flags(text: &str, address: Ipv6Addr) -> Option<u32> {
    let wanted: String = address.octets().iter().map(|b| format!("{b:02x}")).collect();
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(&wanted))?;
    u32::from_str_radix(line.split_whitespace().nth(4)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_an_address() {
        let text = "00000000000000000000000000000001 01 80 10 80       lo\n\
                    fd000000000000000000000000000002 02 40 00 c0     eth0\n";
        assert_eq!(flags(text, Ipv6Addr::LOCALHOST), Some(0x80));
        assert_eq!(flags(text, "fd00::2".parse().unwrap()), Some(0xc0));
        assert_eq!(flags(text, "fd00::3".parse().unwrap()), None);
        assert_eq!(flags("fd000000000000000000000000000002", "fd00::2".parse().unwrap()), None);
    }
}
