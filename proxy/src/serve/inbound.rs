//! Connections that come into the pod.
//!
//! Mutual TLS of the mesh is known by its ALPN names; TLS without them is the application's own and passes through, as plaintext does,
//! unless the port refuses plaintext. Where the port is not declared as HTTP the application is called at once, before a byte of the client has
//! come: a server that speaks first is heard without delay, and a refused connection shows before our side of the TLS handshake is
//! sent, so that the caller's proxy knows that nothing was delivered.

use std::{cell::OnceCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    select,
    time::{Instant, timeout},
};
use tokio_rustls::StartHandshake;
use weir_mesh::{Identity, ports};

use super::{
    Worker,
    exchange::{self, Side},
    opaque,
    refuse::{refuse, reset, tell_refused},
};
use crate::{
    capture::OrigDst,
    config::{self, Port, Protocol},
    detect::{Hello, HelloState, Spoken, client_hello, spoken},
    net::{Conn, Io},
    policy::Admission,
    telemetry::{Direction, Peer, SecurityPolicy, Service},
    tls::{self, Alpn, PortKind, alpn},
    upstream::Unreachable,
};

/// How long a client may take for its ClientHello and for the handshake, each.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an opaque stream waits for the control plane's word on a caller that it has never seen.
const INTRODUCTION: Duration = Duration::from_millis(50);

/// Ports behind which the proxy would find itself. Those that others may call are never redirected.
const OWN_PORTS: [u16; 3] = [ports::ADMIN, ports::OUTBOUND, ports::INBOUND];

/// First byte of a TLS record with a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Where the application speaks first: how long the ClientHello of a pod with a proxy may take. Packets get lost.
const HELLO_OF_MESH: Duration = Duration::from_secs(1);
/// The same of a caller of whom nothing is known.
const HELLO_OF_UNKNOWN: Duration = Duration::from_millis(100);

const IN: Direction = Direction::Inbound;

/// Who calls: what was proved, and what is known of the address.
pub(super) struct Caller {
    /// What the access rules say of its connection.
    pub admission: Admission,
    cell: Option<Arc<config::Peer>>,
    known: OnceCell<Arc<Peer>>,
    by_identity: OnceCell<Arc<Peer>>,
}

impl Caller {
    fn new(worker: &Worker, admission: Admission) -> Self {
        let cell = Self::cell(worker, admission.peer());
        Self { admission, cell, known: OnceCell::new(), by_identity: OnceCell::new() }
    }

    /// Identity proved by mutual TLS.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.admission.principal()
    }

    /// Where the control plane says who has this address; none outside of the mesh.
    fn cell(worker: &Worker, address: SocketAddr) -> Option<Arc<config::Peer>> {
        let inside = worker.shared.settings.is_inside(address.ip());
        inside.then(|| worker.shared.store.peer(address.ip())).flatten()
    }

    /// Labels of the caller. What the control plane says of the address counts only if it agrees with the identity; until it has said
    /// something, the identity alone speaks.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        if let Some(known) = self.known.get() {
            return known;
        }
        let said = self.cell.as_ref().and_then(|cell| cell.workload());
        match said.filter(|workload| self.identity().is_none() || workload.identity.as_ref() == self.identity()) {
            Some(workload) => self.known.get_or_init(|| workload.peer.clone()),
            None => self.by_identity.get_or_init(|| match self.identity() {
                Some(identity) => Peer::from_identity(identity),
                None => Peer::unknown(),
            }),
        }
    }

    /// Gives the control plane a moment to say who has the caller's address: a stream keeps the labels that it begins with.
    async fn introduced(&self) {
        if let Some(cell) = &self.cell {
            cell.said(INTRODUCTION).await;
        }
    }

    /// How the connection is protected.
    pub(super) fn security(&self) -> SecurityPolicy {
        if self.identity().is_some() { SecurityPolicy::MutualTls } else { SecurityPolicy::None }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, OrigDst(app): OrigDst) {
    let own = &worker.shared.settings.addresses;
    if !own.is_empty() && !own.contains(&app.ip()) {
        let detail = "this is no address of the pod: somebody sends packets here that are meant for another";
        return refuse(&worker, IN, &Io::Plain(stream), peer, app, "not_our_address", detail);
    }
    if OWN_PORTS.contains(&app.port()) {
        let detail = "this port is the proxy's own: only the redirect leads to it";
        return refuse(&worker, IN, &Io::Plain(stream), peer, app, "own_port", detail);
    }
    // Asked now, the answer is here when the handshake is done.
    let _ = Caller::cell(&worker, peer);
    let Some(inbound) = worker.shared.store.inbound() else {
        let detail = "the control plane has not said yet who may call this pod";
        return refuse(&worker, IN, &Io::Plain(stream), peer, app, "not_configured", detail);
    };
    let port = inbound.ports.get(&app.port()).cloned().unwrap_or_else(|| {
        let (protocol, service) = (Protocol::Detect, Service::inbound_passthrough());
        Arc::new(Port { protocol, service, access: inbound.others.clone() })
    });
    drop(inbound);
    let forced = worker.shared.settings.opaque_ports.contains(&app.port());
    let protocol = if forced { Protocol::Opaque } else { port.protocol };
    let mut connection =
        Connection { worker, conn: Conn::new(Io::Plain(stream)), peer, app, port, protocol, called: None };
    // One stage after the other, the rare and large ones apart: a connection's task is as large as its largest stage.
    // Where plaintext is refused there is no server to be heard first: the application is called when the caller has proved who it is.
    let begun = if protocol == Protocol::Http || connection.is_strict() {
        Box::pin(connection.by_first_bytes()).await
    } else {
        match Box::pin(connection.call_app_first()).await {
            First::Client => Box::pin(connection.by_first_bytes()).await,
            First::Server => Some((connection, Step::Opaque(None))),
            First::Nobody => None,
        }
    };
    let begun = match begun {
        Some((connection, Step::Tls)) => Box::pin(connection.tls()).await,
        begun => begun,
    };
    match begun {
        Some((connection, Step::Http(identity))) => {
            if let Some((worker, conn, peer, side)) = connection.http(identity) {
                exchange::serve(worker, conn, peer, side).await;
            }
        }
        Some((connection, Step::Opaque(identity))) => Box::pin(connection.opaque(identity)).await,
        Some((_, Step::Tls)) | None => {}
    }
}

