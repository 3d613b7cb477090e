//! A control plane between a proxy and the real one: all that the real one says goes through it, and a test may change it on the way. So
//! a proxy can be told what no manifest says yet.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{runtime::Runtime, sync::watch, task::AbortHandle};
use weir_xds::{
    Client, ConnectionState, Handler, Kind, Rejection, Resource, Subscriptions,
    ca::{Authority, CertificateRequest, CertificateService, create_certificate},
    endpoint,
    envoy::{cluster::Cluster, endpoint::ClusterLoadAssignment, route::RouteConfiguration},
    prost::Message,
    server::{AdsService, Catalog, Event, Inbox, Limits},
    tonic::{
        Status,
        metadata::MetadataMap,
        transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
    },
    wire::Node,
};

use crate::{
    certs::Certificate,
    until,
    world::{CONTROL_NAME, NODE, World, at},
};

/// Where it listens, on the node.
const PORT: u16 = 15099;
/// How long the real one may take to say something.
const PATIENCE: Duration = Duration::from_secs(10);

type Change = Box<dyn Fn(Kind, &str, &[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// The control plane between.
pub struct Patched {
    inner: Arc<Inner>,
    _runtime: Runtime,
}

struct Inner {
    root: String,
    changes: Mutex<Vec<Change>>,
    relays: Mutex<Vec<Arc<Relay>>>,
    /// Answers of ours, and how many of them were taken or refused.
    sent: AtomicUsize,
    answered: AtomicUsize,
    refusals: Mutex<Vec<String>>,
}

/// What the real one says to one proxy.
struct Relay {
    said: Mutex<HashMap<(Kind, String), Option<Resource>>>,
    more: Condvar,
    watchers: Mutex<HashSet<Watcher>>,
    /// The client wants its handler before it gives them away.
    subscriptions: OnceLock<Subscriptions>,
    client: Mutex<Option<AbortHandle>>,
}

#[derive(Clone)]
struct Watcher(Kind, Arc<str>, Arc<Inbox>);

impl PartialEq for Watcher {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 && self.1 == other.1 && Arc::ptr_eq(&self.2, &other.2)
    }
}

impl Eq for Watcher {}

impl std::hash::Hash for Watcher {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0, &self.1, Arc::as_ptr(&self.2)).hash(state);
    }
}

/// A proxy that is connected.
struct Caller {
    token: String,
    relay: Mutex<Option<Arc<Relay>>>,
}

