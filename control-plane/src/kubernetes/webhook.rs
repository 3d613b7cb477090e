//! What the API server and the webhook need to trust each other: the webhook's serving certificate in a Secret, and the roots as
//! `caBundle` of its configurations. The chart makes neither, so that no upgrade of it can blank them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
        },
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep_until};
use weir_mesh::names::WEBHOOK_SERVICE;

use super::{
    MANAGED_BY, MANAGER,
    backoff::Backoff,
    code, explain,
    one::{One, Seen},
};
use crate::ca::{CertificateAuthority, Pair};

/// The Secret.
pub(super) const NAME: &str = "weir-webhook-tls";
/// A certificate holds this long and is replaced at half of it, so that pods can still be made when the control plane was away for
/// weeks. It is for one server in the cluster, and its key never leaves the Secret.
const TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest time between two looks at a certificate: clocks are set, machines sleep.
const LOOK: Duration = Duration::from_secs(3600);

/// Keeps the certificate: makes it, renews it at half its life, and makes it anew at once where it has expired, is broken, or of
/// another root.
pub(super) async fn keep_certificate(client: Client, namespace: String, authority: Arc<CertificateAuthority>) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let service = format!("{WEBHOOK_SERVICE}.{namespace}");
    let names = [format!("{service}.svc"), service];
    let mut one = One::follow(api.clone(), NAME);
    let mut root = authority.changes();
    let mut backoff = Backoff::default();
    loop {
        let written = match one.now() {
            Seen::Unknown => Ok(LOOK),
            Seen::Absent => write(&api, None, &authority, &names).await,
            Seen::There(secret) => match pair(&secret).and_then(|pair| authority.usable_for(&pair, &names)) {
                Some(left) => Ok(left.min(LOOK)),
                None => write(&api, Some(secret), &authority, &names).await,
            },
        };
        let wait = match written {
            Ok(wait) => {
                backoff.reset();
                wait
            }
            Err(reason) => {
                tracing::error!(
                    namespace,
                    secret = NAME,
                    reason,
                    "the webhook's certificate can not be written; trying again"
                );
                backoff.next()
            }
        };
        tokio::select! {
            () = one.changed() => {}
            () = root.next() => {}
            () = sleep_until(Instant::now() + wait) => {}
        }
    }
}

fn pair(secret: &Secret) -> Option<Pair> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Some(Pair { certificate: text("tls.crt")?, key: text("tls.key")? })
}

/// Writes a new certificate over the version that was seen, so that of several replicas one wins.
async fn write(
    api: &Api<Secret>,
    old: Option<Secret>,
    authority: &CertificateAuthority,
    names: &[String],
) -> Result<Duration, String> {
    let pair = authority.server_pair(names, TTL).map_err(|error| error.to_string())?;
    let data = BTreeMap::from([
        ("tls.crt".to_owned(), ByteString(pair.certificate.into_bytes())),
        ("tls.key".to_owned(), ByteString(pair.key.into_bytes())),
    ]);
    let parameters = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let result = match old {
        None => {
            let labels = BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())]);
            let metadata = ObjectMeta { name: Some(NAME.into()), labels: Some(labels), ..ObjectMeta::default() };
            let type_ = Some("kubernetes.io/tls".to_owned());
            api.create(&parameters, &Secret { metadata, type_, data: Some(data), ..Secret::default() }).await
        }
        Some(mut secret) => {
            secret.data = Some(data);
            api.replace(NAME, &parameters, &secret).await
        }
    };
    match result {
        Ok(_) => {
            tracing::info!(secret = NAME, "the webhook has a new certificate");
            Ok(LOOK)
        }
        // Another replica was first; the watch tells what it wrote.
        Err(error) if matches!(code(&error), 404 | 409) => Ok(LOOK),
        Err(error) => Err(explain(&error)),
    }
}

/// A configuration that tells API servers of the webhook.
pub(super) trait Configuration:
    kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
    /// Of all that exist, ours.
    const NAME: &'static str;

    /// Name of each entry, and how it is called.
    fn entries(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)>;
}

/// What asks for pods.
impl Configuration for MutatingWebhookConfiguration {
    const NAME: &'static str = "weir-webhook";

    fn entries(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|entry| (&*entry.name, &entry.client_config))
    }
}

/// What asks for access rules.
impl Configuration for ValidatingWebhookConfiguration {
    const NAME: &'static str = "weir-rules";

    fn entries(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|entry| (&*entry.name, &entry.client_config))
    }
}

/// Keeps `caBundle` of every entry of a configuration equal to the mesh's roots.
pub(super) async fn keep_bundle<C: Configuration>(client: Client, authority: Arc<CertificateAuthority>) {
    let api: Api<C> = Api::all_with(client, &());
    let kind = C::kind(&());
    let mut one = One::follow(api.clone(), C::NAME);
    let mut root = authority.changes();
    let mut backoff = Backoff::default();
    loop {
        let mut wait = LOOK;
        if let Seen::There(configuration) = one.now()
            && let Some(patch) = bundle_patch(&configuration, &authority.roots())
        {
            // By the entries' names: nothing else of them is touched, and an entry that is gone by now is not made again.
            let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            match api.patch(C::NAME, &parameters, &Patch::Strategic(&patch)).await {
                Ok(_) => {
                    backoff.reset();
                    tracing::info!(%kind, configuration = C::NAME, "caBundle was written");
                }
                Err(error) => {
                    tracing::error!(
                        %kind,
                        configuration = C::NAME,
                        reason = explain(&error),
                        "caBundle can not be written; trying again"
                    );
                    wait = backoff.next();
                }
            }
        }
        tokio::select! {
            () = one.changed() => {}
            () = root.next() => {}
            () = sleep_until(Instant::now() + wait) => {}
        }
    }
}

/// What must change; `None` where nothing differs.
fn bundle_patch<C: Configuration>(configuration: &C, roots: &str) -> Option<Json> {
    let bundle = ByteString(roots.as_bytes().to_vec());
    let changes: Vec<Json> = configuration
        .entries()
        .filter(|(_, called)| called.ca_bundle.as_ref() != Some(&bundle))
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    let version = &configuration.meta().resource_version;
    (!changes.is_empty()).then(|| json!({"metadata": {"resourceVersion": version}, "webhooks": changes}))
}
