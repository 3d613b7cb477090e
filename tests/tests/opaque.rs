//! Streams that nobody looks into: how they are recognised, and that every byte arrives.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use sha2::{Digest, Sha256};
use weir_sandbox::tap::Verdict;
use weir_tests::{App, Pod, PodSpec, Process, World, at, certs, http::Client, is_root, until};

/// Ports of the server: one for each way to say, or not to say, what it is.
const PORTS: [(&str, u16, u16); 5] =
    [("tcp", 70, 7000), ("", 71, 7001), ("", 72, 7002), ("http", 73, 7003), ("", 74, 7004)];

struct Pair {
    client: Pod,
    server: Pod,
    stranger: Pod,
    service: [SocketAddr; 5],
    world: World,
}

impl Pair {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let mut spec = PodSpec::new("server").annotation("weir.dev/opaque-ports", "7001,7003");
        for (name, _, target) in PORTS {
            spec = spec.port(name, target);
        }
        let server = world.pod_unready(spec);
        // Two ports without a name are no valid Service: one Service for each.
        let service = [0_u8, 1, 2, 3, 4].map(|n| {
            let port = PORTS[usize::from(n)];
            at(world.service(&format!("server-{n}"), 10 + n, &json!({"app": "server"}), &[port]), port.1)
        });
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        server.wait_ready();
        Self { client, server, stranger, service, world }
    }

    fn detected(&self, pod: &Pod, protocol: &str, reason: &str) -> f64 {
        pod.metric("weir_detection_total", &[("protocol", protocol), ("reason", reason)])
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_where_declared_and_soon_where_not() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("first");
    let greet = |mut stream: TcpStream| {
        let _ = stream.write_all(b"220 ready\r\n");
        let mut line = [0; 6];
        if stream.read_exact(&mut line).is_ok() {
            let _ = stream.write_all(&line);
        }
    };
    let _apps = [App::raw(&pair.server.netns, 7000, greet), App::raw(&pair.server.netns, 7002, greet)];
    let talk = |from: &Pod, to: SocketAddr| {
        let start = Instant::now();
        let mut connection = from.connect(to);
        assert_eq!(connection.exactly(11).unwrap(), b"220 ready\r\n");
        let heard = start.elapsed();
        connection.send(b"HELO\r\n").unwrap();
        assert_eq!(connection.exactly(6).unwrap(), b"HELO\r\n");
        heard
    };
    // The fastest of some: what waits on purpose does so each time, a busy machine only now and then.
    let quickest = |from: &Pod, to: SocketAddr| (0..12).map(|_| talk(from, to)).min().unwrap();
    let tap = pair.world.tap(&pair.server);
    talk(&pair.client, pair.service[0]);
    assert!(quickest(&pair.client, pair.service[0]) < Duration::from_millis(90), "a declared port was waited for");
    let first = talk(&pair.client, pair.service[2]);
    assert!(first >= Duration::from_millis(95), "{first:?}");
    assert!(pair.detected(&pair.client, "opaque", "silence") > 0.9);
    let second = quickest(&pair.client, pair.service[2]);
    assert!(second < Duration::from_millis(90), "silence was not remembered: {second:?}");
    assert!(pair.detected(&pair.client, "opaque", "remembered") > 0.9);
    for flow in World::between_pods(tap) {
        assert_eq!(flow.verdict(), Verdict::Tls, "{flow:?}");
    }
    // In plaintext from outside, undeclared: the application is called at once and speaks first.
    assert!(quickest(&pair.stranger, at(pair.server.ip, 7002)) < Duration::from_millis(90));
    assert!(pair.detected(&pair.server, "opaque", "server_first") > 0.9);
    let labels: &[(&str, &str)] = &[
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
        ("connection_security_policy", "mutual_tls"),
    ];
    until("the streams are counted", || {
        (pair.server.metric("istio_tcp_connections_closed_total", labels) >= 4.0).then_some(())
    });
}

