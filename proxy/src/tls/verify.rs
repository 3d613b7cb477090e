//! The verifiers of both sides: the chain first, then the contents, then who it is.
//!
//! The order matters. A verifier that looked at names first, and tolerated a failure there, once accepted certificates of any
//! authority (spiffe-rustls, 2026). Here nothing of a certificate is read before its chain is proven.

use std::{fmt, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use weir_mesh::{Identity, TrustDomain};

use super::{
    error::PeerError,
    provider::provider,
    svid::{self, Side},
};

/// What both sides check against.
pub(super) struct Anchors {
    roots: Arc<RootCertStore>,
    domains: Arc<[TrustDomain]>,
    algorithms: WebPkiSupportedAlgorithms,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Anchors {
    pub(super) fn new(roots: RootCertStore, domains: Arc<[TrustDomain]>) -> Result<Self, Error> {
        let roots = Arc::new(roots);
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { roots, domains, algorithms, clients })
    }

    /// Chain, then contents, then trust domain.
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        match side {
            Side::Server => verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(leaf)?,
                &self.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?,
            Side::Client => {
                self.clients.verify_client_cert(leaf, intermediates, now)?;
            }
        }
        let identity = svid::check(leaf, side)?;
        intermediates.iter().try_for_each(svid::check_issuer)?;
        if self.domains.iter().any(|domain| domain.as_str() == identity.trust_domain()) {
            Ok(identity)
        } else {
            Err(PeerError::TrustDomain { got: identity }.into())
        }
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anchors").field("roots", &self.roots.len()).field("domains", &self.domains).finish()
    }
}

/// Checks whom we called.
#[derive(Debug)]
pub(super) struct ServerIs {
    pub(super) anchors: Arc<Anchors>,
    pub(super) expected: Identity,
}

impl ServerCertVerifier for ServerIs {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = self.anchors.check(end_entity, intermediates, Side::Server, now)?;
        if got == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(PeerError::Unexpected { expected: self.expected.clone(), got }.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.anchors.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.anchors.algorithms.supported_schemes()
    }
}

/// Checks who calls: any identity of an allowed trust domain. What it may do is policy's business.
#[derive(Debug)]
pub(super) struct ClientIsOfMesh {
    pub(super) anchors: Arc<Anchors>,
}

impl ClientCertVerifier for ClientIsOfMesh {
    /// No hints: every proxy has exactly one certificate to show, and the list would travel with every handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.anchors.check(end_entity, intermediates, Side::Client, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.anchors.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.anchors.algorithms.supported_schemes()
    }
}

fn not_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken".into())
}
