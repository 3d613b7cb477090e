//! Weir's control plane: discovery, translation and certificates.
//!
//! ```text
//! source (directory | Kubernetes) -> world (services, pods, endpoints, routes, policies) -> translate -> catalog -> delta streams
//! token -> auth -> catalog, ca                                                               CSR -> ca -> certificate
//! ```
//!
//! Stateless but for the CA's key: what it serves is a function of its source, and versions are hashes of the content, so that
//! any number of replicas answer alike and a restart resends nothing.

pub mod admin;
pub mod ask;
pub mod auth;
pub mod ca;
pub mod catalog;
pub mod describe;
mod kubernetes;
pub use kubernetes::{Remove, remove};
pub mod metrics;
pub mod policy;
pub mod serve;
pub mod settings;
pub mod source;
pub mod translate;
mod verdict;
pub mod world;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use weir_config::model::Name;

use crate::{
    auth::{Callers, Reviews, TokenVerifier},
    ca::{CertificateAuthority, Issuing},
    catalog::Catalog,
    kubernetes::{Books, Keepers, Kubernetes, TokenReviews},
    metrics::Metrics,
    settings::{Mode, Settings},
    source::{Source as _, directory::Directory},
};

/// A control plane that serves. Dropping it does not end it; [`ControlPlane::run`] does.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where proxies connect.
    pub address: std::net::SocketAddr,
    /// Where people and scrapers look, if anywhere.
    pub admin: Option<std::net::SocketAddr>,
    serving: serve::Serving,
    keepers: Option<Keepers>,
}

impl ControlPlane {
    /// Reads keys and certificates, binds the ports and begins to serve. Proxies are answered once the source is read.
    ///
    /// # Errors
    /// Where a file, a key or a port can not be used; the text names it and says what to do.
    pub async fn start(settings: Settings, shutdown: watch::Receiver<bool>) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let mode = settings.mode().map_err(anyhow::Error::msg)?;
        let (changes, mut batches) = mpsc::channel(source::BACKLOG);
        let domain = &settings.trust_domain;
        let (authority, callers, cluster) = match mode {
            Mode::Directory { config, ca, token_key, token_issuer } => {
                let authority = Arc::new(CertificateAuthority::open(ca, domain)?);
                let verifier = TokenVerifier::from_pem(token_key, token_issuer, domain.clone())?;
                tokio::spawn(Directory::open(config)?.run(changes));
                (authority, Callers::Key(verifier), None)
            }
            Mode::Kubernetes => {
                let client = kubernetes::connect(settings.kubeconfig.as_deref()).await?;
                let books = Books::new();
                let source = Kubernetes::new(client.clone(), books.clone(), metrics.clone());
                // The first reading and the CA do not wait for each other.
                tokio::spawn(source.run(changes));
                let mut down = shutdown.clone();
                let authority = tokio::select! {
                    authority = kubernetes::ca_secret::open(&client, &settings.namespace, domain) => Arc::new(authority?),
                    _ = down.wait_for(|down| *down) => anyhow::bail!("stopped before the CA was read"),
                };
                let audience = settings.token_audience.clone();
                let reviews = TokenReviews::new(client.clone(), audience, domain.clone(), metrics.clone());
                (authority, Callers::Reviews(Reviews(reviews)), Some((client, books)))
            }
        };
        let catalog = Arc::new(Catalog::new(
            translate::Mesh { trust_domain: domain.clone(), cluster_domain: settings.cluster_domain.clone() },
            Arc::new(callers),
            metrics.clone(),
        ));
        catalog.set_root_namespace(&settings.namespace);
        let follower = catalog.clone();
        tokio::spawn(async move {
            while let Some(batch) = batches.recv().await {
                follower.apply(batch);
            }
        });
        let keepers = cluster.map(|(client, books)| {
            Keepers::start(&client, &settings, &authority, &catalog, books, &metrics, shutdown.clone())
        });
        let longest = Duration::from_secs(settings.certificate_ttl);
        let issuing = Arc::new(Issuing::new(authority.clone(), longest, catalog.clone(), metrics.clone()));
        let serving = serve::Serving::start(&settings, &authority, catalog, issuing, metrics, shutdown).await?;
        Ok(Self { address: serving.address, admin: serving.admin, serving, keepers })
    }

    /// Serves until the shutdown that was handed to [`ControlPlane::start`], and until open streams were told.
    ///
    /// # Errors
    /// Where a server ended by itself.
    pub async fn run(self) -> anyhow::Result<()> {
        let ended = self.serving.wait().await;
        if let Some(keepers) = self.keepers {
            keepers.end().await;
        }
        ended
    }
}

/// A pod's name as xDS node ids have it: `POD.NAMESPACE`.
pub fn node_id(pod: &Name) -> String {
    format!("{}.{}", pod.name, pod.namespace)
}
