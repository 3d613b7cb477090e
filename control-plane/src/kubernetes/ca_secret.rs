//! The CA in a Secret: made where there is none, followed when it changes.
//!
//! Whoever creates the Secret first has made the CA; the API server lets no second one. A Secret that is deleted while replicas
//! run is put back by them: a new CA would be trusted by no proxy that runs.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use weir_mesh::TrustDomain;

use super::{
    MANAGED_BY, MANAGER,
    backoff::Backoff,
    code, explain,
    one::{One, Seen},
};
use crate::ca::{CertificateAuthority, KEY_FILE};

/// The Secret.
pub(super) const NAME: &str = "weir-ca";
/// Its certificates: the one of the key, and others that proxies are to trust as well.
const CERTIFICATES: &str = "ca-cert.pem";

/// Opens the CA; makes it where there is none. Waits for the API server as long as it takes.
///
/// # Errors
/// Where the Secret is there, but holds no CA.
pub(crate) async fn open(
    client: &Client,
    namespace: &str,
    domain: &TrustDomain,
) -> anyhow::Result<CertificateAuthority> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut backoff = Backoff::default();
    loop {
        let error = match api.get_opt(NAME).await {
            Ok(Some(secret)) => {
                let (key, certificates) = content(&secret).map_err(anyhow::Error::msg).with_context(|| {
                    format!("Secret {namespace}/{NAME}: put a CA there, or delete it to have one made")
                })?;
                return CertificateAuthority::from_pem(&key, &certificates).with_context(|| {
                    format!("Secret {namespace}/{NAME}: put a CA there, or delete it to have one made")
                });
            }
            Ok(None) => {
                let (key, certificate) = CertificateAuthority::generate(domain)?;
                match api
                    .create(
                        &PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() },
                        &secret(&key, &certificate),
                    )
                    .await
                {
                    Ok(_) => {
                        tracing::info!(namespace, secret = NAME, "a CA was made");
                        continue;
                    }
                    // Another replica was first: its CA is the one.
                    Err(error) if code(&error) == 409 => continue,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let pause = backoff.next();
        tracing::error!(
            namespace,
            secret = NAME,
            reason = explain(&error),
            "the CA can not be read or made; trying again"
        );
        tokio::time::sleep(pause).await;
    }
}

/// Follows the Secret; puts it back when it is deleted.
pub(super) async fn keep(client: Client, namespace: String, authority: Arc<CertificateAuthority>) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let mut one = One::follow(api.clone(), NAME);
    let mut backoff = Backoff::default();
    loop {
        one.changed().await;
        match one.now() {
            Seen::Unknown => {}
            Seen::There(secret) => {
                backoff.reset();
                let replaced = content(&secret)
                    .map_err(anyhow::Error::msg)
                    .and_then(|(key, certificates)| authority.replace(&key, &certificates));
                match replaced {
                    Ok(true) => tracing::info!(namespace, secret = NAME, "the CA or its bundle has changed"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::error!(
                            namespace,
                            secret = NAME,
                            "the changed CA can not be used, the one before stays: {error:#}"
                        );
                    }
                }
            }
            Seen::Absent => {
                let (key, certificates) = authority.to_pem();
                match api.create(&PostParams::default(), &secret(&key, &certificates)).await {
                    Ok(_) => tracing::warn!(namespace, secret = NAME, "the CA's Secret was deleted and is put back"),
                    Err(error) if code(&error) == 409 => {}
                    Err(error) => {
                        tracing::error!(
                            namespace,
                            secret = NAME,
                            reason = explain(&error),
                            "the CA's Secret was deleted and can not be put back"
                        );
                        tokio::time::sleep(backoff.next()).await;
                        one = One::follow(api.clone(), NAME);
                    }
                }
            }
        }
    }
}

fn content(secret: &Secret) -> Result<(String, String), String> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| format!("{key} is missing"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| format!("{key} is not PEM"))
    };
    Ok((text(KEY_FILE)?, text(CERTIFICATES)?))
}

fn secret(key: &str, certificates: &str) -> Secret {
    let data = [(KEY_FILE, key), (CERTIFICATES, certificates)];
    Secret {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: Some(BTreeMap::from([(MANAGED_BY.0.into(), MANAGED_BY.1.into())])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        data: Some(
            data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect(),
        ),
        ..Secret::default()
    }
}
