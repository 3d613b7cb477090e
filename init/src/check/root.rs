//! The check that an operator makes, as root, from outside of the proxy: for every family a connection into the pod, one out
//! of it, and a query to each name server.
//!
//! A pair of interfaces to a namespace made for the check stands for the world outside: the pod's own interfaces carry none
//! of it, and all of it is gone with the call. Where the proxy's listeners are not there, the check binds them itself and
//! compares the original destination; where they are, a connection to a port that no one listens on is proof when it is
//! accepted.

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process, thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{errno::Errno, net::if_::if_nametoindex};
use socket2::{Domain, SockRef, Socket, Type};
use weir_mesh::ports;

use super::{CheckError, Direction};
use crate::{
    decide::{Packet, decide},
    error::Error,
    families,
    link::{self, Address, Scope},
    netns::{in_open_netns, new_netns},
    rules::{Action, Family, Match, Protocol, Side, Table},
    show_in_current_netns,
};

/// Everything is on this machine: an answer takes less than a millisecond.
const LIMIT: Duration = Duration::from_secs(2);
/// Time between looks at a listener.
const PAUSE: Duration = Duration::from_millis(1);
/// What is sent through a name server's port; no query, so that no DNS server would answer with the same.
const PROBE: &[u8; 16] = b"weir check probe";
const DNS_PORT: u16 = 53;

/// Addresses of the pair of interfaces: the pod's end, the other end, prefix length. The IPv4 ones are of the range kept for
/// tests of network devices (RFC 2544), the IPv6 ones of a unique local prefix.
fn ends(family: Family) -> (IpAddr, IpAddr, u8) {
    match family {
        Family::V4 => (Ipv4Addr::new(198, 19, 255, 253).into(), Ipv4Addr::new(198, 19, 255, 254).into(), 30),
        Family::V6 => {
            let end = |last| IpAddr::from(Ipv6Addr::new(0xfd77, 0x6569, 0x7221, 0, 0, 0, 0, last));
            (end(1), end(2), 126)
        }
    }
}

/// What was found out about one direction of one family.
#[derive(Debug)]
pub struct Line {
    /// Family.
    pub family: Family,
    /// Direction.
    pub direction: Direction,
    /// Finding.
    pub outcome: Outcome,
}

/// A finding.
#[derive(Debug)]
pub enum Outcome {
    /// A real connection went where it should.
    Proven,
    /// No connection could prove it; why.
    NotTried(String),
    /// A real connection went elsewhere.
    Failed(CheckError),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match &self.outcome {
            Outcome::Proven => write!(f, "{family} {}: works", self.direction),
            Outcome::NotTried(reason) => write!(f, "{family} {}: not tried: {reason}", self.direction),
            Outcome::Failed(error) => write!(f, "{error}"),
        }
    }
}

/// Proves the redirect of the calling thread's network namespace by real connections. Needs `CAP_NET_ADMIN` and
/// `CAP_SYS_ADMIN`. Its own connections are made as the calling user, who must not be the proxy's.
///
/// # Errors
/// Where the check itself is not possible; what it found is in the lines.
pub fn check_in_current_netns() -> Result<Vec<Line>, Error> {
    let in_force = show_in_current_netns()?;
    let outside = Outside::connect()?;
    let mut lines = Vec::new();
    for family in families().iter().copied() {
        let nothing = Table { family, chains: Vec::new() };
        let table = in_force.table(family).unwrap_or(&nothing);
        if !outside.address(family)? {
            let reason = "IPv6 is switched off in this namespace (sysctl disable_ipv6)";
            for direction in [Direction::Inbound, Direction::Outbound] {
                lines.push(Line { family, direction, outcome: Outcome::NotTried(reason.into()) });
            }
            continue;
        }
        let mut add = |direction, outcome| lines.push(Line { family, direction, outcome });
        add(Direction::Inbound, inbound(table, &outside)?);
        add(Direction::Outbound, outbound(table, &outside));
        for server in name_servers(table) {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                add(Direction::Dns(protocol), query(server, protocol));
            }
        }
    }
    Ok(lines)
}

