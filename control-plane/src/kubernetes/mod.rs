//! Everything that talks to the API server: the source of objects, the reviews of callers' tokens, and the few objects that the
//! control plane keeps there itself.
//!
//! | object | who writes it |
//! | --- | --- |
//! | Secret with the CA | whichever replica is first |
//! | ConfigMap with the roots, in each mesh namespace | any replica, the same content |
//! | Secret with the webhook's certificate, `caBundle` of its configurations | any replica, by version |
//! | Lease | the leader |
//! | status of routes and policies | the leader |
//! | events of pods whose proxy has ended | any replica, once by their names |

mod backoff;
pub(crate) mod ca_secret;
mod ended;
mod kinds;
mod lease;
mod one;
mod remove;
mod review;
mod roots;
mod source;
mod status;
mod watch;
mod webhook;

pub use remove::{Remove, remove};
pub(crate) use review::TokenReviews;
pub(crate) use source::Kubernetes;
pub(crate) use status::Books;

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use tokio::{
    sync::watch as state,
    task::{JoinHandle, JoinSet},
};

use crate::{
    ca::CertificateAuthority,
    catalog::Catalog,
    metrics::Metrics,
    settings::{Settings, WebhookCertificate},
};

/// Field manager of all writes.
const MANAGER: &str = "weir-control";
/// Label of all objects that the control plane makes.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weir-control");

/// A client for the API server: of the pod that this is, or as a kubeconfig says.
///
/// # Errors
/// Where neither is there, or can not be read.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        None => Config::incluster().context(
            "this is no pod with a service account (no token, or KUBERNETES_SERVICE_HOST is not set): give --kubeconfig",
        )?,
        Some(file) => {
            let read = Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {}", file.display()))?
        }
    };
    Client::try_from(config).context("the API server's address or certificates can not be used")
}

/// An error of the API server in one line.
fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                cause = error.source();
            }
            text
        }
    }
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// What keeps the control plane's own objects.
#[derive(Debug)]
pub(crate) struct Keepers {
    tasks: JoinSet<()>,
    lease: JoinHandle<()>,
}

impl Keepers {
    /// Begins to keep them, until [`Keepers::end`].
    pub(crate) fn start(
        client: &Client,
        settings: &Settings,
        authority: &Arc<CertificateAuthority>,
        catalog: &Arc<Catalog>,
        books: Books,
        metrics: &Arc<Metrics>,
        shutdown: state::Receiver<bool>,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let namespace = || settings.namespace.clone();
        tasks.spawn(ca_secret::keep(client.clone(), namespace(), authority.clone()));
        tasks.spawn(roots::keep(client.clone(), authority.clone(), catalog.clone()));
        if settings.webhook_certificate == WebhookCertificate::Managed {
            tasks.spawn(webhook::keep_certificate(client.clone(), namespace(), authority.clone()));
            tasks.spawn(webhook::keep_bundle::<MutatingWebhookConfiguration>(client.clone(), authority.clone()));
            tasks.spawn(webhook::keep_bundle::<ValidatingWebhookConfiguration>(client.clone(), authority.clone()));
        }
        let (leading, leads) = state::channel(false);
        let replica = lease::replica(&settings.replica);
        let lease = tokio::spawn(lease::run(client.clone(), namespace(), replica, leading, shutdown, metrics.clone()));
        tasks.spawn(status::keep(client.clone(), leads.clone(), books.routes, catalog.clone()));
        tasks.spawn(status::keep(client.clone(), leads, books.policies, catalog.clone()));
        Self { tasks, lease }
    }

    /// Ends them; the lease is handed over.
    pub(crate) async fn end(mut self) {
        self.tasks.abort_all();
        if let Err(error) = self.lease.await {
            tracing::warn!(%error, "the lease was not handed over");
        }
    }
}
