//! What is compared, ready to be asked.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use weir_mesh::ports;

use crate::{
    grpc,
    lab::{Netns, Pair},
    load::Load,
    origin::Origin,
    process::Process,
    serve::Server,
    stream::Sink,
};

/// Where the origin listens.
pub const HTTP_PORT: u16 = 8080;
/// Where the sink listens.
pub const TCP_PORT: u16 = 5201;
/// Where the origin for HTTP/2 listens; the Service's port has the same number, as those that follow.
pub const GRPC_PORT: u16 = 9000;
/// Where fresh connections are greeted.
pub const FRESH_PORT: u16 = 5202;
/// Leads there as well, by handshakes that resume a session, where the candidate knows these.
pub const RESUMED_PORT: u16 = 5203;
/// The port of the Service that leads to [`HTTP_PORT`].
pub const SERVICE_PORT: u16 = 80;
/// Leads there as well, by the one rule that it has; of Weir's Services alone.
pub const ONE_ROUTE_PORT: u16 = 81;
/// The same by [`ROUTES`] rules.
pub const MANY_ROUTES_PORT: u16 = 82;
/// How many rules are many.
pub const ROUTES: usize = 1_000;

/// What stands between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing, and no redirect.
    Direct,
    /// Two relays: the floor.
    Relay,
    /// Two `weir-proxy` with so many workers each.
    Weir(u8),
    /// Two Envoys with so many workers each.
    Envoy(u8),
}

impl Kind {
    /// All, in the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::Direct, Self::Relay, Self::Weir(1), Self::Weir(2), Self::Envoy(1), Self::Envoy(2)];

    /// Short name, in tables and as key.
    pub fn name(self) -> String {
        match self {
            Self::Direct => "direct".into(),
            Self::Relay => "relay".into(),
            Self::Weir(workers) => format!("weir-{workers}"),
            Self::Envoy(workers) => format!("envoy-{workers}"),
        }
    }

    /// Virtual address of the Service that the client calls through proxies; `index` as in [`Pair::new`].
    pub fn service_ip(index: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, 0, index)
    }
}

/// One way from client to server, with everything that it needs running. Fields are dropped in this order: proxies first.
#[derive(Debug)]
pub struct Candidate {
    /// What it is.
    pub kind: Kind,
    /// The client's proxy and the server's, or none.
    pub proxies: Vec<Process>,
    /// Where the client sends requests.
    pub http: SocketAddr,
    /// Where the client sends bulk.
    pub tcp: SocketAddr,
    /// Where it speaks HTTP/2.
    pub grpc: SocketAddr,
    /// Where its fresh connections go.
    pub fresh: SocketAddr,
    /// Bulk's end.
    pub sink: Sink,
    _origin: Origin,
    _servers: [Server; 2],
    /// Its namespaces.
    pub pair: Pair,
}

impl Candidate {
    /// Starts origin and sink and, where there are proxies, puts the redirect in force on both sides.
    ///
    /// # Errors
    /// Where the kernel refuses something.
    pub fn prepare(kind: Kind, index: u8) -> anyhow::Result<Self> {
        let pair = Pair::new(index)?;
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let origin = Origin::start(any(HTTP_PORT), Some(&pair.server))?;
        let sink = Sink::start(any(TCP_PORT), &pair.server)?;
        let servers = [
            grpc::origin::start(any(GRPC_PORT), Some(&pair.server))?,
            Server::greeter(any(FRESH_PORT), Some(&pair.server))?,
        ];
        let (ip, http) = if kind == Kind::Direct {
            (pair.server_ip, HTTP_PORT)
        } else {
            pair.client.redirect()?;
            pair.server.redirect()?;
            (Kind::service_ip(index), SERVICE_PORT)
        };
        let at = |port| SocketAddr::from((ip, port));
        Ok(Self {
            kind,
            proxies: Vec::new(),
            http: at(http),
            tcp: at(TCP_PORT),
            grpc: at(GRPC_PORT),
            fresh: at(FRESH_PORT),
            sink,
            _origin: origin,
            _servers: servers,
            pair,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where the answer is not what the origin gives.
    pub fn try_once(&self) -> anyhow::Result<()> {
        self.pair.client.run(|| Load::connect(self.http, "/", 1)?.once().map(|_| ()))
    }

    /// Process ids of the proxies.
    pub fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(Process::pid).collect()
    }

    /// CPU seconds of each proxy since its start.
    ///
    /// # Errors
    /// Where one is gone.
    pub fn cpu(&self) -> anyhow::Result<Vec<f64>> {
        self.pids().into_iter().map(|pid| Ok(crate::usage::cpu(pid)?.as_secs_f64())).collect()
    }

    /// Resident memory of each proxy in kB.
    ///
    /// # Errors
    /// Where one is gone.
    pub fn resident_kb(&self) -> anyhow::Result<Vec<u64>> {
        self.pids().into_iter().map(crate::usage::resident_kb).collect()
    }

    /// Handshakes that the server's proxy has seen since its start, and how many of them resumed a session; `None` where it does not say.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn handshakes(&self) -> anyhow::Result<Option<(f64, f64)>> {
        let server = &self.pair.server;
        let sum = |text: &str, wanted: &dyn Fn(&str) -> bool| -> f64 {
            let lines = text.lines().filter(|line| wanted(line));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(match self.kind {
            Kind::Direct | Kind::Relay => None,
            Kind::Weir(_) => {
                let text = get(server, ports::METRICS, "/stats/prometheus")?;
                let inbound = |line: &str| {
                    line.starts_with("weir_tls_handshakes_total{")
                        && line.contains("direction=\"inbound\"")
                        && line.contains("result=\"ok\"")
                };
                Some((sum(&text, &inbound), 0.0))
            }
            Kind::Envoy(_) => {
                let text = get(server, ports::ADMIN, "/stats?filter=listener.*ssl")?;
                let of = |name: &str| sum(&text, &|line| line.split(':').next().is_some_and(|key| key.ends_with(name)));
                Some((of(".ssl.handshake"), of(".ssl.session_reused")))
            }
        })
    }

    /// Adds to an error what the proxies said before they ended, if they did.
    ///
    /// # Errors
    /// Those of `result`.
    pub fn explain<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let name = self.kind.name();
        result.map_err(|error| {
            let ended = self.proxies.iter_mut().find_map(|proxy| proxy.alive().err());
            match ended {
                Some(ended) => error.context(ended).context(name),
                None => error.context(name),
            }
        })
    }
}

/// A plain GET to a loopback address of a namespace; the body of a 200.
///
/// # Errors
/// Where there is no such answer.
pub fn get(netns: &Netns, port: u16, path: &str) -> anyhow::Result<String> {
    netns.run(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(text.starts_with("HTTP/1.1 200 "), "{}", text.lines().next().unwrap_or_default());
        Ok(text.split_once("\r\n\r\n").context("no body")?.1.to_owned())
    })
}