impl Patched {
    /// Beside the control plane of a world. A pod asks it by [`crate::PodSpec::told_by`].
    pub fn new(world: &World) -> Self {
        let inner = Arc::new(Inner {
            root: world.root(),
            changes: Mutex::default(),
            relays: Mutex::default(),
            sent: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            refusals: Mutex::default(),
        });
        let node = world.node.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .on_thread_start(move || node.enter())
            .enable_all()
            .build()
            .unwrap();
        let certificate = Certificate::of_server(&world.path("ca"), CONTROL_NAME);
        let (certificate, key) = certificate.pem();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        let listener = world.node.listen(at(NODE, PORT));
        listener.set_nonblocking(true).unwrap();
        let (ads, ca) = (Arc::new(Ads(inner.clone())), Arc::new(Ca(inner.clone())));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (_shutdown, down) = watch::channel(false);
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(AdsService::new(ads, Limits::default(), down))
                .add_service(CertificateService::new(ca))
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
        });
        Self { inner, _runtime: runtime }
    }

    /// Where proxies find it.
    pub fn address(&self) -> SocketAddr {
        at(NODE, PORT)
    }

    /// Changes route configurations from now on.
    pub fn routes(&self, change: impl Fn(&mut RouteConfiguration) + Send + Sync + 'static) {
        self.change(Kind::Route, "", change);
    }

    /// Changes clusters with this text in their name from now on.
    pub fn clusters(&self, name: &str, change: impl Fn(&mut Cluster) + Send + Sync + 'static) {
        self.change(Kind::Cluster, name, change);
    }

    /// Changes endpoints of clusters with this text in their name from now on.
    pub fn endpoints(&self, name: &str, change: impl Fn(&mut ClusterLoadAssignment) + Send + Sync + 'static) {
        self.change(Kind::Endpoints, name, change);
    }

    /// Takes all changes back.
    pub fn reset(&self) {
        self.replace(|changes| changes.clear());
    }

    /// What proxies did not take, and why.
    pub fn refusals(&self) -> Vec<String> {
        self.inner.refusals.lock().unwrap().clone()
    }

    fn change<M: Message + Default>(&self, of: Kind, part: &str, change: impl Fn(&mut M) + Send + Sync + 'static) {
        let part = part.to_owned();
        self.replace(move |changes| {
            changes.push(Box::new(move |kind, name, body| {
                if kind != of || !name.contains(&part) {
                    return None;
                }
                let mut message = M::decode(body).unwrap();
                change(&mut message);
                Some(message.encode_to_vec())
            }));
        });
    }

    /// Replaces the changes and waits until the proxies have answered.
    fn replace(&self, work: impl FnOnce(&mut Vec<Change>)) {
        let inner = &self.inner;
        let relays = inner.relays.lock().unwrap().clone();
        let versions = || relays.iter().map(|relay| inner.versions(relay)).collect::<Vec<_>>();
        let all_answered = || inner.answered.load(SeqCst) >= inner.sent.load(SeqCst);
        until("what was said is answered", || all_answered().then_some(()));
        let (before, sent) = (versions(), inner.sent.load(SeqCst));
        work(&mut inner.changes.lock().unwrap());
        if before == versions() {
            return;
        }
        for relay in &relays {
            relay.tell(|_, _| true);
        }
        until("the proxies take the change", || (inner.sent.load(SeqCst) > sent && all_answered()).then_some(()));
    }
}

impl Inner {
    /// A resource as the proxy gets it.
    fn patched(&self, kind: Kind, resource: &Resource) -> Resource {
        let mut body = resource.body.to_vec();
        for change in self.changes.lock().unwrap().iter() {
            if let Some(changed) = change(kind, &resource.name, &body) {
                body = changed;
            }
        }
        let mut hash = DefaultHasher::new();
        body.hash(&mut hash);
        Resource { name: resource.name.clone(), version: hash.finish().to_string(), body: body.into() }
    }

    fn versions(&self, relay: &Relay) -> HashSet<(Kind, String, String)> {
        let said = relay.said.lock().unwrap();
        let known = said.iter().filter_map(|((kind, name), resource)| {
            Some((*kind, name.clone(), self.patched(*kind, resource.as_ref()?).version))
        });
        known.collect()
    }
}

impl Relay {
    fn tell(&self, about: impl Fn(Kind, &str) -> bool) {
        for Watcher(kind, name, inbox) in self.watchers.lock().unwrap().iter() {
            if about(*kind, name) {
                inbox.changed([(*kind, name.clone())]);
            }
        }
    }
}

/// Keeps what the real one says.
struct Hears(Arc<Relay>);

impl Handler for Hears {
    fn apply(&mut self, kind: Kind, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        let changed: Vec<(String, Option<Resource>)> = added
            .into_iter()
            .map(|resource| (resource.name.clone(), Some(resource)))
            .chain(removed.into_iter().map(|name| (name, None)))
            .collect();
        let names: HashSet<String> = changed.iter().map(|(name, _)| name.clone()).collect();
        self.0.said.lock().unwrap().extend(changed.into_iter().map(|(name, resource)| ((kind, name), resource)));
        self.0.more.notify_all();
        self.0.tell(|of, name| of == kind && names.contains(name));
        Vec::new()
    }

    fn connection(&mut self, _: ConnectionState) {}
}

fn bearer(metadata: &MetadataMap) -> Result<String, Status> {
    let value = metadata.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    value.map(str::to_owned).ok_or_else(|| Status::unauthenticated("no token"))
}

struct Ads(Arc<Inner>);

impl Ads {
    fn relay(caller: &Caller) -> Option<Arc<Relay>> {
        caller.relay.lock().unwrap().clone()
    }
}