#[test]
fn nobody_looks_into_ports_that_are_said_to_be_opaque() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("said");
    let names = [7000, 7001, 7002, 7003];
    let apps = names.map(|port| App::echo(&pair.server.netns, port, "server"));
    // Only a proxy that reads HTTP takes this header away.
    let request = "GET / HTTP/1.1\r\nhost: x\r\nkeep-alive: seen\r\n\r\n";
    for (n, opaque) in [(0, true), (1, true), (2, false), (3, true)] {
        for (from, to) in [
            (&pair.client, pair.service[n]),
            (&pair.client, at(pair.server.ip, names[n])),
            (&pair.stranger, at(pair.server.ip, names[n])),
        ] {
            let response = from.connect(to).ask(request).unwrap();
            assert_eq!(response.status, 200, "{to} from {}", from.name);
            // A pod's own port number is all that a stranger's way shows: the Service declares it.
            let head = apps[n].last().unwrap().head;
            assert_eq!(head.contains("keep-alive"), opaque, "{to} from {}: {head}", from.name);
        }
    }
    assert!(pair.detected(&pair.client, "http", "first_bytes") > 0.9);
    assert!(pair.detected(&pair.client, "opaque", "declared") > 0.9);
}

#[test]
fn the_applications_own_tls_passes_through() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("own-tls");
    let _app = App::raw(&pair.server.netns, 7002, |stream| {
        if let Ok(mut tls) = certs::accept(stream) {
            let mut text = [0; 5];
            while tls.read_exact(&mut text).is_ok() && tls.write_all(&text).is_ok() {}
        }
    });
    let tap = pair.world.tap(&pair.server);
    for (from, to) in [
        (&pair.client, pair.service[2]),
        (&pair.client, at(pair.server.ip, 7002)),
        (&pair.stranger, at(pair.server.ip, 7002)),
    ] {
        for alpn in [&["http/1.1", "h2"][..], &[]] {
            let mut tls = certs::call(from.netns.connect(to).unwrap(), None, alpn).unwrap();
            for _ in 0..3 {
                tls.write_all(b"hello").unwrap();
                let mut text = [0; 5];
                tls.read_exact(&mut text).unwrap();
                assert_eq!(&text, b"hello");
            }
            // The application's own choice of protocol, not the mesh's.
            assert_eq!(
                tls.conn.alpn_protocol(),
                alpn.first().map(|_| b"http/1.1".as_slice()),
                "{to} from {}",
                from.name
            );
        }
    }
    for flow in World::between_pods(tap) {
        assert_eq!(flow.verdict(), Verdict::Tls, "{flow:?}");
    }
    assert!(pair.detected(&pair.client, "tls", "first_bytes") > 0.9);
    assert!(pair.detected(&pair.server, "tls", "first_bytes") > 0.9);
}

#[test]
fn http2_travels_as_it_is_inside_mutual_tls() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("h2");
    let folder = pair.world.path("nginx");
    fs::create_dir(&folder).unwrap();
    let config = "daemon off; master_process off; pid PATH/pid; error_log stderr;\nevents {}\nhttp { access_log off; \
                  client_body_temp_path PATH/a; proxy_temp_path PATH/b; fastcgi_temp_path PATH/c; uwsgi_temp_path PATH/d; scgi_temp_path PATH/e;\n\
                  server { listen 7002 http2; listen 7004 http2; location / { return 200 \"$server_protocol\"; } } }\n";
    let config = config.replace("PATH", &folder.display().to_string());
    fs::write(folder.join("nginx.conf"), config).unwrap();
    let mut command = pair.server.netns.command("nginx");
    command.arg("-c").arg(folder.join("nginx.conf")).arg("-p").arg(&folder);
    let _nginx = Process::start("nginx", &mut command);
    until("nginx serves", || pair.server.try_connect(at([127, 0, 0, 1], 7002)).ok());
    let tap = pair.world.tap(&pair.server);
    let curl = |from: &Pod, to: SocketAddr| {
        let mut command = from.netns.command("curl");
        command.args(["-sS", "--max-time", "15", "--http2-prior-knowledge", "-w", " %{http_version} %{http_code}"]);
        let output = command.arg(format!("http://{to}/a")).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert_eq!(curl(&pair.client, pair.service[2]), "HTTP/2.0 2 200");
    assert_eq!(curl(&pair.client, at(pair.server.ip, 7004)), "HTTP/2.0 2 200");
    let flows = World::between_pods(tap);
    assert!(flows.len() >= 2);
    for flow in flows {
        assert_eq!(flow.verdict(), Verdict::Tls, "{flow:?}");
    }
    assert_eq!(curl(&pair.stranger, at(pair.server.ip, 7002)), "HTTP/2.0 2 200");
    assert!(pair.detected(&pair.client, "http2", "first_bytes") > 1.9);
    assert!(pair.detected(&pair.server, "http2", "first_bytes") > 0.9);
}

