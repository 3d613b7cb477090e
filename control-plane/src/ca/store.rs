//! The root's two files: `ca-key.pem` and `root-cert.pem`.
//!
//! Made where there are none, by a temporary file that is linked to its name: the first of several replicas wins, the others
//! use what it made. The key comes first; whoever then finds no certificate makes one for that key.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::{Duration, OffsetDateTime};
use weir_mesh::{TrustDomain, names::ROOT_FILE};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The root's private key.
pub(crate) const KEY_FILE: &str = "ca-key.pem";
/// A self-signed root holds this long.
const ROOT_DAYS: i64 = 3650;
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file can not be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key's file holds no key.
    #[error("{}: holds no private key (PEM, PKCS#8): {cause}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// There is a certificate, but no key.
    #[error("{} is there, but {} is not: put the key of that root there, or remove the certificate to have both made anew",
        .certificate.display(), .key.display())]
    KeyMissing {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// No certificate is of the key, or it is no CA.
    #[error("{}: {cause}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// The root.
pub(super) struct Root {
    /// Its key.
    pub(super) key: KeyPair,
    /// The certificate of the key.
    pub(super) certificate: CertificateDer<'static>,
    /// End of the certificate.
    pub(super) not_after: OffsetDateTime,
    /// All roots that proxies trust, PEM, the one in use first in no particular way.
    pub(super) bundle: String,
}

/// A new root: its key and its certificate, PEM.
pub(super) fn generate(domain: &TrustDomain) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let certificate = self_signed(&key, domain)?;
    Ok((key.serialize_pem(), certificate))
}

/// The root of a key and a bundle, PEM.
pub(super) fn parse(key: &str, bundle: &str) -> Result<Root, String> {
    let key = KeyPair::from_pem(key).map_err(|error| format!("the key is no private key (PEM, PKCS#8): {error}"))?;
    let (certificate, not_after) = pick(bundle, &key)?;
    Ok(Root { key, certificate, not_after, bundle: bundle.to_owned() })
}

/// Opens the root in a folder; makes it where there is none.
pub(super) fn open(dir: &Path, domain: &TrustDomain) -> Result<Root, StoreError> {
    let (key_path, certificate_path) = (dir.join(KEY_FILE), dir.join(ROOT_FILE));
    if read(&key_path)?.is_none() {
        if read(&certificate_path)?.is_some() && read(&key_path)?.is_none() {
            return Err(StoreError::KeyMissing { certificate: certificate_path, key: key_path });
        }
        let key = KeyPair::generate().map_err(|error| bad_key(&key_path, &error))?;
        create(dir, &key_path, key.serialize_pem().as_bytes(), 0o600)?;
    }
    let pem = read(&key_path)?.unwrap_or_default();
    let key = KeyPair::from_pem(&pem).map_err(|error| bad_key(&key_path, &error))?;
    if read(&certificate_path)?.is_none() {
        let certificate = self_signed(&key, domain).map_err(|error| bad_key(&key_path, &error))?;
        create(dir, &certificate_path, certificate.as_bytes(), 0o644)?;
        tracing::info!(file = %certificate_path.display(), "a root was made");
    }
    let bundle = read(&certificate_path)?.unwrap_or_default();
    let (certificate, not_after) =
        pick(&bundle, &key).map_err(|cause| StoreError::Certificate { path: certificate_path, cause })?;
    Ok(Root { key, certificate, not_after, bundle })
}

fn bad_key(path: &Path, error: &rcgen::Error) -> StoreError {
    StoreError::Key { path: path.to_owned(), cause: error.to_string() }
}

fn self_signed(key: &KeyPair, domain: &TrustDomain) -> Result<String, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "Weir root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(ROOT_DAYS);
    Ok(params.self_signed(key)?.pem())
}