/// Who spoke first.
enum First {
    Client,
    Server,
    /// The connection is over.
    Nobody,
}

/// What is done with a connection next.
enum Step {
    /// A handshake has begun: the mesh's, or the application's.
    Tls,
    /// HTTP, from a caller with this identity.
    Http(Option<Identity>),
    /// Bytes for the application.
    Opaque(Option<Identity>),
}

struct Connection {
    worker: Rc<Worker>,
    conn: Conn,
    peer: SocketAddr,
    app: SocketAddr,
    port: Arc<Port>,
    protocol: Protocol,
    /// The application, where it was called before the client had spoken.
    called: Option<TcpStream>,
}

impl Connection {
    /// True where plaintext is refused.
    fn is_strict(&self) -> bool {
        self.port.access.strict.is_some()
    }

    /// What the access rules of this moment say of the connection.
    fn judge(&self, identity: Option<Identity>) -> Admission {
        let inbound = self.worker.shared.store.inbound();
        self.worker.admissions.judge(inbound.as_deref(), identity, self.peer, self.app)
    }

    /// Calls the application while the client's first bytes are awaited.
    async fn call_app_first(&mut self) -> First {
        let worker = self.worker.clone();
        let calling = worker.connector.connect_app(self.app);
        tokio::pin!(calling);
        let mut spoke = false;
        let called = loop {
            select! {
                biased;
                called = &mut calling => break called,
                filled = self.conn.fill(), if !spoke => match filled {
                    Err(_) => return First::Nobody,
                    Ok(_) => spoke = true, // an end counts as well: a half-closed client may wait for what the server says
                },
            }
        };
        let called = match called {
            Ok(called) => called,
            Err(error) => {
                self.app_refused(&error);
                return First::Nobody;
            }
        };
        if !spoke {
            select! {
                biased;
                filled = self.conn.fill() => if filled.is_err() {
                    return First::Nobody;
                },
                ready = called.readable() => {
                    let _ = ready; // an error or an end shows when it is read
                    if !self.client_has_tls_under_way().await {
                        self.called = Some(called);
                        self.worker.detected(IN, "opaque", "server_first");
                        return First::Server;
                    }
                }
            }
        }
        self.called = Some(called);
        First::Client
    }

