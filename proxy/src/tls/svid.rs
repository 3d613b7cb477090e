//! The contents of an X509-SVID leaf certificate. The chain is checked elsewhere (`verify`), and before.

use std::fmt;

use rustls_pki_types::CertificateDer;
use weir_mesh::Identity;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::error::{PeerError, Quoted};

/// Which end of a handshake a certificate stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that is called.
    Server,
    /// The one that calls.
    Client,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server authentication",
            Self::Client => "client authentication",
        })
    }
}

/// What a leaf certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Svid {
    /// Who.
    pub identity: Identity,
    /// From when, in seconds since 1970.
    pub not_before: i64,
    /// Until when, in seconds since 1970.
    pub not_after: i64,
    /// Serial number, as hexadecimal digits.
    pub serial: String,
}

impl Svid {
    /// Reads our own certificate, which has to stand on both sides.
    pub(super) fn own(leaf: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let certificate = parse(leaf)?;
        check_usage(&certificate, &[Side::Server, Side::Client])?;
        let validity = certificate.validity();
        Ok(Self {
            identity: uri_identity(&certificate)?,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            serial: certificate.tbs_certificate.raw_serial_as_string(),
        })
    }
}

/// Checks a peer's leaf and reads its identity; one parse a handshake.
pub(super) fn check(leaf: &CertificateDer<'_>, side: Side) -> Result<Identity, PeerError> {
    let certificate = parse(leaf)?;
    check_usage(&certificate, &[side])?;
    uri_identity(&certificate)
}

/// Checks a certificate that a peer brings along to prove its own: one that says what its key is for must say that it signs
/// certificates (RFC 5280, 4.2.1.3). webpki goes by the basic constraints alone. It does not tell which of them it used either, so all
/// of them are looked at.
pub(super) fn check_issuer(issuer: &CertificateDer<'_>) -> Result<(), PeerError> {
    for extension in parse(issuer)?.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => return Err(PeerError::Malformed("an extension does not parse")),
            ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() => return Err(PeerError::IssuerMayNotSign),
            _ => {}
        }
    }
    Ok(())
}

/// The identity in a leaf that was checked before.
pub(crate) fn svid_identity(leaf: &CertificateDer<'_>) -> Result<Identity, PeerError> {
    uri_identity(&parse(leaf)?)
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerError> {
    match X509Certificate::from_der(der.as_ref()) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(PeerError::Malformed("bytes behind its end")),
        Err(_) => Err(PeerError::Malformed("not an X.509 certificate")),
    }
}

/// Walks the extensions itself: the parser's own accessors read an extension that does not parse as one that is absent.
fn check_usage(certificate: &X509Certificate<'_>, sides: &[Side]) -> Result<(), PeerError> {
    let extensions = certificate.extensions();
    for (index, extension) in extensions.iter().enumerate() {
        if extensions.iter().take(index).any(|earlier| earlier.oid == extension.oid) {
            return Err(PeerError::Malformed("an extension appears twice"));
        }
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => return Err(PeerError::Malformed("an extension does not parse")),
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(PeerError::Authority),
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(PeerError::MaySign);
            }
            ParsedExtension::KeyUsage(usage) if !usage.digital_signature() => {
                return Err(PeerError::MayNotAuthenticate);
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                for side in sides {
                    let allowed = match side {
                        Side::Server => usage.server_auth,
                        Side::Client => usage.client_auth,
                    };
                    if !allowed {
                        return Err(PeerError::WrongUse(*side));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn uri_identity(certificate: &X509Certificate<'_>) -> Result<Identity, PeerError> {
    let mut uri = None;
    let mut uris = 0_usize;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(text) => {
                            uris = uris.saturating_add(1);
                            uri = Some(*text);
                        }
                        GeneralName::Invalid(..) => return Err(PeerError::Malformed("a name does not parse")),
                        _ => {}
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return Err(PeerError::Malformed("an extension does not parse")),
            _ => {}
        }
    }
    match (uri, uris) {
        (Some(text), 1) => text.parse().map_err(|reason| PeerError::NotAnIdentity { uri: Quoted::new(text), reason }),
        (None, _) => Err(PeerError::NoUri),
        (Some(_), n) => Err(PeerError::SeveralUris(n)),
    }
}