/// The certificate of the key in a bundle.
fn pick(bundle: &str, key: &KeyPair) -> Result<(CertificateDer<'static>, OffsetDateTime), String> {
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bundle.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not PEM: {error}"))?;
    for der in certificates {
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|error| format!("holds no certificate: {error}"))?;
        if *certificate.public_key().subject_public_key.data != *key.der_bytes() {
            continue;
        }
        let is_ca = certificate.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
        let may_sign = certificate.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
        if !is_ca || !may_sign {
            return Err(format!("the certificate of {KEY_FILE} is no CA (CA:TRUE, keyCertSign)"));
        }
        let validity = certificate.validity();
        if !validity.is_valid() {
            return Err(format!(
                "the certificate of {KEY_FILE} is not valid now: {} to {}",
                validity.not_before, validity.not_after
            ));
        }
        let not_after = validity.not_after.to_datetime();
        return Ok((der, not_after));
    }
    Err(format!("holds no certificate of {KEY_FILE}"))
}

fn read(path: &Path) -> Result<Option<String>, StoreError> {
    use std::io::Read as _;
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::File { path: path.to_owned(), source }),
    }
}

/// Creates a file with its whole content, or leaves the one that is there.
fn create(dir: &Path, path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
    let mut random = [0_u8; 8];
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StoreError::File { path, source }
    };
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut random)
        .map_err(|_| io::Error::other("no random numbers"))
        .map_err(failed(path))?;
    let temporary = dir.join(format!(".new-{:016x}", u64::from_ne_bytes(random)));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let result = write().map_err(failed(path));
    fs::remove_file(&temporary).ok();
    result?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weir-ca-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    #[test]
    fn made_once_and_kept() {
        let dir = Temporary::new("once");
        let first = open(&dir.0, &domain()).unwrap();
        let mode = fs::metadata(dir.0.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = open(&dir.0, &domain()).unwrap();
        assert_eq!((first.bundle, first.key.serialize_pem()), (second.bundle, second.key.serialize_pem()));
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn replicas_that_start_at_once_have_one_root() {
        let dir = Temporary::new("race");
        let roots: Vec<String> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..16).map(|_| scope.spawn(|| open(&dir.0, &domain()).unwrap().bundle)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
    }

    #[test]
    fn a_root_that_the_user_brings_among_several() {
        let dir = Temporary::new("own");
        let made = open(&dir.0, &domain()).unwrap();
        let other = self_signed(&KeyPair::generate().unwrap(), &domain()).unwrap();
        fs::write(dir.0.join(ROOT_FILE), format!("{other}{}", made.bundle)).unwrap();
        assert_eq!(open(&dir.0, &domain()).unwrap().certificate, made.certificate);
        fs::write(dir.0.join(ROOT_FILE), other).unwrap();
        assert!(matches!(open(&dir.0, &domain()), Err(StoreError::Certificate { .. })));
    }

    #[test]
    fn half_a_root_is_an_error_that_says_what_to_do() {
        let dir = Temporary::new("half");
        open(&dir.0, &domain()).unwrap();
        fs::remove_file(dir.0.join(KEY_FILE)).unwrap();
        assert!(matches!(open(&dir.0, &domain()), Err(StoreError::KeyMissing { .. })));
        fs::write(dir.0.join(KEY_FILE), "no key").unwrap();
        assert!(matches!(open(&dir.0, &domain()), Err(StoreError::Key { .. })));
        assert!(matches!(open(Path::new("/nonexistent"), &domain()), Err(StoreError::File { .. })));
    }

    #[test]
    fn a_certificate_that_is_no_ca_is_refused() {
        let dir = Temporary::new("leaf");
        let key = KeyPair::generate().unwrap();
        fs::write(dir.0.join(KEY_FILE), key.serialize_pem()).unwrap();
        fs::write(dir.0.join(ROOT_FILE), CertificateParams::default().self_signed(&key).unwrap().pem()).unwrap();
        let error = open(&dir.0, &domain()).err().unwrap().to_string();
        assert!(error.contains("is no CA"), "{error}");
    }
}
