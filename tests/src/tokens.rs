//! Tokens of service accounts, signed as by a Kubernetes API server.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::json;

/// Issuer in the tokens.
pub const ISSUER: &str = "https://issuer.test";

/// Signs tokens with a key made for one test.
pub struct Issuer(KeyPair);

impl Issuer {
    /// With a new key.
    #[allow(clippy::new_without_default)] // a key is no default
    pub fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    /// PEM of the key that checks the tokens.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// A token of a pod, for an hour.
    pub fn token(&self, namespace: &str, pod: &str, account: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "aud": ["weir-control"], "iss": ISSUER, "exp": now + 3600, "iat": now,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "kubernetes.io": {"namespace": namespace, "pod": {"name": pod, "uid": format!("uid-{pod}")},
                "serviceaccount": {"name": account, "uid": "sa"}},
        });
        let key = EncodingKey::from_ec_pem(self.0.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap()
    }
}
