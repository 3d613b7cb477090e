//! The serving certificate: read from files, followed when they change, swapped under running connections.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::metrics::Metrics;

/// The files change in several steps (certificate, then key; or a folder of links being swapped): wait until they rest.
const SETTLE: Duration = Duration::from_millis(50);
/// The files are looked at this often even if no change was seen, for file systems that report none.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Time until the next try where the folder can not be watched.
const WATCH_AGAIN: Duration = Duration::from_secs(2);
/// Larger files are no certificate.
const MAX_FILE: u64 = 1 << 20;

/// Why a certificate can not be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can not be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no certificate or no key.
    #[error("{path} holds no {what} in PEM form", path = path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("certificate and key do not fit: {0}")]
    Pair(#[from] rustls::Error),
}

/// Where the certificate is.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// What the files held when they were last read.
#[derive(PartialEq, Eq)]
struct Content {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// The certificate in use, and how to follow its files.
pub(crate) struct Certificate {
    files: Files,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Certificate {
    pub(crate) fn load(files: Files, metrics: Arc<Metrics>) -> Result<Arc<Self>, CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let content = Content::read(&files)?;
        let pair = content.pair(&files, &provider)?;
        metrics.certificate_expiry.store(expiry(&pair), Relaxed);
        Ok(Arc::new(Self { files, provider, current: ArcSwap::from_pointee(pair), metrics }))
    }

    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, CertificateError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Follows the files for ever. A pair that does not fit is not used, and the one in use stays.
    ///
    /// The folders are watched and not the files: Kubernetes replaces a mounted Secret by swapping the link `..data` in the
    /// folder. The watch is set before the files are looked at, so no change falls between.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut last = Content::read(&self.files).ok();
        loop {
            let mut events = self.watch().inspect_err(|error| tracing::debug!(%error, "no watch on the folder")).ok();
            let pause = if events.is_some() { SETTLE } else { WATCH_AGAIN };
            self.look(&mut last);
            while let Some(stream) = &mut events {
                match tokio::time::timeout(LOOK_AGAIN, stream.next()).await {
                    Ok(Some(Ok(event))) if !event.mask.contains(EventMask::IGNORED) => {
                        tokio::time::sleep(SETTLE).await;
                        self.look(&mut last);
                    }
                    _ => events = None, // quiet for long, or the folder is gone: watch anew
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn look(&self, last: &mut Option<Content>) {
        let content = match Content::read(&self.files) {
            Ok(content) => content,
            Err(error) => return self.failed(&error),
        };
        if last.as_ref() == Some(&content) {
            return;
        }
        match content.pair(&self.files, &self.provider) {
            Ok(pair) => {
                let expires = expiry(&pair);
                self.current.store(Arc::new(pair));
                self.metrics.certificate_expiry.store(expires, Relaxed);
                self.metrics.reloads.fetch_add(1, Relaxed);
                tracing::info!(expires, "certificate reloaded");
            }
            Err(error) => self.failed(&error),
        }
        *last = Some(content);
    }

    fn failed(&self, error: &CertificateError) {
        self.metrics.reload_failures.fetch_add(1, Relaxed);
        tracing::warn!(%error, "the changed certificate is not used; the one before stays in use");
    }

    fn watch(&self) -> io::Result<inotify::EventStream<[u8; 4096]>> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE | WatchMask::ONLYDIR;
        for file in [&self.files.cert, &self.files.key] {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            inotify.watches().add(folder.unwrap_or(Path::new(".")), mask)?;
        }
        inotify.into_event_stream([0; 4096])
    }
}

impl Content {
    fn read(files: &Files) -> Result<Self, CertificateError> {
        let read = |path: &Path| {
            let bytes = || -> io::Result<_> {
                if std::fs::metadata(path)?.len() > MAX_FILE {
                    return Err(io::Error::other("too large for a certificate"));
                }
                std::fs::read(path)
            };
            bytes().map_err(|source| CertificateError::Read { path: path.to_owned(), source })
        };
        Ok(Self { cert: read(&files.cert)?, key: read(&files.key)? })
    }

    fn pair(&self, files: &Files, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
        let missing = |path: &Path, what| CertificateError::Pem { path: path.to_owned(), what };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| missing(&files.cert, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| missing(&files.key, "private key"))?;
        let pair = CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?);
        pair.keys_match()?;
        Ok(pair)
    }
}

/// When the certificate ends, in seconds since 1970; 0 if that can not be read.
fn expiry(pair: &CertifiedKey) -> i64 {
    pair.cert
        .first()
        .and_then(|cert| x509_parser::parse_x509_certificate(cert).ok())
        .map_or(0, |(_, cert)| cert.validity().not_after.timestamp())
}
