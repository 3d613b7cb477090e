//! Packets that belong to no connection that conntrack knows.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod support;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use support::{APP, APP_PORT, Addresses, Lab, PROXY, Servers, by::flush, can_run, connect, families, listen};
use weir_init::Backend;
use weir_mesh::CaptureSettings;

/// A TCP header without data: an acknowledgement of what the other side sent last, but from far outside of any window, as a
/// packet that was long on its way. A reset that answers it is within the window and so believed.
fn stray(source: SocketAddr, destination: SocketAddr, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header.extend(sequence.wrapping_add(0x4000_0000).to_be_bytes());
    header.extend(acknowledged.to_be_bytes());
    header.extend([5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let mut sum: u32 = 6 + 20; // pseudo header: protocol and length
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    for bytes in [&octets(source.ip()), &octets(destination.ip()), &header] {
        sum += bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    header[16..18].copy_from_slice(&(!folded).to_be_bytes());
    header
}

/// Has the connection say something, listens in to learn its sequence numbers, and sends the stray packet.
fn send_stray(lab: &Lab, client: &mut TcpStream) {
    let (source, destination) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    lab.node.run(0, 0, || {
        let raw = Socket::new(Domain::for_address(source), Type::RAW, Some(Protocol::TCP)).unwrap();
        raw.bind(&SocketAddr::new(source.ip(), 0).into()).unwrap();
        raw.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        echoes(client).unwrap();
        let mut numbers = None;
        let mut buffer = [0; 2048];
        while let Ok(len) = (&raw).read(&mut buffer) {
            // An IPv4 header comes with the packet, an IPv6 header does not.
            let packet = &buffer[if source.is_ipv4() { 20 } else { 0 }..len];
            let ours = packet[2..4] == source.port().to_be_bytes();
            let data = u32::try_from(packet.len() - usize::from(packet[12] >> 4) * 4).unwrap();
            if ours {
                let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
                numbers = Some((number(8), number(4).wrapping_add(data)));
            }
        }
        let (sequence, acknowledged) = numbers.expect("nothing was heard");
        let packet = stray(source, destination, sequence, acknowledged);
        raw.send_to(&packet, &SocketAddr::new(destination.ip(), 0).into()).unwrap();
    });
}

fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Without translation the stray packet meets the application's port, where no one knows the connection: the answer is a
/// reset, which kills a connection that is well.
fn a_stray_packet_does_not_kill_a_redirected_connection(by: Backend) {
    if !can_run() {
        return;
    }
    let lab = Lab::by(by, &CaptureSettings::default());
    for Addresses { pod, any, .. } in families() {
        let mut servers = Servers::default();
        let inbound = lab.pod.run(PROXY, PROXY, || listen(SocketAddr::new(any, 15006)));
        servers.accept(inbound, |mut stream, _| while echo(&mut stream).is_ok() {});
        let target = SocketAddr::new(pod, APP_PORT);
        let open = || lab.node.run(APP, APP, || connect(None, target)).unwrap();

        let mut client = open();
        send_stray(&lab, &mut client);
        assert!(!is_killed(client), "{pod}: the connection was reset");

        // The same without the protection.
        for chain in ["invalid_in", "invalid_out"] {
            flush(&lab.pod, by, pod.is_ipv4(), chain);
        }
        let mut client = open();
        send_stray(&lab, &mut client);
        assert!(is_killed(client), "{pod}: the protection protects from nothing");
    }
}

/// A reset comes within a millisecond; a connection that still echoes after a while is well.
fn is_killed(mut client: TcpStream) -> bool {
    (0..20).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        echoes(&mut client).is_err()
    })
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

with_each_backend!(a_stray_packet_does_not_kill_a_redirected_connection,);