    /// The application has spoken before the client: a caller in plaintext waits for just that, while the ClientHello of a proxy is a
    /// round trip away. Its words must not go out before it is clear which of the two this is. False if the client stays silent.
    async fn client_has_tls_under_way(&mut self) -> bool {
        let cell = Caller::cell(&self.worker, self.peer);
        let patience = async {
            let asked = Instant::now();
            if let Some(cell) = &cell {
                cell.said(HELLO_OF_UNKNOWN).await;
            }
            let limit = match cell.as_ref().and_then(|cell| cell.workload()) {
                Some(workload) if workload.mesh => HELLO_OF_MESH,
                Some(_) => return,
                None => HELLO_OF_UNKNOWN,
            };
            tokio::time::sleep_until(asked + limit).await;
        };
        select! {
            biased;
            filled = self.conn.fill() => matches!(filled, Ok(n) if n > 0),
            () = patience => false,
        }
    }

    fn app_refused(&self, error: &Unreachable) {
        let detail = format!("the application does not accept connections: {error}");
        refuse(&self.worker, IN, &self.conn.io, self.peer, self.app, "app_refused", &detail);
    }

    /// Decides by what the client sends first; `None` if the connection is over.
    async fn by_first_bytes(mut self) -> Option<(Self, Step)> {
        loop {
            if self.is_strict() && self.conn.read.first().is_some_and(|&first| first != HANDSHAKE_RECORD) {
                return Some((self, Step::Opaque(None))); // to be refused: no other word is worth waiting for
            }
            match spoken(&self.conn.read) {
                Spoken::Tls => return Some((self, Step::Tls)),
                // Declared as HTTP and no handshake: the codec waits for the rest, and says what it dislikes.
                Spoken::Unclear
                    if self.protocol == Protocol::Http && !self.conn.read.starts_with(&[HANDSHAKE_RECORD]) =>
                {
                    if !self.conn.read.is_empty() {
                        self.worker.detected(IN, "http", "declared");
                        return Some((self, Step::Http(None)));
                    }
                }
                Spoken::Unclear if !self.conn.eof => {}
                spoken @ (Spoken::Http1 | Spoken::Http2) if self.protocol != Protocol::Opaque => {
                    let protocol = if spoken == Spoken::Http2 { "http2" } else { "http" };
                    let why = if self.protocol == Protocol::Http { "declared" } else { "first_bytes" };
                    self.worker.detected(IN, protocol, why);
                    return Some((self, Step::Http(None)));
                }
                _ => {
                    if self.protocol == Protocol::Http {
                        // Declared as HTTP, but something else: the codec answers with a reason.
                        self.worker.detected(IN, "http", "declared");
                        return Some((self, Step::Http(None)));
                    }
                    self.worker.detected(IN, "opaque", "first_bytes");
                    return Some((self, Step::Opaque(None)));
                }
            }
            // A silent client of a text protocol may be slow; only where the application has not been called does it have to hurry.
            let filled = if self.called.is_some() && !self.conn.read.is_empty() {
                match timeout(Duration::from_millis(100), self.conn.fill()).await {
                    Ok(filled) => filled,
                    Err(_) => {
                        self.worker.detected(IN, "opaque", "silence");
                        return Some((self, Step::Opaque(None)));
                    }
                }
            } else {
                // Clients connect ahead of their first request: silence is no fault, a begun handshake is to go on.
                // Where plaintext is refused, only proxies have a reason to call, and these begin at once.
                let patient = self.conn.read.is_empty() && !self.is_strict();
                let limit = if patient { exchange::IDLE } else { PATIENCE };
                match timeout(limit, self.conn.fill()).await {
                    Ok(filled) => filled,
                    Err(_) => {
                        self.worker.refused(IN, "client_silent");
                        return None;
                    }
                }
            };
            match filled {
                Ok(0) if self.conn.read.is_empty() => return None,
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// A TLS handshake: the mesh's, or the application's.
    async fn tls(mut self) -> Option<(Self, Step)> {
        let end = Instant::now() + PATIENCE;
        loop {
            match client_hello(&self.conn.read) {
                HelloState::Complete(hello, accepted) if is_mesh(&hello) => return self.mesh(&hello, *accepted).await,
                HelloState::Complete(..) | HelloState::Invalid => {
                    self.worker.detected(IN, "tls", "first_bytes");
                    return Some((self, Step::Opaque(None)));
                }
                HelloState::Incomplete => {}
            }
            match tokio::time::timeout_at(end, self.conn.fill()).await {
                Ok(Ok(0)) if self.conn.eof => {
                    self.worker.detected(IN, "tls", "first_bytes");
                    return Some((self, Step::Opaque(None)));
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return None,
                Err(_) => {
                    self.worker.refused(IN, "client_hello_slow");
                    return None;
                }
            }
        }
    }

    /// Another proxy of the mesh.
    async fn mesh(mut self, hello: &Hello, accepted: rustls::server::Accepted) -> Option<(Self, Step)> {
        let offers_http = hello.alpn.iter().any(|name| name == alpn::HTTP1 || name == alpn::HTTP2);
        let kind = if self.protocol != Protocol::Opaque && offers_http { PortKind::Http } else { PortKind::Opaque };
        if kind == PortKind::Opaque && self.called.is_none() {
            match self.worker.connector.connect_app(self.app).await {
                Ok(called) => self.called = Some(called),
                Err(error) => {
                    self.app_refused(&error);
                    return None;
                }
            }
        }
        let Some(config) = self.worker.shared.tls.server_config(kind) else {
            let detail = "this proxy has no certificate yet";
            refuse(&self.worker, IN, &self.conn.io, self.peer, self.app, "no_certificate", detail);
            return None;
        };
        let Io::Plain(stream) = self.conn.io else { return None };
        let handshake = StartHandshake::from_parts(accepted, stream).into_stream(config);
        let stream = match timeout(PATIENCE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.worker.shared.registry.proxy.tls_handshakes.inc([IN.as_str(), "failed"]);
                self.worker.refused(IN, "handshake_failed");
                tracing::warn!(direction = "inbound", peer = %self.peer, destination = %self.app, %error, "mutual TLS failed");
                return None;
            }
            Err(_) => {
                self.worker.refused(IN, "handshake_slow");
                return None;
            }
        };
        self.worker.shared.registry.proxy.tls_handshakes.inc([IN.as_str(), "ok"]);
        let session = stream.get_ref().1;
        let identity = tls::peer_identity(session);
        // A peer may offer nothing but HTTP to a port that is opaque: its bytes pass, and nobody looks into them.
        let spoken = tls::negotiated(session).filter(|_| kind == PortKind::Http);
        let opaque = !matches!(spoken, Some(Alpn::Http1 | Alpn::Http2));
        let protocol = match spoken {
            Some(Alpn::Http1) => "http",
            Some(Alpn::Http2) => "http2",
            Some(Alpn::Opaque) | None => "opaque",
        };
        self.conn = Conn::new(Io::Server(Box::new(stream)));
        let Some(identity) = identity else {
            reset(&self.conn.io);
            self.worker.refused(IN, "no_identity");
            return None;
        };
        self.worker.detected(IN, protocol, "alpn");
        Some((self, if opaque { Step::Opaque(Some(identity)) } else { Step::Http(Some(identity)) }))
    }

    /// What serves HTTP on this connection; `None` where it is refused.
    fn http(self, identity: Option<Identity>) -> Option<(Rc<Worker>, Conn, SocketAddr, Side)> {
        let admission = self.judge(identity);
        if admission.is_refused() {
            // Callers of the mesh get an answer to each request.
            if admission.principal().is_none() {
                tell_refused(&self.worker, &admission);
                reset(&self.conn.io);
                return None;
            }
        } else if let Some(called) = self.called {
            self.worker.pool.give_app(self.app, Conn::new(Io::Plain(called)), Instant::now());
        }
        let caller = Caller::new(&self.worker, admission);
        let side = Side::Inbound { port: self.port, app: self.app, caller };
        Some((self.worker, self.conn, self.peer, side))
    }

    /// Serves an opaque stream to its end.
    async fn opaque(mut self, identity: Option<Identity>) {
        let admission = self.judge(identity);
        if admission.is_refused() {
            tell_refused(&self.worker, &admission);
            return reset(&self.conn.io);
        }
        let called = match self.called.take() {
            Some(called) => called,
            None => match self.worker.connector.connect_app(self.app).await {
                Ok(called) => called,
                Err(error) => return self.app_refused(&error),
            },
        };
        let caller = Caller::new(&self.worker, admission);
        caller.introduced().await;
        opaque::to_app(&self.worker, &mut self.conn, called, self.peer, self.app, &self.port.service, &caller).await;
    }
}

/// True for a handshake of a sidecar of the mesh: it offers one of Istio's names.
fn is_mesh(hello: &Hello) -> bool {
    hello.alpn.iter().any(|name| [alpn::HTTP1, alpn::HTTP2, alpn::OPAQUE].contains(&name.as_slice()))
}
