//! Certificates: for callers by their identity, and for our own server by its DNS names.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tonic::{Code, Status, metadata::MetadataMap};
use weir_mesh::{Identity, TrustDomain};
use weir_xds::ca::{Authority, CertificateRequest};

use super::{csr, store};
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

/// Signs certificates with the root.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
    bundle: String,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
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
        let store::Root { key, certificate, not_after, bundle } = store::open(dir, domain)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, not_after, bundle })
    }

    /// The roots that proxies trust, PEM.
    pub fn roots(&self) -> &str {
        &self.bundle
    }

    /// A certificate for an identity and a key. PEM.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn workload(&self, identity: &Identity, key: &impl PublicKeyData, ttl: Duration) -> Result<String, IssueError> {
        let params = self.params(&Purpose::Workload(identity), ttl.min(MAX_TTL))?;
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// A certificate with a new key for our own server, and when to make the next.
    ///
    /// # Errors
    /// Where a name is no DNS name, or signing fails.
    pub fn serving(&self, names: &[String]) -> anyhow::Result<(CertifiedKey, Duration)> {
        let key = KeyPair::generate()?;
        let params = self.params(&Purpose::Server(names), MAX_TTL)?;
        let left = params.not_after - OffsetDateTime::now_utc();
        let leaf = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
        let renew_in = Duration::try_from(left / 2).unwrap_or_default();
        Ok((CertifiedKey::new(chain, signing), renew_in))
    }

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
        let key = csr::check(&request.csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let leaf = self.authority.workload(&caller.identity, &key, ttl).map_err(|error| {
            tracing::error!(%error, "no certificate can be made");
            Status::unavailable(error.to_string())
        })?;
        Ok(vec![leaf, self.authority.roots().to_owned()])
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
