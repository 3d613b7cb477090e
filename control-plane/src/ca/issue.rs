//! Certificates: for callers by their identity, and for our own server by its DNS names.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use time::OffsetDateTime;
use tokio::sync::watch;
use tonic::{Code, Status, metadata::MetadataMap};
use weir_mesh::{Identity, TrustDomain};
use weir_xds::ca::{Authority, CertificateRequest};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::{csr, csr::CsrError, store};
use crate::{auth::Caller, catalog::Catalog, metrics::Metrics};

/// Longest validity of a workload's certificate, and the one that is given where none is asked for.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// Shortest limit that can be set: below it a renewal that meets a restart of the control plane would come too late.
pub const MIN_TTL: Duration = Duration::from_secs(10);
/// Certificates begin this long ago: clocks differ.
const BACKDATE: time::Duration = time::Duration::seconds(60);
/// A root that ends sooner is not signed with any more.
const MIN_LEFT: time::Duration = time::Duration::seconds(60);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The root ends.
    #[error("the root certificate ends at {0}: put a new one into the CA folder")]
    RootEnds(OffsetDateTime),
    /// The crypto library refuses.
    #[error("signing failed: {0}")]
    Signing(String),
}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> Self {
        Self::Signing(error.to_string())
    }
}

/// Signs certificates with the root of the moment.
#[derive(Debug)]
pub struct CertificateAuthority {
    root: watch::Sender<Arc<Signer>>,
}

struct Signer {
    /// PEM, for a Secret that must be put back.
    key: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: OffsetDateTime,
    bundle: Arc<str>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl TryFrom<store::Root> for Signer {
    type Error = rcgen::Error;

    fn try_from(root: store::Root) -> Result<Self, rcgen::Error> {
        let store::Root { key, certificate, not_after, bundle } = root;
        let pem = key.serialize_pem();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { key: pem, issuer, certificate, not_after, bundle: bundle.into() })
    }
}

/// Tells when the root has changed.
#[derive(Debug)]
pub struct RootChanges(watch::Receiver<Arc<Signer>>);

impl RootChanges {
    /// Waits for the next change.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A certificate and its key, PEM, as servers read them from files.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// What a certificate is for.
enum Purpose<'a> {
    Workload(&'a Identity),
    Server(&'a [String]),
}

impl CertificateAuthority {
    /// Opens the root in a folder; makes it where there is none.
    ///
    /// # Errors
    /// Where the files can not be read or made, or do not fit together.
    pub fn open(dir: &Path, domain: &TrustDomain) -> anyhow::Result<Self> {
        Ok(Self::of(store::open(dir, domain)?.try_into()?))
    }

    /// The root of a key and a bundle of certificates, PEM.
    ///
    /// # Errors
    /// Where they do not fit together, or are no CA.
    pub fn from_pem(key: &str, bundle: &str) -> anyhow::Result<Self> {
        Ok(Self::of(store::parse(key, bundle).map_err(anyhow::Error::msg)?.try_into()?))
    }

    /// A new root: its key and its certificate, PEM.
    ///
    /// # Errors
    /// Where the crypto library refuses.
    pub fn generate(domain: &TrustDomain) -> Result<(String, String), IssueError> {
        Ok(store::generate(domain)?)
    }

    fn of(signer: Signer) -> Self {
        Self { root: watch::Sender::new(Arc::new(signer)) }
    }

    /// Signs with another root from now on, or hands out another bundle; `false` where nothing differs.
    ///
    /// # Errors
    /// As [`CertificateAuthority::from_pem`]; the old root stays.
    pub fn replace(&self, key: &str, bundle: &str) -> anyhow::Result<bool> {
        let new: Signer = store::parse(key, bundle).map_err(anyhow::Error::msg)?.try_into()?;
        let old = self.signer();
        if old.certificate == new.certificate && old.bundle == new.bundle {
            return Ok(false);
        }
        self.root.send_replace(Arc::new(new));
        Ok(true)
    }

    /// The key and the bundle of the moment, PEM.
    pub(crate) fn to_pem(&self) -> (String, Arc<str>) {
        let signer = self.signer();
        (signer.key.clone(), signer.bundle.clone())
    }

    /// Tells when the root or the bundle has changed.
    pub fn changes(&self) -> RootChanges {
        RootChanges(self.root.subscribe())
    }

    fn signer(&self) -> Arc<Signer> {
        self.root.borrow().clone()
    }

    /// The roots that proxies trust, PEM.
    pub fn roots(&self) -> Arc<str> {
        self.signer().bundle.clone()
    }

    /// A certificate for an identity and a key. PEM.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn workload(&self, identity: &Identity, key: &impl PublicKeyData, ttl: Duration) -> Result<String, IssueError> {
        let signer = self.signer();
        let params = signer.params(&Purpose::Workload(identity), ttl.min(MAX_TTL))?;
        Ok(params.signed_by(key, &signer.issuer)?.pem())
    }

    /// A certificate with a new key for our own server, and when to make the next.
    ///
    /// # Errors
    /// Where a name is no DNS name, or signing fails.
    pub fn serving(&self, names: &[String]) -> anyhow::Result<(CertifiedKey, Duration)> {
        let signer = self.signer();
        let key = KeyPair::generate()?;
        let params = signer.params(&Purpose::Server(names), MAX_TTL)?;
        let left = params.not_after - OffsetDateTime::now_utc();
        let leaf = params.signed_by(&key, &signer.issuer)?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
        let renew_in = Duration::try_from(left / 2).unwrap_or_default();
        Ok((CertifiedKey::new(chain, signing), renew_in))
    }

    /// A certificate with a new key for another server, as files.
    ///
    /// # Errors
    /// Where a name is no DNS name, or signing fails.
    pub fn server_pair(&self, names: &[String], ttl: Duration) -> Result<Pair, IssueError> {
        let signer = self.signer();
        let key = KeyPair::generate()?;
        let leaf = signer.params(&Purpose::Server(names), ttl)?.signed_by(&key, &signer.issuer)?;
        Ok(Pair { certificate: leaf.pem(), key: key.serialize_pem() })
    }

    /// How long a server's certificate and key (PEM) may be used on: until half of its life is over. `None` where it is not
    /// valid now, not of the root in use, not for all of these names, or not of the key.
    pub fn usable_for(&self, pair: &Pair, names: &[String]) -> Option<Duration> {
        let signer = self.signer();
        let (_, root) = X509Certificate::from_der(&signer.certificate).ok()?;
        let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).ok()?;
        let (_, leaf) = X509Certificate::from_der(&der).ok()?;
        let key = KeyPair::from_pem(&pair.key).ok()?;
        if *leaf.public_key().subject_public_key.data != *key.der_bytes()
            || leaf.verify_signature(Some(root.public_key())).is_err()
        {
            return None;
        }
        let listed = leaf.subject_alternative_name().ok()??;
        let has = |name: &String| {
            listed.value.general_names.iter().any(|listed| matches!(listed, GeneralName::DNSName(dns) if dns == name))
        };
        if !names.iter().all(has) {
            return None;
        }
        let validity = leaf.validity();
        let (from, to) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        let now = OffsetDateTime::now_utc();
        let half = from + (to - from) / 2;
        if now < from { None } else { Duration::try_from(half - now).ok().filter(|left| !left.is_zero()) }
    }
}