fn inbound(table: &Table, outside: &Outside) -> Result<Outcome, Error> {
    let (pod, other, _) = ends(table.family);
    let packet = Packet {
        user: None,
        interface: &outside.name,
        protocol: Protocol::Tcp,
        source: other,
        destination: pod,
        port: ports::CHECK_INBOUND,
    };
    if !table.chains.is_empty() && decide(table, "prerouting", &packet) != &Action::Redirect(ports::INBOUND) {
        return Ok(Outcome::NotTried(format!("the settings exclude port {}", ports::CHECK_INBOUND)));
    }
    let Ok(listener) = Listener::bind(any(table.family), ports::INBOUND) else {
        return Ok(Outcome::NotTried(format!("port {} can be neither used nor bound", ports::INBOUND)));
    };
    let target = SocketAddr::new(pod, ports::CHECK_INBOUND);
    let connected = in_open_netns(&outside.namespace, || Ok(TcpStream::connect_timeout(&target, LIMIT)))?;
    Ok(outcome(Direction::Inbound, target, connected, &listener))
}

fn outbound(table: &Table, outside: &Outside) -> Outcome {
    let (pod, other, _) = ends(table.family);
    let target = SocketAddr::new(other, ports::CHECK_OUTBOUND);
    let packet = Packet {
        user: None,
        interface: &outside.name,
        protocol: Protocol::Tcp,
        source: pod,
        destination: other,
        port: target.port(),
    };
    if !table.chains.is_empty() && decide(table, "output", &packet) != &Action::Redirect(ports::OUTBOUND) {
        return Outcome::NotTried(format!("the settings do not capture {other}, where the check would connect to"));
    }
    match Listener::bind(any(table.family), ports::OUTBOUND) {
        Ok(listener) => outcome(Direction::Outbound, target, TcpStream::connect_timeout(&target, LIMIT), &listener),
        Err(error) => Outcome::NotTried(format!("port {} can not be bound: {error}", ports::OUTBOUND)),
    }
}

/// Name servers whose queries the table redirects.
fn name_servers(table: &Table) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
        if rule.action == Action::Redirect(ports::DNS) {
            for one in &rule.matches {
                if let Match::Address(Side::Destination, net) = one
                    && !servers.contains(&net.addr())
                {
                    servers.push(net.addr());
                }
            }
        }
    }
    servers
}

fn query(server: IpAddr, protocol: Protocol) -> Outcome {
    let target = SocketAddr::new(server, DNS_PORT);
    let taken = || Outcome::NotTried(format!("the proxy serves port {}; its rules are there", ports::DNS));
    match protocol {
        Protocol::Udp => match UdpSocket::bind((loopback(server), ports::DNS)) {
            Err(_) => taken(),
            Ok(socket) => match echo(&socket, target) {
                Ok(true) => Outcome::Proven,
                Ok(false) => Outcome::Failed(CheckError::QueryEscaped { server }),
                Err(error) => Outcome::NotTried(format!("{server} can not be asked from here: {error}")),
            },
        },
        Protocol::Tcp => match Listener::bind(loopback(server), ports::DNS) {
            Ok(Listener::Taken) | Err(_) => taken(),
            Ok(listener) => match TcpStream::connect_timeout(&target, LIMIT) {
                Err(error) if unreachable(&error) => {
                    Outcome::NotTried(format!("{server} can not be asked from here: {error}"))
                }
                connected => outcome(Direction::Dns(protocol), target, connected, &listener),
            },
        },
    }
}

