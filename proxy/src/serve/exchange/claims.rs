//! Headers in which sidecars tell their applications who calls, and on which terms.
//!
//! Applications that were written for Istio believe them, for its sidecars let nobody else write them. Between proxies of the mesh they
//! pass as they are; from a caller that has proved no identity, none arrives. What says by which way a request has come
//! (`x-forwarded-for`, `-proto`, `-host`) stays: an ingress outside of the mesh has to say it, and nobody else can.

use crate::http::{Edits, Name, RequestHead};

/// The caller's certificate, as Envoy writes it.
const CERTIFICATE: &[u8] = b"x-forwarded-client-cert";
/// What Envoys tell each other: where a call comes from, its time-outs, its retries, its original path.
const ENVOY: &[u8] = b"x-envoy-";

/// Takes them out of a request. Without such a header nothing is allocated.
pub(super) fn remove(head: &RequestHead, edits: &mut Edits) {
    let names = head.headers().map(|(name, _)| name).filter(|name| is_claim(name));
    names.filter_map(Name::received).for_each(|name| edits.remove(name));
}

/// Many applications make no difference between `-` and `_` (RFC 3875, 4.1.18), so none is made here.
fn is_claim(name: &[u8]) -> bool {
    let begins =
        |with: &[u8]| name.len() >= with.len() && name.iter().zip(with).all(|(byte, known)| spelled(*byte) == *known);
    begins(ENVOY) || name.len() == CERTIFICATE.len() && begins(CERTIFICATE)
}

fn spelled(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::is_claim;

    #[test]
    fn claims_are_known_in_every_spelling() {
        for name in [
            "x-forwarded-client-cert",
            "X-Forwarded-Client-Cert",
            "x_forwarded_client_cert",
            "X-FORWARDED_CLIENT-CERT",
            "x-envoy-",
            "X-Envoy-External-Address",
            "x_envoy-internal",
        ] {
            assert!(is_claim(name.as_bytes()), "{name}");
        }
        for name in
            ["", "x", "x-envoy", "x-forwarded-for", "x-forwarded-client-certs", "x-forwarded-client-cer", "ax-envoy-a"]
        {
            assert!(!is_claim(name.as_bytes()), "{name}");
        }
    }
}
