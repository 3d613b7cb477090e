//! Real servers in pods of the mesh, real clients in others: through both proxies, with mutual TLS between them, and from outside of the
//! mesh. Each on a port that is declared and on another; the metric says what the proxies took it for, and why.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use weir_tests::{Curl, Pod, PodSpec, World, at, is_root, nginx, servers, tool, until};

/// A greeting that was not waited for takes a round trip and a handshake; one that was, 100 ms more. Busy machines are slow.
const SOON: Duration = Duration::from_millis(800);

/// A server's pod, a client's, and one outside of the mesh.
struct Lab {
    server: Pod,
    client: Pod,
    stranger: Pod,
    /// Addresses of the Services, one for each port.
    services: Vec<SocketAddr>,
    ports: Vec<u16>,
    world: World,
}

impl Lab {
    /// Ports are a name, which may be empty, and a number, of the Service and of the pod. `start` starts what listens there.
    fn new<T>(name: &str, ports: &[(&str, u16)], start: impl FnOnce(&Pod, &Path) -> T) -> (Self, T) {
        let world = World::new(name);
        let spec = ports.iter().fold(PodSpec::new("server"), |spec, (name, port)| spec.port(name, *port));
        let server = world.pod_unready(spec);
        // Two ports without a name are no valid Service: one Service for each.
        let services = (10..).zip(ports).map(|(last, (name, port))| {
            at(world.service(&format!("s-{last}"), last, &json!({"app": "server"}), &[(name, *port, *port)]), *port)
        });
        let services = services.collect();
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        let folder = world.path("server");
        fs::create_dir_all(&folder).unwrap();
        let started = start(&server, &folder);
        server.wait_ready();
        for (_, port) in ports {
            until("the server listens", || server.try_connect(at([127, 0, 0, 1], *port)).ok());
        }
        let ports = ports.iter().map(|(_, port)| *port).collect();
        (Self { server, client, stranger, services, ports, world }, started)
    }

    /// What `work` adds to the connections that a proxy took for a protocol, by reason.
    fn detects<T>(&self, pod: &Pod, protocol: &str, reason: &str, work: impl FnOnce() -> T) -> T {
        let count = || pod.metric("weir_detection_total", &[("protocol", protocol), ("reason", reason)]);
        let before = count();
        let done = work();
        assert!(count() > before, "the proxy of {} took nothing for {protocol} by {reason}", pod.name);
        done
    }

    /// What the server says first on its port of this place, to a client of the mesh and to a stranger.
    fn greets(&self, place: usize, begins: &[u8]) {
        let heard = |from: &Pod, to| {
            let start = Instant::now();
            let said = from.connect(to).exactly(begins.len()).unwrap();
            assert_eq!(said, begins, "{to} to {}", from.name);
            let heard = start.elapsed();
            assert!(heard < SOON, "{to} spoke to {} after {heard:?}", from.name);
        };
        let to = self.services[place];
        let declared = place == 0;
        let silence = if declared { "declared" } else { "silence" };
        self.detects(&self.client, "opaque", silence, || heard(&self.client, to));
        let after = if declared { "declared" } else { "remembered" };
        self.detects(&self.client, "opaque", after, || heard(&self.client, to));
        self.detects(&self.server, "opaque", "alpn", || heard(&self.client, to));
        let direct = at(self.server.ip, self.ports[place]);
        self.detects(&self.server, "opaque", "server_first", || heard(&self.stranger, direct));
    }

    /// Waits until this many streams of the client, by mutual TLS, are counted at the server.
    fn streams(&self, least: f64) {
        let labels = [
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
            ("connection_security_policy", "mutual_tls"),
        ];
        until("the streams are counted", || {
            (self.server.metric("istio_tcp_connections_closed_total", &labels) >= least).then_some(())
        });
    }
}

/// A certificate for `app.test` and its key, as files that every user can read.
fn certificate(folder: &Path) -> [String; 2] {
    let own = rcgen::generate_simple_self_signed(["app.test".to_owned()]).unwrap();
    [("cert.pem", own.cert.pem()), ("key.pem", own.signing_key.serialize_pem())].map(|(name, text)| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    })
}

#[test]
fn redis_answers_pipelined_commands() {
    if !is_root() {
        return;
    }
    let (lab, _servers) = Lab::new("redis", &[("tcp", 7000), ("", 7001)], |server, folder| {
        [7000, 7001].map(|port| servers::redis(&server.netns, folder, port))
    });
    let commands: String = (0..1000).map(|n| format!("SET key-{n} value-{n}\r\n")).collect();
    let file = lab.world.path("commands");
    fs::write(&file, commands).unwrap();
    for (to, reason) in lab.services.iter().zip(["declared", "first_bytes"]) {
        let script = format!("redis-cli -h {} -p {} --pipe < {}", to.ip(), to.port(), file.display());
        let said =
            lab.detects(&lab.client, "opaque", reason, || servers::ask(&lab.client.netns, "sh", &["-c", &script]));
        assert!(said.contains("errors: 0, replies: 1000"), "{to}: {said}");
        let words = ["-h", &to.ip().to_string(), "-p", &to.port().to_string(), "GET", "key-999"];
        assert_eq!(servers::ask(&lab.client.netns, "redis-cli", &words).trim(), "value-999");
    }
    lab.streams(4.0);
}

