//! Why a certificate, a peer or a handshake was refused, in types that a log line can be made of.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use rustls::{CertificateError, OtherError};
use weir_mesh::{Identity, IdentityError};

use super::svid::Side;

/// Longest text from a peer's certificate that is repeated in a message.
const MAX_QUOTED: usize = 128;

/// Text from a certificate, made safe for a log line.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    pub(super) fn new(text: &str) -> Self {
        let mut shown: String = text.chars().take(MAX_QUOTED).flat_map(char::escape_default).collect();
        if text.chars().nth(MAX_QUOTED).is_some() {
            shown.push_str("...");
        }
        Self(shown)
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a peer's certificate is no identity of this mesh (X509-SVID specification, sections 2, 4 and 5.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not to be parsed.
    #[error("the certificate is malformed: {0}")]
    Malformed(&'static str),
    /// Has no URI name.
    #[error("the certificate has no URI name")]
    NoUri,
    /// Has several URI names.
    #[error("the certificate has {0} URI names, exactly one is allowed")]
    SeveralUris(usize),
    /// The URI name is no identity.
    #[error("the certificate's URI name {uri} is no identity: {reason}")]
    NotAnIdentity {
        /// The name, shortened.
        uri: Quoted,
        /// What is wrong.
        reason: IdentityError,
    },
    /// The certificate of an authority.
    #[error("the certificate is one of an authority (CA:TRUE)")]
    Authority,
    /// May sign certificates or revocation lists.
    #[error("the certificate's key usage allows to sign certificates or revocation lists")]
    MaySign,
    /// One of the authorities behind it may not sign certificates.
    #[error("the key usage of one of the certificates that came with it does not allow to sign certificates")]
    IssuerMayNotSign,
    /// May not sign handshakes.
    #[error("the certificate's key usage does not allow digital signatures")]
    MayNotAuthenticate,
    /// Extended key usage does not cover this side.
    #[error("the certificate's extended key usage does not allow {0}")]
    WrongUse(Side),
    /// Of another trust domain.
    #[error("{got} is of a trust domain that is not allowed here")]
    TrustDomain {
        /// The peer's identity.
        got: Identity,
    },
    /// Not the one that was called.
    #[error("expected {expected}, the peer is {got}")]
    Unexpected {
        /// Whom we called.
        expected: Identity,
        /// Who answered.
        got: Identity,
    },
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Why a certificate was not installed. The one before it stays in use.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no certificate.
    #[error("the certificate chain is empty")]
    NoCertificate,
    /// There is no root.
    #[error("there is no root certificate")]
    NoRoot,
    /// A root is not usable.
    #[error("root certificate {index} is not usable: {source}")]
    Root {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The key is not usable, or of another certificate.
    #[error("the key is not usable or not the certificate's: {0}")]
    Key(#[source] rustls::Error),
    /// No peer would accept the certificate.
    #[error("our own certificate would be refused: {0}")]
    Own(#[source] rustls::Error),
    /// No peer would accept the certificate's contents.
    #[error("our own certificate would be refused: {0}")]
    Identity(#[from] PeerError),
    /// A configuration could not be made.
    #[error("no TLS configuration: {0}")]
    Config(#[source] rustls::Error),
}

/// A handshake that failed: with whom, whom we expected, and why.
#[derive(Debug, thiserror::Error)]
pub struct HandshakeError {
    /// Address of the peer.
    pub peer: SocketAddr,
    /// Whom we called; `None` on the accepting side.
    pub expected: Option<Identity>,
    /// What happened.
    #[source]
    pub source: io::Error,
}

impl HandshakeError {
    /// Why the peer's certificate was refused by us, where that is the reason.
    pub fn refused(&self) -> Option<&PeerError> {
        match self.tls()? {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
            _ => None,
        }
    }

    /// Who answered, where it was somebody else of the mesh.
    pub fn got(&self) -> Option<&Identity> {
        match self.refused()? {
            PeerError::Unexpected { got, .. } | PeerError::TrustDomain { got } => Some(got),
            _ => None,
        }
    }

    /// The TLS error, where it is one; otherwise the connection itself failed.
    pub fn tls(&self) -> Option<&rustls::Error> {
        self.source.get_ref()?.downcast_ref()
    }

    /// A word for metrics and logs: bounded, never from the peer.
    pub fn reason(&self) -> &'static str {
        if self.refused().is_some() {
            return "peer_identity";
        }
        match self.tls() {
            Some(rustls::Error::NoCertificatesPresented) => "peer_without_certificate",
            Some(rustls::Error::InvalidCertificate(_)) => "peer_certificate",
            Some(rustls::Error::AlertReceived(_)) => "refused_by_peer",
            Some(rustls::Error::NoApplicationProtocol) => "no_common_alpn",
            Some(rustls::Error::PeerIncompatible(_)) => "peer_incompatible",
            Some(_) => "tls_protocol",
            None if self.source.kind() == io::ErrorKind::TimedOut => "handshake_timeout",
            None => "connection",
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.expected {
            Some(expected) => write!(f, "mutual TLS with {} (expected {expected}) failed", self.peer)?,
            None => write!(f, "mutual TLS with caller {} failed", self.peer)?,
        }
        match self.refused() {
            Some(refused) => write!(f, ": {refused}"),
            None => write!(f, ": {}", self.source),
        }
    }
}
