//! TLS of the servers.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

/// With a certificate that nobody can know.
pub(crate) fn self_signed() -> Result<TlsAcceptor> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["app".to_owned()])?.self_signed(&key)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    acceptor(vec![certificate.der().clone()], key)
}

/// With the files `tls.crt` and `tls.key` of a folder, as Kubernetes mounts them.
pub(crate) fn of_folder(folder: &Path) -> Result<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(folder.join("tls.crt")).context("tls.crt")?;
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key")).context("tls.key")?;
    acceptor(certificates.collect::<Result<_, _>>()?, key)
}

fn acceptor(certificates: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<TlsAcceptor> {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
