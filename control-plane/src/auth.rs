//! Who calls: pods' tokens, checked with the issuer's public key, or by the API server.
//!
//! A token is a projected Kubernetes token: signed (RS256 or ES256), for our audience, from our issuer, not expired, and bound
//! to a pod. The identity comes from it and from nothing else.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tonic::{Status, metadata::MetadataMap};
use weir_config::model::Name;
use weir_mesh::{Identity, TrustDomain, names::TOKEN_AUDIENCE};

use crate::kubernetes::TokenReviews;

/// Clocks may differ by this much, in seconds.
const LEEWAY_SECONDS: u64 = 10;
/// Largest token that is looked at, in bytes; Kubernetes' have about 1 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A pod that has proven who it is.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The pod.
    pub pod: Name,
    /// Its uid.
    pub uid: String,
    /// What it may call itself.
    pub identity: Identity,
    /// When the proof ends.
    pub expires: SystemTime,
}

/// Says who callers are.
#[derive(Debug)]
pub enum Callers {
    /// By the public key of the tokens' issuer.
    Key(TokenVerifier),
    /// By the API server.
    Reviews(Reviews),
}

/// The API server's reviews.
#[derive(Debug)]
pub struct Reviews(pub(crate) TokenReviews);

impl Callers {
    /// Says who calls.
    ///
    /// # Errors
    /// [`Refused`] says why nobody does.
    pub async fn verify(&self, metadata: &MetadataMap) -> Result<Caller, Refused> {
        let token = bearer(metadata)?;
        match self {
            Self::Key(verifier) => verifier.verify(token),
            Self::Reviews(reviews) => reviews.0.verify(token).await,
        }
    }

    /// True where every pod that can have a token is known: then one that is not known is gone.
    pub fn are_known(&self) -> bool {
        matches!(self, Self::Reviews(_))
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Refused> {
    let value = metadata.get("authorization").and_then(|value| value.to_str().ok()).ok_or(Refused::Missing)?;
    let token = value.strip_prefix("Bearer ").ok_or(Refused::Missing)?;
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refused::Invalid(format!("it has more than {MAX_TOKEN_BYTES} bytes")));
    }
    Ok(token)
}

/// Checks tokens.
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
    trust_domain: TrustDomain,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// Why a caller is refused. The text goes to the caller: it helps, and gives away nothing that its token does not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No `authorization: Bearer …`.
    #[error("no token: send `authorization: Bearer TOKEN`")]
    Missing,
    /// It does not verify, or says something that we do not take.
    #[error("the token is refused: {0}")]
    Invalid(String),
    /// Nobody can say now whether it is good.
    #[error("the token can not be checked: {0}")]
    Unanswered(String),
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unanswered(_) => Self::unavailable(refused.to_string()),
            Refused::Missing | Refused::Invalid(_) => Self::unauthenticated(refused.to_string()),
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    pod: Bound,
    serviceaccount: Bound,
}

#[derive(Deserialize)]
struct Bound {
    name: String,
    #[serde(default)]
    uid: String,
}

impl TokenVerifier {
    /// Reads the public key.
    ///
    /// # Errors
    /// Where the file can not be read or holds no RSA or P-256 key.
    pub fn from_pem(file: &Path, issuer: &str, trust_domain: TrustDomain) -> anyhow::Result<Self> {
        let pem = std::fs::read(file).with_context(|| format!("--token-key {}", file.display()))?;
        Self::new(&pem, issuer, trust_domain)
            .with_context(|| format!("--token-key {}: give the PUBLIC key, PEM, RSA or P-256", file.display()))
    }

    /// The same from PEM text.
    ///
    /// # Errors
    /// Where it holds no RSA or P-256 public key.
    pub fn new(pem: &[u8], issuer: &str, trust_domain: TrustDomain) -> anyhow::Result<Self> {
        let (key, algorithm) = match DecodingKey::from_rsa_pem(pem) {
            Ok(key) => (key, Algorithm::RS256),
            Err(_) => (DecodingKey::from_ec_pem(pem)?, Algorithm::ES256),
        };
        // The key decides the algorithm; what the token says of it must agree ("alg: none", or HS256 with our public key as
        // the secret, do not).
        let mut validation = Validation::new(algorithm);
        validation.set_audience(&[TOKEN_AUDIENCE]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        Ok(Self { key, validation, trust_domain })
    }

    /// Says who has this token.
    ///
    /// # Errors
    /// [`Refused`] says why nobody does.
    pub fn verify(&self, token: &str) -> Result<Caller, Refused> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| Refused::Invalid(error.to_string()))?
            .claims;
        let Kubernetes { namespace, pod, serviceaccount } = claims.kubernetes;
        if claims.sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
            return Err(Refused::Invalid("its subject is not the service account that it is for".into()));
        }
        if pod.name.is_empty() || pod.uid.is_empty() {
            return Err(Refused::Invalid("it is not bound to a pod".into()));
        }
        let identity = Identity::new(&self.trust_domain, &namespace, &serviceaccount.name)
            .map_err(|error| Refused::Invalid(error.to_string()))?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp)).unwrap_or(UNIX_EPOCH);
        Ok(Caller { pod: Name::new(namespace, pod.name), uid: pod.uid, identity, expires })
    }
}