impl Signer {
    fn params(&self, purpose: &Purpose<'_>, ttl: Duration) -> Result<CertificateParams, IssueError> {
        let now = OffsetDateTime::now_utc();
        if self.not_after - now < MIN_LEFT {
            return Err(IssueError::RootEnds(self.not_after));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new(); // the names are in the SAN, which is critical then
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(serial()?);
        params.not_before = now - BACKDATE;
        params.not_after = (now + ttl).min(self.not_after);
        match purpose {
            Purpose::Workload(identity) => {
                params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            }
            Purpose::Server(names) => {
                for name in *names {
                    params.subject_alt_names.push(match name.parse::<IpAddr>() {
                        Ok(address) => SanType::IpAddress(address),
                        Err(_) => SanType::DnsName(name.as_str().try_into()?),
                    });
                }
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
        }
        Ok(params)
    }
}

/// 127 random bits (RFC 5280: positive, at most 20 bytes).
fn serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0_u8; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| IssueError::Signing("no random numbers".into()))?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from(bytes.to_vec()))
}

/// The certificate service: token and signing request in, certificate out.
#[derive(Debug)]
pub struct Issuing {
    authority: Arc<CertificateAuthority>,
    longest: Duration,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
}

impl Issuing {
    /// Issues with this authority, to callers that the catalog knows; no certificate lives longer than `longest`.
    pub fn new(
        authority: Arc<CertificateAuthority>,
        longest: Duration,
        catalog: Arc<Catalog>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { authority, longest, catalog, metrics }
    }

    fn issue(&self, caller: &Caller, request: &CertificateRequest) -> Result<Vec<String>, Status> {
        let ttl = match u64::try_from(request.validity_seconds) {
            Ok(0) => self.longest,
            Ok(seconds) => Duration::from_secs(seconds).min(self.longest),
            Err(_) => return Err(Status::invalid_argument("the validity is negative")),
        };
        let key = csr::check(&request.csr, &caller.identity).map_err(|error| match error {
            CsrError::Identity(..) => Status::permission_denied(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        })?;
        let leaf = self.authority.workload(&caller.identity, &key, ttl).map_err(|error| {
            tracing::error!(%error, "no certificate can be made");
            Status::unavailable(error.to_string())
        })?;
        Ok(vec![leaf, self.authority.roots().as_ref().to_owned()])
    }
}

impl Authority for Issuing {
    async fn create(&self, metadata: &MetadataMap, request: CertificateRequest) -> Result<Vec<String>, Status> {
        let caller = self.catalog.known_caller(metadata).await.inspect_err(|status| {
            if status.code() == Code::Unavailable {
                self.metrics.certificates_deferred.add(1);
                tracing::warn!(reason = status.message(), "no certificate issued: the caller is to ask again");
            } else {
                self.metrics.certificates_refused.add(1);
            }
        })?;
        match self.issue(&caller, &request) {
            Ok(chain) => {
                self.metrics.certificates_issued.add(1);
                tracing::info!(pod = %caller.pod, identity = caller.identity.uri(), "certificate issued");
                Ok(chain)
            }
            Err(status) => {
                self.metrics.certificates_refused.add(1);
                tracing::warn!(pod = %caller.pod, reason = status.message(), "no certificate issued");
                Err(status)
            }
        }
    }
}
