//! A key, a request for it, and what came back.

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use weir_mesh::Identity;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{IdentityError, files::Roots};
use crate::tls::svid_identity;

/// Longest chain, roots included.
const MAX_CHAIN: usize = 16;

/// A key that waits for its certificate.
pub(super) struct Request {
    pub(super) csr_pem: String,
    key: PrivateKeyDer<'static>,
}

impl Request {
    /// Makes a new P-256 key, in memory only. The request names nobody: who we are is said by the token.
    pub(super) fn new() -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(IdentityError::Request)?;
        Ok(Self {
            csr_pem: csr.pem().map_err(IdentityError::Request)?,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// Takes the answer apart: leaf and intermediates are ours, self-issued certificates behind them are roots.
    pub(super) fn fulfilled(self, answer: &[String]) -> Result<Issued, IdentityError> {
        let mut chain = Vec::new();
        let mut roots = Vec::new();
        for pem in answer {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| IdentityError::Answer("it is not PEM"))?;
                if chain.len().saturating_add(roots.len()) >= MAX_CHAIN {
                    return Err(IdentityError::Answer("it is too long"));
                }
                if is_self_issued(&certificate)? {
                    roots.push(certificate);
                } else if roots.is_empty() {
                    chain.push(certificate);
                } else {
                    return Err(IdentityError::Answer("a certificate stands behind a root"));
                }
            }
        }
        if chain.is_empty() {
            return Err(IdentityError::Answer("it has no leaf certificate"));
        }
        Ok(Issued { chain, key: self.key, roots, expiry: UNIX_EPOCH, renew_at: UNIX_EPOCH })
    }
}

/// The certificate in use, with what is needed to install it again.
pub(super) struct Issued {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// Roots that came with the chain: a new root arrives here before its ConfigMap does.
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) expiry: SystemTime,
    pub(super) renew_at: SystemTime,
}

impl Issued {
    /// Whose certificate it is.
    pub(super) fn identity(&self) -> Result<Identity, IdentityError> {
        let leaf = self.chain.first().ok_or(IdentityError::Answer("it has no leaf certificate"))?;
        svid_identity(leaf).map_err(|error| IdentityError::Install(error.into()))
    }

    /// The roots of the file and those that came with the chain.
    pub(super) fn anchors(&self, file: &Roots) -> Vec<CertificateDer<'static>> {
        let mut all = file.certificates.clone();
        for root in &self.roots {
            if !all.contains(root) {
                all.push(root.clone());
            }
        }
        all
    }
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> Result<bool, IdentityError> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], parsed)) => Ok(parsed.subject() == parsed.issuer() && parsed.is_ca()),
        _ => Err(IdentityError::Answer("it holds something that is no certificate")),
    }
}
