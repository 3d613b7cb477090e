//! Weir's control plane: discovery, translation and certificates.
//!
//! ```text
//! source (directory | Kubernetes) -> world (services, pods, endpoints, routes) -> translate -> catalog -> delta streams
//! token -> auth -> catalog, ca                                                               CSR -> ca -> certificate
//! ```
//!
//! Stateless but for the CA's key: what it serves is a function of its source, and versions are hashes of the content, so that
//! any number of replicas answer alike and a restart resends nothing.

pub mod admin;
pub mod auth;
pub mod ca;
pub mod catalog;
pub mod metrics;
pub mod serve;
pub mod settings;
pub mod source;
pub mod translate;
pub mod world;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use weir_config::model::Name;

use crate::{
    auth::TokenVerifier,
    ca::{CertificateAuthority, Issuing},
    catalog::Catalog,
    metrics::Metrics,
    settings::Settings,
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
}

impl ControlPlane {
    /// Reads keys and certificates, binds the ports and begins to serve. Proxies are answered once the source is read.
    ///
    /// # Errors
    /// Where a file, a key or a port can not be used; the text names it and says what to do.
    pub async fn start(settings: Settings, shutdown: watch::Receiver<bool>) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let authority = Arc::new(CertificateAuthority::open(&settings.ca_dir, &settings.trust_domain)?);
        let verifier = Arc::new(TokenVerifier::from_pem(
            &settings.token_key,
            &settings.token_issuer,
            settings.trust_domain.clone(),
        )?);
        let catalog = Arc::new(Catalog::new(
            translate::Mesh {
                trust_domain: settings.trust_domain.clone(),
                cluster_domain: settings.cluster_domain.clone(),
            },
            verifier,
            metrics.clone(),
        ));

        let directory = Directory::open(&settings.config_dir)?;
        let (changes, mut batches) = mpsc::channel(source::BACKLOG);
        tokio::spawn(directory.run(changes));
        let follower = catalog.clone();
        tokio::spawn(async move {
            while let Some(batch) = batches.recv().await {
                follower.apply(batch);
            }
        });
        let longest = Duration::from_secs(settings.certificate_ttl);
        let issuing = Arc::new(Issuing::new(authority.clone(), longest, catalog.clone(), metrics.clone()));
        let serving = serve::Serving::start(&settings, &authority, catalog, issuing, metrics, shutdown).await?;
        Ok(Self { address: serving.address, admin: serving.admin, serving })
    }

    /// Serves until the shutdown that was handed to [`ControlPlane::start`], and until open streams were told.
    ///
    /// # Errors
    /// Where a server ended by itself.
    pub async fn run(self) -> anyhow::Result<()> {
        self.serving.wait().await
    }
}

/// A pod's name as xDS node ids have it: `POD.NAMESPACE`.
pub fn node_id(pod: &Name) -> String {
    format!("{}.{}", pod.name, pod.namespace)
}
