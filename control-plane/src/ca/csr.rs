//! Signing requests: only the key is taken from them, after its owner has proven to have it.
//!
//! The identity comes from the caller's token, never from the request. A request that names a SPIFFE identity other than the caller's
//! is refused all the same: who sends it is mistaken, or not who it should be. Other names, extensions and attributes go unread.

use rcgen::SubjectPublicKeyInfo;
use weir_mesh::Identity;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
    },
    pem::parse_x509_pem,
    prelude::FromDer as _,
    public_key::PublicKey,
};

/// Smallest and largest RSA modulus, in bits. Larger ones only cost time, of us and of every peer.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What identities begin with.
const SCHEME: &str = "spiffe:";
/// Most of a foreign name that is said again, in characters.
const MAX_SHOWN: usize = 256;

/// Why a signing request is refused. The text goes to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not a PEM block `CERTIFICATE REQUEST` with a PKCS#10 request.
    #[error("the signing request is not PKCS#10 in one PEM block CERTIFICATE REQUEST")]
    Form,
    /// Not signed with the key that it is for.
    #[error("the signing request is not signed by its own key")]
    Signature,
    /// Names somebody else.
    #[error("the signing request names {0:?}, and the token is {1}'s: leave names out, or give the own one")]
    Identity(String, String),
    /// A key or signature that is not taken.
    #[error(
        "the key is refused: use ECDSA P-256 or P-384, or RSA with 2048 to 8192 bits, signed with SHA-256 or better"
    )]
    WeakKey,
}

/// Checks a signing request of a caller with this identity, and gives its key.
///
/// # Errors
/// [`CsrError`]
pub fn check(pem: &str, caller: &Identity) -> Result<SubjectPublicKeyInfo, CsrError> {
    let (rest, block) = parse_x509_pem(pem.as_bytes()).map_err(|_| CsrError::Form)?;
    if block.label != "CERTIFICATE REQUEST" || !rest.iter().all(u8::is_ascii_whitespace) {
        return Err(CsrError::Form);
    }
    let (rest, request) = X509CertificationRequest::from_der(&block.contents).map_err(|_| CsrError::Form)?;
    let info = &request.certification_request_info.subject_pki;
    // Keys and signatures are whole bytes; the parser would pass over bits that are said to be unused.
    let whole = request.signature_value.unused_bits == 0 && info.subject_public_key.unused_bits == 0;
    if !rest.is_empty() || !whole {
        return Err(CsrError::Form);
    }
    let signature = &request.signature_algorithm.algorithm;
    let algorithm = &info.algorithm.algorithm;
    let strong = if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let known = curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
        known && [OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384].contains(signature)
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let bits = match info.parsed() {
            Ok(PublicKey::RSA(key)) => {
                let odd_exponent = key.try_exponent().is_ok_and(|exponent| exponent >= 65_537 && exponent % 2 == 1);
                if odd_exponent { key.key_size() } else { 0 }
            }
            _ => 0,
        };
        RSA_BITS.contains(&bits)
            && [OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA].contains(signature)
    } else {
        false
    };
    if !strong {
        return Err(CsrError::WeakKey);
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    let own = caller.uri();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            if let GeneralName::URI(uri) = name
                && uri.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
                && *uri != own
            {
                let shown = uri.chars().take(MAX_SHOWN).collect();
                return Err(CsrError::Identity(shown, own.to_owned()));
            }
        }
    }
    SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| CsrError::WeakKey)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData as _,
    };

    use super::*;

    fn check_own(pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
        check(pem, &"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap())
    }

    #[test]
    fn who_names_an_identity_names_its_own() {
        let asked = |names: &[&str]| {
            let mut params = CertificateParams::default();
            let uri = |name: &&str| rcgen::SanType::URI((*name).try_into().unwrap());
            params.subject_alt_names = names.iter().map(uri).collect();
            params.subject_alt_names.push(rcgen::SanType::DnsName("anything.example".try_into().unwrap()));
            check_own(&params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap())
        };
        let own = "spiffe://cluster.local/ns/shop/sa/web";
        assert!(asked(&[]).is_ok() && asked(&[own]).is_ok() && asked(&["https://example/"]).is_ok());
        for other in ["spiffe://cluster.local/ns/shop/sa/admin", "SPIFFE://cluster.local/ns/shop/sa/web", "spiffe:x"] {
            let refused = CsrError::Identity(other.into(), own.into());
            assert_eq!(asked(&[other]).unwrap_err(), refused);
            assert_eq!(asked(&[own, other]).unwrap_err(), refused);
        }
    }

    fn request(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn strong_keys_are_taken_as_they_are() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(check_own(&request(&key)).unwrap().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn weak_and_other_keys_are_refused() {
        for algorithm in [&PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(check_own(&request(&key)), Err(CsrError::WeakKey));
        }
        let small = include_str!("../../tests/data/rsa1024.csr.pem");
        assert_eq!(check_own(small), Err(CsrError::WeakKey));
        let sha1 = include_str!("../../tests/data/rsa2048-sha1.csr.pem");
        assert_eq!(check_own(sha1), Err(CsrError::WeakKey));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        for bad in
            ["", "x", &good.replace("REQUEST", "REQUESTS"), &certificate, &format!("{good}{good}"), &format!("{good}x")]
        {
            assert_eq!(check_own(bad), Err(CsrError::Form), "{bad}");
        }
    }

    #[test]
    fn a_key_that_the_caller_does_not_have_is_refused() {
        use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
        let good = request(&KeyPair::generate().unwrap());
        let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
        let key = check_own(&good).unwrap();
        let mut refused = 0;
        for i in 0..der.len() {
            let mut bytes = der.to_vec();
            bytes[i] ^= 1;
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
            match check_own(&pem) {
                Err(_) => refused += 1,
                // Outside of what is signed the parser is lenient in a tag or two; the key is the same.
                Ok(same) => assert_eq!(same, key, "byte {i} changed, and another key was accepted"),
            }
        }
        assert!(refused > 200);
    }
}
