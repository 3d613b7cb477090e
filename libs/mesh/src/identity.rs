//! SPIFFE identities: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
//!
//! Parsing is strict (SPIFFE-ID specification, section 2): lower-case trust domain, no query, fragment, port, user info,
//! percent-encoding or empty segments, at most 2,048 bytes.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest SPIFFE id, in bytes (SPIFFE-ID specification, section 2.3).
const MAX_SPIFFE_ID: usize = 2048;
/// Longest trust domain, in bytes (SPIFFE-ID specification, section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;

/// Why a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    #[error("not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    Form,
    /// The trust domain is empty, too long or has a character outside `a-z 0-9 . - _`.
    #[error("the trust domain must be 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// Namespace or service account is not a Kubernetes name.
    #[error("{0} must be 1 to 253 characters of a-z, 0-9, '-' and '.', with a letter or digit at both ends")]
    Name(&'static str),
    /// Longer than 2,048 bytes.
    #[error("longer than 2048 bytes")]
    TooLong,
}

/// A SPIFFE trust domain, such as `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> String {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity. Cheap to clone; equality is equality of the whole SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    uri: Arc<str>,
    namespace: (u16, u16),
    account: u16,
}

const SCHEME: &str = "spiffe://";

impl Identity {
    /// The identity of a service account.
    ///
    /// # Errors
    /// [`IdentityError::Name`] where a name is not a Kubernetes name.
    pub fn new(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, IdentityError> {
        format!("{SCHEME}{domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// The whole SPIFFE id.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        let rest = self.uri.get(SCHEME.len()..).unwrap_or_default();
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.uri.get(usize::from(self.namespace.0)..usize::from(self.namespace.1)).unwrap_or_default()
    }

    /// The service account's name.
    pub fn service_account(&self) -> &str {
        self.uri.get(usize::from(self.account)..).unwrap_or_default()
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        if uri.len() > MAX_SPIFFE_ID {
            return Err(IdentityError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(IdentityError::Form)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Form);
        };
        domain.parse::<TrustDomain>()?;
        if !is_name(namespace) {
            return Err(IdentityError::Name("the namespace"));
        }
        if !is_name(account) {
            return Err(IdentityError::Name("the service account"));
        }
        let start = SCHEME.len() + domain.len() + "/ns/".len();
        let end = start + namespace.len();
        let index = |at: usize| u16::try_from(at).map_err(|_| IdentityError::TooLong);
        Ok(Self { uri: uri.into(), namespace: (index(start)?, index(end)?), account: index(end + "/sa/".len())? })
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> String {
        identity.uri.as_ref().to_owned()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// True for a Kubernetes object name (RFC 1123 subdomain).
pub fn is_name(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_identity() {
        let id: Identity = "spiffe://cluster.local/ns/shop/sa/catalog".parse().unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "shop", "catalog"));
        let made = Identity::new(&"cluster.local".parse().unwrap(), "shop", "catalog").unwrap();
        assert_eq!(made, id);
    }

    #[test]
    fn refuses_all_other_forms() {
        for bad in [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "SPIFFE://d/ns/a/sa/b",
            "spiffe://D/ns/a/sa/b",
            "spiffe://d/ns/a/sa/b/",
            "spiffe://d/ns/a/sa/b?x",
            "spiffe://d/ns/a/sa/b#x",
            "spiffe://d:80/ns/a/sa/b",
            "spiffe://u@d/ns/a/sa/b",
            "spiffe://d/ns//sa/b",
            "spiffe://d/ns/a/sa/",
            "spiffe://d/ns/a%41/sa/b",
            "spiffe://d/ns/../sa/b",
            "spiffe://d/ns/a\0/sa/b",
            "spiffe://d/sa/b/ns/a",
            "https://d/ns/a/sa/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(format!("spiffe://d/ns/a/sa/{}", "b".repeat(2048)).parse::<Identity>(), Err(IdentityError::TooLong));
    }
}