#[test]
fn mariadb_speaks_first_and_answers_queries_in_plaintext_and_in_its_own_tls() {
    if !is_root() || tool::debian("mariadbd").is_none() || tool::debian("mariadb").is_none() {
        return;
    }
    let (lab, _servers) = Lab::new("mariadb", &[("mysql", 7000), ("", 7001)], |server, folder| {
        [7000, 7001].map(|port| {
            let folder = folder.join(port.to_string());
            fs::create_dir(&folder).unwrap();
            let [certificate, key] = certificate(&folder);
            let settings = [format!("--ssl-cert={certificate}"), format!("--ssl-key={key}")];
            servers::mariadb(&server.netns, &folder, port, &settings)
        })
    });
    let query = "create database d; create table d.t (n int); insert into d.t values (1), (2); select sum(n) from d.t; \
                 drop database d; show status like 'Ssl_cipher'";
    for place in [0, 1] {
        // Its first packet: length, number, version of the protocol, and a part of the server's version.
        let greeting = lab.server.connect(at([127, 0, 0, 1], lab.ports[place])).exactly(16).unwrap();
        assert_eq!(greeting[3..5], [0, 10]);
        lab.greets(place, &greeting);
        let ways = [(&lab.client, lab.services[place]), (&lab.stranger, at(lab.server.ip, lab.ports[place]))];
        for (from, to) in ways {
            for tls in ["--skip-ssl", "--ssl"] {
                let (host, port) = (format!("--host={}", to.ip()), format!("--port={}", to.port()));
                let words = ["--no-defaults", &host, &port, tls, "--batch", "--skip-column-names", "--execute", query];
                let said = servers::ask(&from.netns, "mariadb", &words);
                let mut lines = said.lines();
                assert_eq!(lines.next(), Some("3"), "{to}: {said}");
                let cipher = lines.next().and_then(|line| line.strip_prefix("Ssl_cipher")).unwrap().trim();
                assert_eq!(cipher.is_empty(), tls == "--skip-ssl", "{to}: {said}");
            }
        }
    }
    lab.streams(2.0 * (3.0 + 2.0));
}

/// Exim as it is installed nowhere: no rewriting, no lookups, all mail for one domain into one file.
const EXIM: &str = "primary_hostname = mail.test
spool_directory = HERE/spool
log_file_path = HERE/log-%s
pid_file_path = HERE/pid
local_interfaces = 0.0.0.0
daemon_smtp_ports = 7000 : 7001
keep_environment =
host_lookup =
rfc1413_query_timeout = 0s
deliver_drop_privilege = true
tls_advertise_hosts = *
tls_certificate = HERE/cert.pem
tls_privatekey = HERE/key.pem
acl_smtp_rcpt = rcpt
acl_smtp_data = data
begin acl
rcpt:
  accept domains = mail.test
data:
  accept
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  file = HERE/mail
  user = Debian-exim
  headers_add = X-Cipher: ${tls_in_cipher}
";

#[test]
fn exim_speaks_first_and_delivers_mail_in_plaintext_and_by_starttls() {
    let Some(exim) = is_root().then(|| tool::debian("exim4")).flatten() else { return };
    let (lab, _server) = Lab::new("exim", &[("tcp-smtp", 7000), ("", 7001)], |server, folder| {
        // It gives up its rights, and then writes here.
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        let spool = folder.join("spool");
        fs::create_dir(&spool).unwrap();
        open(folder);
        open(&spool);
        certificate(folder);
        let config = folder.join("conf");
        fs::write(&config, EXIM.replace("HERE", &folder.display().to_string())).unwrap();
        servers::start(&server.netns, &exim.display().to_string(), &["-bdf", "-C", &config.display().to_string()])
    });
    let mailbox = lab.world.path("server").join("mail");
    let arrived = || fs::read_to_string(&mailbox).unwrap_or_default();
    for place in [0, 1] {
        lab.greets(place, b"220 mail.test ESMTP Exim ");
        let ways = [(&lab.client, lab.services[place]), (&lab.stranger, at(lab.server.ip, lab.ports[place]))];
        for (from, to) in ways {
            for tls in [&[][..], &["--ssl-reqd", "--insecure"]] {
                let name = format!("{}-{place}-{}", from.name, tls.len());
                // More than one packet, and a line that means an end to who does not read the protocol.
                let text: String = (0..5000).map(|n| format!("{n} of {name}\r\n.\r\n")).collect();
                let mail = format!("Subject: {name}\r\n\r\n{text}");
                let url = format!("smtp://{to}/client.test");
                let words = ["--mail-from", "a@client.test", "--mail-rcpt", "b@mail.test", "--upload-file", "-", &url];
                let curl = Curl::call(&from.netns, &[tls, &words].concat(), mail.as_bytes());
                assert_eq!(curl.code, Some(0), "{name}: {curl:?}");
                let mail = until("the mail is delivered", || {
                    let all = arrived();
                    let mail =
                        all.split("\nFrom ").find(|mail| mail.contains(&format!("Subject: {name}\n")))?.to_owned();
                    mail.contains(&format!("4999 of {name}\n.\n")).then_some(mail)
                });
                assert_eq!(mail.matches(&format!(" of {name}\n.\n")).count(), 5000, "{name}");
                assert_eq!(mail.contains("\nX-Cipher: TLS1."), !tls.is_empty(), "{name}: {}", &mail[..600]);
            }
        }
    }
    lab.streams(2.0 * (3.0 + 2.0));
}