/// Reads to the end and tells how much it was, with its checksum.
fn drain(stream: &mut impl Read) -> io::Result<(u64, String)> {
    let (mut sum, mut total, mut chunk) = (Sha256::new(), 0, vec![0; 128 * 1024]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok((total, format!("{:x}", sum.finalize()))),
            Ok(n) => {
                total += u64::try_from(n).unwrap();
                sum.update(&chunk[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends so many bytes that nobody can guess, and tells their checksum.
fn pour(stream: &mut impl Write, bytes: usize, mut seed: u64) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut left = bytes;
    let mut chunk = vec![0_u8; 128 * 1024];
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&seed.to_le_bytes());
        }
        let part = &chunk[..left.min(chunk.len())];
        sum.update(part);
        stream.write_all(part)?;
        left -= part.len();
    }
    Ok(format!("{:x}", sum.finalize()))
}

const MUCH: usize = 100 * 1024 * 1024;

#[test]
fn much_in_both_directions_at_once_arrives_whole_and_half_closed_streams_go_on() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("much");
    // First it pours while it drains; then it answers with the checksum of what it got, behind the client's end.
    let _app = App::raw(&pair.server.netns, 7000, |stream| {
        let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
        let draining = thread::spawn(move || drain(&mut reader));
        let Ok(poured) = pour(&mut writer, MUCH, 7) else { return };
        if let Ok(Ok((total, sum))) = draining.join() {
            let _ = write!(writer, "{poured} {total} {sum}");
        }
    });
    for (from, to) in [(&pair.client, pair.service[0]), (&pair.stranger, at(pair.server.ip, 7000))] {
        let stream = from.netns.connect(to).unwrap();
        let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
        let sending = thread::spawn(move || {
            let sum = pour(&mut writer, MUCH, 8).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
            sum
        });
        let (total, got) = drain(&mut (&mut reader).take(MUCH.try_into().unwrap())).unwrap();
        let sent = sending.join().unwrap();
        let mut words = String::new();
        reader.read_to_string(&mut words).unwrap();
        assert_eq!(words, format!("{got} {MUCH} {sent}"), "{} of {total}", from.name);
    }
    let labels: &[(&str, &str)] = &[("reporter", "source")];
    until("the bytes are counted", || {
        let moved = |what: &str| pair.client.metric(&format!("istio_tcp_{what}_bytes_total"), labels);
        (moved("sent") >= 1e8 && moved("received") >= 1e8).then_some(())
    });
}

#[test]
fn a_stream_that_is_cut_does_not_look_finished() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("cut");
    let _app = App::raw(&pair.server.netns, 7000, |mut stream| {
        let _ = stream.write_all(b"half of it");
        let mut byte = [0; 1];
        let _ = stream.read_exact(&mut byte);
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
    });
    for (from, to) in [(&pair.client, pair.service[0]), (&pair.stranger, at(pair.server.ip, 7000))] {
        let mut connection: Client = from.connect(to);
        assert_eq!(connection.exactly(10).unwrap(), b"half of it");
        connection.send(b"x").unwrap();
        let end = connection.rest();
        assert!(end.is_err(), "{}: the end looked regular: {end:?}", from.name);
    }
}
