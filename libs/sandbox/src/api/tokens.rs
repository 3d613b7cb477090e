//! Tokens of service accounts, as a Kubernetes API server issues them.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::api::core::v1::Pod;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

/// Issuer in the tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Why no token could be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No key.
    #[error("key for tokens: {0}")]
    Key(#[from] rcgen::Error),
    /// Not signed.
    #[error("token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Whom a token is for.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub account: String,
    /// Pod name.
    pub pod: String,
    /// Pod uid.
    pub uid: String,
}

impl Subject {
    /// The pod itself, with its service account.
    pub fn of(pod: &Pod) -> Self {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            account: account.unwrap_or_else(|| "default".into()),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

/// Signs tokens with a key made for this sandbox.
pub struct TokenIssuer {
    key: EncodingKey,
    public: String,
    /// Part of the service accounts' ids.
    salt: String,
}

impl TokenIssuer {
    /// An issuer with a new P-256 key.
    ///
    /// # Errors
    /// Where the key can not be made.
    pub fn new() -> Result<Self, TokenError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        Ok(Self { key, public: pair.public_key_pem(), salt: crate::util::uuid() })
    }

    /// Public key as PEM (SubjectPublicKeyInfo), for who checks the tokens.
    pub fn public_pem(&self) -> &str {
        &self.public
    }

    /// Signs a token bound to a pod.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn sign(&self, subject: &Subject, audience: &str, seconds: u64, now: u64) -> Result<String, TokenError> {
        let audience = if audience.is_empty() { ISSUER } else { audience };
        let Subject { namespace, account, pod, uid } = subject;
        let account_uid = self.account_uid(namespace, account);
        let claims = json!({
            "aud": [audience],
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(seconds),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": pod, "uid": uid},
                "serviceaccount": {"name": account, "uid": account_uid},
            },
        });
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)?)
    }

    /// The same for the life of the sandbox.
    fn account_uid(&self, namespace: &str, account: &str) -> String {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(format!("{}/{namespace}/{account}", self.salt));
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
        [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_checked_by_the_public_key_alone() {
        let issuer = TokenIssuer::new().unwrap();
        let subject = Subject { namespace: "shop".into(), account: "a".into(), pod: "a-1".into(), uid: "u".into() };
        let now = crate::util::unix_now();
        let token = issuer.sign(&subject, "weir-control", 600, now).unwrap();
        let key = jsonwebtoken::DecodingKey::from_ec_pem(issuer.public_pem().as_bytes()).unwrap();
        let mut rules = jsonwebtoken::Validation::new(Algorithm::ES256);
        rules.set_audience(&["weir-control"]);
        rules.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &rules).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:shop:a");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "a-1");
        assert_eq!(claims["exp"], now + 600);
        let again = issuer.sign(&subject, "x", 600, now).unwrap();
        assert!(jsonwebtoken::decode::<serde_json::Value>(&again, &key, &rules).is_err(), "another audience");
    }
}