#[test]
fn nginx_serves_http1_http2_and_its_own_tls() {
    if !is_root() {
        return;
    }
    let ports = [("http", 7000), ("", 7001), ("http2", 7002), ("", 7003), ("https", 7004), ("", 7005)];
    let (lab, _server) = Lab::new("nginx", &ports, |server, folder| {
        let [certificate, key] = certificate(folder);
        let servers = format!(
            r#"server {{
                listen 7000; listen 7001; listen 7002 http2; listen 7003 http2; listen 7004 ssl http2; listen 7005 ssl http2;
                root ROOT; ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
                location = /who {{ return 200 "$server_protocol $ssl_protocol $http_x_request_id"; }}
            }}"#
        );
        nginx::start(&server.netns, &folder.join("nginx"), &servers, 7000)
    });
    let authority = lab.world.path("server").join("cert.pem").display().to_string();
    let call = |from: &Pod, words: &[&str]| {
        let curl = Curl::call(&from.netns, words, b"");
        assert_eq!((curl.code, curl.status()), (Some(0), 200), "{words:?} of {}: {curl:?}", from.name);
        curl
    };
    // The place, the switch, what the client's proxy takes it for, and what the server's does of the stranger.
    let plain = [
        (0, "--http1.1", "HTTP/1.1", ("http", "declared"), ("http", "declared")),
        (1, "--http1.1", "HTTP/1.1", ("http", "first_bytes"), ("http", "first_bytes")),
        (2, "--http2-prior-knowledge", "HTTP/2.0", ("http", "declared"), ("http2", "declared")),
        (3, "--http2-prior-knowledge", "HTTP/2.0", ("http2", "first_bytes"), ("http2", "first_bytes")),
    ];
    for (place, switch, version, out, into) in plain {
        let to = lab.services[place];
        let said = lab.detects(&lab.client, out.0, out.1, || call(&lab.client, &[switch, &format!("http://{to}/who")]));
        assert!(said.out.starts_with(&format!("{version}  ")) && said.out.len() > 30, "{said:?}");
        let direct = at(lab.server.ip, lab.ports[place]);
        lab.detects(&lab.server, into.0, into.1, || call(&lab.stranger, &[switch, &format!("http://{direct}/")]));
    }
    // Within its TLS nobody looks: what ALPN has chosen there arrives, and no request id is added. The client checks the certificate.
    let secret: [(&[&str], &str, &str); 5] = [
        (&[], "2", "HTTP/2.0 TLSv1.3"),
        (&["--http1.1"], "1.1", "HTTP/1.1 TLSv1.3"),
        (&["--no-alpn"], "1.1", "HTTP/1.1 TLSv1.3"),
        (&["--tlsv1.2", "--tls-max", "1.2"], "2", "HTTP/2.0 TLSv1.2"),
        (&["--tlsv1.3", "--curves", "X25519"], "2", "HTTP/2.0 TLSv1.3"),
    ];
    for place in [4, 5] {
        let (to, direct) = (lab.services[place], at(lab.server.ip, lab.ports[place]));
        for (words, version, who) in secret {
            for (from, to) in [(&lab.client, to), (&lab.stranger, direct)] {
                let there = format!("app.test:443:{to}");
                let way = ["--cacert", &authority, "--connect-to", &there, "https://app.test/who"];
                let said = call(from, &[words, &way].concat());
                assert_eq!((said.version(), said.out.trim()), (version, who), "{to}: {said:?}");
            }
        }
        let (protocol, reason) = if place == 4 { ("opaque", "declared") } else { ("tls", "first_bytes") };
        let once = |from: &Pod, to| call(from, &["--insecure", &format!("https://{to}/")]);
        lab.detects(&lab.client, protocol, reason, || once(&lab.client, to));
        lab.detects(&lab.server, "opaque", "alpn", || once(&lab.client, to));
        lab.detects(&lab.server, "tls", "first_bytes", || once(&lab.stranger, direct));
    }
    lab.streams(2.0 * 7.0);
    let labels = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    assert!(lab.server.metric("istio_requests_total", &labels) >= 4.0);
}