/// Sends the probe to `target`, plays the proxy on `proxy`, and says whether the answer came back.
fn echo(proxy: &UdpSocket, target: SocketAddr) -> io::Result<bool> {
    let client = UdpSocket::bind((any_of(target.ip()), 0))?;
    client.connect(target)?;
    client.send(PROBE)?;
    proxy.set_read_timeout(Some(LIMIT))?;
    let deadline = Instant::now().checked_add(LIMIT);
    let mut buffer = [0; 512];
    // Queries of the pod's applications may come too while no proxy is there: they are not ours to answer.
    while deadline.is_some_and(|deadline| Instant::now() < deadline) {
        match proxy.recv_from(&mut buffer) {
            Ok((len, from)) if buffer.get(..len) == Some(PROBE) => {
                proxy.send_to(PROBE, from)?;
                client.set_read_timeout(Some(LIMIT))?;
                return Ok(client.recv(&mut buffer).is_ok_and(|len| buffer.get(..len) == Some(PROBE)));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable)
}

/// The finding about a connection that was tried.
fn outcome(direction: Direction, target: SocketAddr, connected: io::Result<TcpStream>, listener: &Listener) -> Outcome {
    let address = target.ip();
    match connected {
        Ok(mut stream) => match listener.is_origin(&mut stream, target) {
            Ok(true) => Outcome::Proven,
            Ok(false) => Outcome::Failed(CheckError::WrongAnswer { direction, address }),
            Err(source) => Outcome::Failed(CheckError::NoAnswer { direction, address, source }),
        },
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Outcome::Failed(CheckError::NotRedirected { direction, address })
        }
        Err(source) => Outcome::Failed(CheckError::NoAnswer { direction, address, source }),
    }
}

/// The listener that the redirect sends to.
enum Listener {
    /// Ours, for the time of the check.
    Own(TcpListener),
    /// The proxy's.
    Taken,
}

impl Listener {
    fn bind(address: IpAddr, port: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(SocketAddr::new(address, port)), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        let bound = socket.bind(&SocketAddr::new(address, port).into()).and_then(|()| socket.listen(64));
        match bound {
            Ok(()) => {
                socket.set_nonblocking(true)?;
                Ok(Self::Own(socket.into()))
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(Self::Taken),
            Err(error) => Err(error),
        }
    }

    /// Did the connection arrive here, and was it meant for `target`? Of the proxy's own listener that it accepts is known.
    fn is_origin(&self, stream: &mut TcpStream, target: SocketAddr) -> io::Result<bool> {
        let Self::Own(listener) = self else { return Ok(true) };
        let client = stream.local_addr()?;
        let deadline = Instant::now().checked_add(LIMIT);
        while deadline.is_some_and(|deadline| Instant::now() < deadline) {
            match listener.accept() {
                Ok((accepted, peer)) if peer == client => return through(accepted, stream, target),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Compares the original destination and sends something both ways: back is translated too.
fn through(accepted: TcpStream, client: &mut TcpStream, target: SocketAddr) -> io::Result<bool> {
    let socket = SockRef::from(&accepted);
    let original = if target.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    if original.as_socket().map(|original| (original.ip(), original.port())) != Some((target.ip(), target.port())) {
        return Ok(false);
    }
    client.set_read_timeout(Some(LIMIT))?;
    (&accepted).write_all(PROBE)?;
    let mut answer = [0; PROBE.len()];
    client.read_exact(&mut answer)?;
    Ok(&answer == PROBE)
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn any_of(address: IpAddr) -> IpAddr {
    any(if address.is_ipv4() { Family::V4 } else { Family::V6 })
}

fn loopback(server: IpAddr) -> IpAddr {
    if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// The world outside of the pod: a namespace and a pair of interfaces to it, until it is dropped.
struct Outside {
    namespace: File,
    name: String,
}

impl Outside {
    fn connect() -> Result<Self, Error> {
        let namespace = new_netns()?;
        let unique = SystemTime::UNIX_EPOCH.elapsed().map(|now| now.subsec_nanos()).unwrap_or_default();
        let name = format!("weir-{:08x}", unique ^ process::id().rotate_left(16));
        link::add_veth(&name, namespace.as_fd())?;
        let outside = Self { namespace, name };
        outside.both(link::up)?;
        Ok(outside)
    }

    /// Gives both ends their addresses; false where the namespace has the family switched off.
    fn address(&self, family: Family) -> Result<bool, Error> {
        let (pod, other, prefix) = ends(family);
        let add =
            |index, ip| link::add_address(Address { index, ip, prefix, scope: Scope::Global, deprecated: false }, &[]);
        let added = add(self.index()?, pod).and_then(|()| in_open_netns(&self.namespace, || add(self.index()?, other)));
        match added {
            Ok(()) => Ok(true),
            Err(Error::Refused { errno: Errno::EACCES, .. }) if family == Family::V6 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn both(&self, work: impl Fn(u32) -> Result<(), Error> + Sync) -> Result<(), Error> {
        work(self.index()?)?;
        in_open_netns(&self.namespace, || work(self.index()?))
    }

    /// Index of the pair's end in the calling thread's namespace.
    fn index(&self) -> Result<u32, Error> {
        if_nametoindex(self.name.as_str()).map_err(|errno| Error::Netlink(errno.into()))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The kernel does the same a little later, when the namespace's last file is closed.
        let _ = link::delete(&self.name);
    }
}
