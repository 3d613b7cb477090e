//! A control plane in the test's own process: a catalog in memory behind the real server, over TLS, and a proxy for its
//! connections that can go silent.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tonic::{
    Status,
    metadata::MetadataMap,
    transport::{Endpoint, Identity, Server, ServerTlsConfig},
};
use weir_xds::{
    Client, ConnectionState, Handler, Kind, Rejection, Resource, Subscriptions,
    client::Timing,
    endpoint,
    server::{AdsService, Catalog, Event, Inbox, Limits},
    wire::Node,
};

pub const TOKEN: &str = "good-token";
pub const NODE: &str = "pod.shop";

type Watchers = HashMap<(Kind, Arc<str>), Vec<Arc<Inbox>>>;

#[derive(Default)]
pub struct Memory {
    resources: Mutex<HashMap<(Kind, String), Arc<Resource>>>,
    watchers: Mutex<Watchers>,
    pub sent: AtomicUsize,
    pub removed: AtomicUsize,
    pub refused: AtomicUsize,
    pub streams: AtomicUsize,
    pub nacks: Mutex<Vec<String>>,
}

impl Memory {
    pub fn set(&self, kind: Kind, name: &str, body: &str) {
        let resource =
            Resource { name: name.into(), version: format!("v-{body}"), body: body.as_bytes().to_vec().into() };
        self.resources.lock().unwrap().insert((kind, name.into()), Arc::new(resource));
        self.notify(kind, name);
    }

    pub fn remove(&self, kind: Kind, name: &str) {
        self.resources.lock().unwrap().remove(&(kind, name.into()));
        self.notify(kind, name);
    }

    fn notify(&self, kind: Kind, name: &str) {
        let name: Arc<str> = name.into();
        for inbox in self.watchers.lock().unwrap().get(&(kind, name.clone())).into_iter().flatten() {
            inbox.changed([(kind, name.clone())]);
        }
    }

    pub fn watched(&self) -> usize {
        self.watchers.lock().unwrap().values().map(Vec::len).sum()
    }
}

impl Catalog for Memory {
    type Caller = ();

    async fn authenticate(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let token = metadata.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if token != format!("Bearer {TOKEN}") {
            return Err(Status::unauthenticated("no such token"));
        }
        self.streams.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn admit(&self, (): &(), node: &Node) -> Result<(), Status> {
        if node.id == NODE { Ok(()) } else { Err(Status::permission_denied("another pod")) }
    }

    fn valid_for(&self, (): &()) -> Duration {
        Duration::from_secs(3600)
    }

    fn subscribe(&self, (): &(), inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]) {
        let mut watchers = self.watchers.lock().unwrap();
        for name in names {
            watchers.entry((kind, name.clone())).or_default().push(inbox.clone());
        }
    }

    fn unsubscribe(&self, (): &(), inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]) {
        let mut watchers = self.watchers.lock().unwrap();
        for name in names {
            watchers.entry((kind, name.clone())).or_default().retain(|other| !Arc::ptr_eq(other, inbox));
        }
    }

    fn lookup(&self, (): &(), kind: Kind, name: &str) -> Option<Arc<Resource>> {
        self.resources.lock().unwrap().get(&(kind, name.to_owned())).cloned()
    }

    fn close(&self, caller: &(), inbox: &Arc<Inbox>, names: Vec<(Kind, Arc<str>)>) {
        for (kind, name) in names {
            self.unsubscribe(caller, inbox, kind, &[name]);
        }
    }

    fn event(&self, (): &(), event: Event<'_>) {
        match event {
            Event::Sent { resources, removed, .. } => {
                self.sent.fetch_add(resources, Ordering::SeqCst);
                self.removed.fetch_add(removed, Ordering::SeqCst);
            }
            Event::Nacked { reason, .. } => self.nacks.lock().unwrap().push(reason.to_owned()),
            Event::Refused { names, .. } => {
                self.refused.fetch_add(names, Ordering::SeqCst);
            }
            Event::Acked { .. } => {}
        }
    }
}

/// A root and a serving certificate that it signed.
pub struct Tls {
    pub root: String,
    identity: Identity,
}

impl Tls {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf =
            rcgen::CertificateParams::new(vec!["control.test".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        Self { root, identity: Identity::from_pem(leaf.pem(), key.serialize_pem()) }
    }
}

pub struct Replica {
    pub address: SocketAddr,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Replica {
    pub async fn start(memory: &Arc<Memory>, tls: &Tls, limits: Limits) -> Self {
        Self::start_at(memory, tls, limits, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(memory: &Arc<Memory>, tls: &Tls, limits: Limits, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, down) = watch::channel(false);
        let service = AdsService::new(memory.clone(), limits, down.clone());
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(tls.identity.clone()))
            .unwrap()
            .add_service(service);
        let mut down = down;
        let task = tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let end = async move {
                down.wait_for(|down| *down).await.ok();
            };
            server.serve_with_incoming_shutdown(incoming, end).await.unwrap();
        });
        Self { address, shutdown, task }
    }

    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .expect("shutdown took longer than 10 s")
            .unwrap();
    }
}

