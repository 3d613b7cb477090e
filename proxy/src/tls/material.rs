//! The certificate in use and the configurations made of it, swapped as one.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use rustc_hash::FxHashMap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{ResolvesClientCert, Resumption},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::{NoServerSessionStorage, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use weir_mesh::{Identity, TrustDomain};

use super::{
    alpn,
    error::{InstallError, PeerError},
    provider::provider,
    svid::{self, Side, Svid},
    verify::{Anchors, ClientIsOfMesh, ServerIs},
};

/// Client configurations kept in each of the two halves of the cache. One costs about 1 kB; a proxy that calls more
/// identities than this rebuilds some, at a few microseconds each.
const CACHE_HALF: usize = 512;

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1; falls back to opaque where the peer's port is opaque.
    Http1,
    /// HTTP/2; falls back like it.
    Http2,
    /// Bytes that nobody looks into.
    Opaque,
}

impl Alpn {
    fn offered(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => vec![alpn::HTTP1.to_vec(), alpn::OPAQUE.to_vec()],
            Self::Http2 => vec![alpn::HTTP2.to_vec(), alpn::OPAQUE.to_vec()],
            Self::Opaque => vec![alpn::OPAQUE.to_vec()],
        }
    }
}

/// What a port of this pod is, which decides the protocol that is picked of a caller's offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// Declared as HTTP, or undeclared: HTTP where the caller found HTTP, otherwise opaque.
    Http,
    /// Declared as opaque.
    Opaque,
}

impl PortKind {
    /// In the order of preference. What the port is not for is accepted last, so that a peer that thinks otherwise of the port (an
    /// older configuration, or an application that speaks HTTP/2) is served as opaque bytes instead of being turned away.
    fn accepted(self) -> Vec<Vec<u8>> {
        let names = match self {
            Self::Http => [alpn::HTTP2, alpn::HTTP1, alpn::OPAQUE],
            Self::Opaque => [alpn::OPAQUE, alpn::HTTP1, alpn::HTTP2],
        };
        names.map(<[u8]>::to_vec).to_vec()
    }
}

/// Public facts about the certificate in use, for `/certs`, metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFacts {
    /// Our leaf.
    pub svid: Svid,
    /// Certificates in the chain, leaf included.
    pub chain_length: usize,
    /// What peers are checked against.
    pub roots: Vec<RootFacts>,
    /// Counts installations, from 1.
    pub generation: u64,
}

/// Public facts about one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFacts {
    /// Subject, as text.
    pub subject: String,
    /// Until when, in seconds since 1970.
    pub not_after: i64,
    /// Serial number, as hexadecimal digits.
    pub serial: String,
}

/// Everything that is replaced together at rotation.
struct Material {
    facts: Arc<CertFacts>,
    certified: Arc<SingleCertAndKey>,
    anchors: Arc<Anchors>,
    http: Arc<ServerConfig>,
    opaque: Arc<ServerConfig>,
    clients: std::sync::Mutex<ClientCache>,
}

type ClientKey = (Identity, Alpn);

/// Two halves: a full new half becomes the old one, and what is still used moves over.
#[derive(Default)]
struct ClientCache {
    new: FxHashMap<ClientKey, Arc<ClientConfig>>,
    old: FxHashMap<ClientKey, Arc<ClientConfig>>,
}

/// The pod's side of mutual TLS. Cheap to clone; all clones see a rotation at once.
#[derive(Clone)]
pub struct MeshTls(Arc<Shared>);

struct Shared {
    domains: Arc<[TrustDomain]>,
    current: ArcSwapOption<Material>,
    generation: std::sync::atomic::AtomicU64,
    installing: std::sync::Mutex<()>,
}

impl MeshTls {
    /// Without a certificate yet: no configuration is handed out before [`Self::install`].
    pub fn new(own: TrustDomain) -> Self {
        Self::with_aliases(own, [])
    }

    /// Peers of these other trust domains are accepted as well. Every root may then speak for every one of the domains.
    pub fn with_aliases(own: TrustDomain, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self(Arc::new(Shared {
            domains: std::iter::once(own).chain(aliases).collect(),
            current: ArcSwapOption::empty(),
            generation: 0.into(),
            installing: std::sync::Mutex::default(),
        }))
    }