impl Catalog for Ads {
    type Caller = Caller;

    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        Ok(Caller { token: bearer(metadata)?, relay: Mutex::default() })
    }

    fn admit(&self, caller: &Caller, node: &Node) -> Result<(), Status> {
        let (root, token) = (self.0.root.clone(), caller.token.clone());
        let address = World::control_address().to_string();
        let relay = Arc::new(Relay {
            said: Mutex::default(),
            more: Condvar::new(),
            watchers: Mutex::default(),
            subscriptions: OnceLock::new(),
            client: Mutex::default(),
        });
        let client = Client::new(
            move || endpoint(&address, CONTROL_NAME, &root).map_err(|error| error.to_string()),
            node.id.clone(),
            move || Ok::<_, String>(token.clone()),
            Hears(relay.clone()),
        );
        let _ = relay.subscriptions.set(client.subscriptions());
        *relay.client.lock().unwrap() = Some(tokio::spawn(client.run()).abort_handle());
        *caller.relay.lock().unwrap() = Some(relay.clone());
        self.0.relays.lock().unwrap().push(relay);
        Ok(())
    }

    fn valid_for(&self, _: &Caller) -> Duration {
        Duration::from_secs(3600)
    }

    /// Waits for the real one's word: what is not there when this returns counts as unknown.
    fn subscribe(&self, caller: &Caller, inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]) {
        let Some(relay) = Self::relay(caller) else { return };
        let wanted = names.iter().map(|name| Watcher(kind, name.clone(), inbox.clone()));
        relay.watchers.lock().unwrap().extend(wanted);
        for name in names {
            relay.subscriptions.get().unwrap().add(kind, name.to_string());
        }
        tokio::task::block_in_place(|| {
            let said = relay.said.lock().unwrap();
            let missing = |said: &mut HashMap<(Kind, String), _>| {
                names.iter().any(|name| !said.contains_key(&(kind, name.to_string())))
            };
            drop(relay.more.wait_timeout_while(said, PATIENCE, missing).unwrap());
        });
    }

    fn unsubscribe(&self, caller: &Caller, inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]) {
        let Some(relay) = Self::relay(caller) else { return };
        for name in names {
            relay.watchers.lock().unwrap().remove(&Watcher(kind, name.clone(), inbox.clone()));
            relay.subscriptions.get().unwrap().remove(kind, name.to_string());
            relay.said.lock().unwrap().remove(&(kind, name.to_string()));
        }
    }

    fn lookup(&self, caller: &Caller, kind: Kind, name: &str) -> Option<Arc<Resource>> {
        let relay = Self::relay(caller)?;
        let resource = relay.said.lock().unwrap().get(&(kind, name.to_owned())).cloned().flatten()?;
        Some(Arc::new(self.0.patched(kind, &resource)))
    }

    fn close(&self, caller: &Caller, _: &Arc<Inbox>, _: Vec<(Kind, Arc<str>)>) {
        let Some(relay) = Self::relay(caller) else { return };
        if let Some(client) = relay.client.lock().unwrap().take() {
            client.abort();
        }
        self.0.relays.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &relay));
    }

    fn event(&self, _: &Caller, event: Event<'_>) {
        match event {
            Event::Acked { .. } => {
                self.0.answered.fetch_add(1, SeqCst);
            }
            Event::Nacked { reason, .. } => {
                self.0.refusals.lock().unwrap().push(reason.to_owned());
                self.0.answered.fetch_add(1, SeqCst);
            }
            Event::Sent { .. } => {
                self.0.sent.fetch_add(1, SeqCst);
            }
            Event::Refused { .. } => {}
        }
    }
}

struct Ca(Arc<Inner>);

impl Authority for Ca {
    async fn create(&self, metadata: &MetadataMap, request: CertificateRequest) -> Result<Vec<String>, Status> {
        let endpoint = endpoint(&World::control_address().to_string(), CONTROL_NAME, &self.0.root);
        let channel = endpoint.map_err(|error| Status::internal(error.to_string()))?.connect_lazy();
        let validity = Duration::from_secs(request.validity_seconds.try_into().unwrap_or_default());
        create_certificate(channel, &bearer(metadata)?, request.csr, validity).await
    }
}