/// What the handler saw.
#[derive(Debug, PartialEq)]
pub enum Seen {
    Added(Kind, String, String),
    Removed(Kind, String),
    Connected,
    Lost(String),
}

pub struct Recorder {
    seen: mpsc::UnboundedSender<Seen>,
    /// Resources with this content are refused.
    refuse: &'static str,
}

impl Handler for Recorder {
    fn apply(&mut self, kind: Kind, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for resource in added {
            let body = String::from_utf8_lossy(&resource.body).into_owned();
            if body == self.refuse {
                rejections.push(Rejection { name: resource.name, reason: "is not understood".into() });
            } else {
                self.seen.send(Seen::Added(kind, resource.name, body)).ok();
            }
        }
        for name in removed {
            self.seen.send(Seen::Removed(kind, name)).ok();
        }
        rejections
    }

    fn connection(&mut self, state: ConnectionState) {
        let seen = match state {
            ConnectionState::Connected => Seen::Connected,
            ConnectionState::Disconnected { reason, .. } => Seen::Lost(reason),
        };
        self.seen.send(seen).ok();
    }
}

pub struct Proxy {
    pub names: Subscriptions,
    pub seen: mpsc::UnboundedReceiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn quick() -> Timing {
    Timing {
        keep_alive: Duration::from_millis(500),
        keep_alive_timeout: Duration::from_millis(500),
        ..Timing::default()
    }
}

impl Proxy {
    pub fn start(address: SocketAddr, root: &str) -> Self {
        Self::with(Arc::new(Mutex::new(address)), root, NODE, TOKEN, quick())
    }

    /// `address` is read for every connection.
    pub fn with(address: Arc<Mutex<SocketAddr>>, root: &str, node: &str, token: &'static str, timing: Timing) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let root = root.to_owned();
        let endpoints = move || -> Result<Endpoint, weir_xds::ChannelError> {
            endpoint(&address.lock().unwrap().to_string(), "control.test", &root)
        };
        let tokens = move || -> Result<String, std::io::Error> { Ok(token.to_owned()) };
        let client = Client::new(endpoints, node, tokens, Recorder { seen: sender, refuse: "bad" }).timing(timing);
        let names = client.subscriptions();
        Self { names, seen, task: tokio::spawn(client.run()) }
    }

    pub async fn next(&mut self) -> Seen {
        tokio::time::timeout(Duration::from_secs(20), self.seen.recv()).await.expect("nothing within 20 s").unwrap()
    }

    pub async fn added(&mut self) -> (String, String) {
        match self.next().await {
            Seen::Added(_, name, body) => (name, body),
            other => panic!("expected a resource, got {other:?}"),
        }
    }

    pub async fn removed(&mut self) -> String {
        match self.next().await {
            Seen::Removed(_, name) => name,
            other => panic!("expected a removal, got {other:?}"),
        }
    }

    pub async fn connected(&mut self) {
        loop {
            match self.next().await {
                Seen::Connected => return,
                Seen::Lost(_) => {}
                other => panic!("expected a connection, got {other:?}"),
            }
        }
    }

    pub async fn lost(&mut self) -> String {
        match self.next().await {
            Seen::Lost(reason) => reason,
            other => panic!("expected the loss of the connection, got {other:?}"),
        }
    }

    pub async fn collect(&mut self, number: usize) -> HashSet<String> {
        let mut names = HashSet::new();
        while names.len() < number {
            match self.next().await {
                Seen::Added(_, name, _) | Seen::Removed(_, name) => names.insert(name),
                other => panic!("expected resources, got {other:?}"),
            };
        }
        names
    }
}

/// Forwards connections; on command it keeps them open and forwards nothing.
pub struct BlackHole {
    pub address: SocketAddr,
    silent: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl BlackHole {
    pub async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = Arc::new(AtomicBool::new(false));
        let flag = silent.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let flag = flag.clone();
                tokio::spawn(async move {
                    let server = TcpStream::connect(target).await.unwrap();
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    tokio::join!(pump(client_read, server_write, flag.clone()), pump(server_read, client_write, flag));
                });
            }
        });
        Self { address, silent, task }
    }

    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    silent: Arc<AtomicBool>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(n) = from.read(&mut buffer).await else { return };
        if n == 0 {
            return;
        }
        if !silent.load(Ordering::SeqCst) && to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// Waits until something holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