    /// Replaces certificate, key and roots as one. Handshakes under way finish with what they began with, open connections
    /// stay, new ones see only the new material. Client configurations made before are forgotten.
    ///
    /// The certificate is checked as peers will check it, so that a bad one never replaces a good one.
    ///
    /// # Errors
    /// What is wrong with the material; what was installed before stays in use.
    pub fn install(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<CertFacts>, InstallError> {
        let mut store = RootCertStore::empty();
        let mut root_facts = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            store.add(root.clone()).map_err(|source| InstallError::Root { index, source })?;
            root_facts.push(facts_of_root(root).map_err(|e| InstallError::Root { index, source: e.into() })?);
        }
        if store.is_empty() {
            return Err(InstallError::NoRoot);
        }
        let (leaf, intermediates) = chain.split_first().ok_or(InstallError::NoCertificate)?;
        let anchors = Arc::new(Anchors::new(store, self.0.domains.clone()).map_err(InstallError::Config)?);
        for side in [Side::Server, Side::Client] {
            anchors.check(leaf, intermediates, side, UnixTime::now()).map_err(InstallError::Own)?;
        }
        let svid = Svid::own(leaf)?;
        let chain_length = chain.len();
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(InstallError::Key)?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let http = server_config(&anchors, certified.clone(), PortKind::Http).map_err(InstallError::Config)?;
        let opaque = server_config(&anchors, certified.clone(), PortKind::Opaque).map_err(InstallError::Config)?;

        let _one_at_a_time = self.0.installing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let generation = self.0.generation.fetch_add(1, std::sync::atomic::Ordering::Relaxed).saturating_add(1);
        let facts = Arc::new(CertFacts { svid, chain_length, roots: root_facts, generation });
        self.0.current.store(Some(Arc::new(Material {
            facts: facts.clone(),
            certified,
            anchors,
            http,
            opaque,
            clients: std::sync::Mutex::default(),
        })));
        Ok(facts)
    }

    /// The configuration for a caller of one of the pod's ports; `None` before the first certificate.
    pub fn server_config(&self, port: PortKind) -> Option<Arc<ServerConfig>> {
        let current = self.0.current.load();
        let material = current.as_ref()?;
        Some(match port {
            PortKind::Http => material.http.clone(),
            PortKind::Opaque => material.opaque.clone(),
        })
    }

    /// The configuration to call one identity; `None` before the first certificate.
    ///
    /// The server name given to rustls is not sent and not looked at: only `expected` counts.
    pub fn client_config(&self, expected: &Identity, alpn: Alpn) -> Option<Arc<ClientConfig>> {
        let current = self.0.current.load();
        let material = current.as_ref()?;
        let key = (expected.clone(), alpn);
        let mut cache = material.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(config) = cache.new.get(&key) {
            return Some(config.clone());
        }
        let config = match cache.old.remove(&key) {
            Some(config) => config,
            None => client_config(&material.anchors, material.certified.clone(), expected, alpn).ok()?,
        };
        if cache.new.len() >= CACHE_HALF {
            cache.old = std::mem::take(&mut cache.new);
        }
        cache.new.insert(key, config.clone());
        Some(config)
    }

    /// Public facts about what is in use.
    pub fn facts(&self) -> Option<Arc<CertFacts>> {
        self.0.current.load().as_ref().map(|material| material.facts.clone())
    }

    /// Our own identity; `None` before the first certificate.
    pub fn identity(&self) -> Option<Identity> {
        self.0.current.load().as_ref().map(|material| material.facts.svid.identity.clone())
    }

    /// Counts installations; a pooled connection that remembers it can tell that it is older than the roots.
    pub fn generation(&self) -> u64 {
        self.0.current.load().as_ref().map_or(0, |material| material.facts.generation)
    }
}

impl fmt::Debug for MeshTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshTls").field("domains", &self.0.domains).field("facts", &self.facts()).finish()
    }
}

fn facts_of_root(root: &CertificateDer<'_>) -> Result<RootFacts, PeerError> {
    let certificate = svid::parse(root)?;
    Ok(RootFacts {
        subject: certificate.subject().to_string(),
        not_after: certificate.validity().not_after.timestamp(),
        serial: certificate.tbs_certificate.raw_serial_as_string(),
    })
}

fn server_config(
    anchors: &Arc<Anchors>,
    certified: Arc<dyn ResolvesServerCert>,
    port: PortKind,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientIsOfMesh { anchors: anchors.clone() }))
        .with_cert_resolver(certified);
    config.alpn_protocols = port.accepted();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn client_config(
    anchors: &Arc<Anchors>,
    certified: Arc<dyn ResolvesClientCert>,
    expected: &Identity,
    alpn: Alpn,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerIs { anchors: anchors.clone(), expected: expected.clone() }))
        .with_client_cert_resolver(certified);
    config.alpn_protocols = alpn.offered();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

impl CertFacts {
    /// Time until expiry, zero where it has passed.
    pub fn remaining(&self, now: UnixTime) -> Duration {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        Duration::from_secs(u64::try_from(self.svid.not_after.saturating_sub(now)).unwrap_or(0))
    }
}
