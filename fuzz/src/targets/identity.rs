//! What callers of the control plane prove themselves with.

use std::sync::OnceLock;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SanType,
};
use serde_json::{Value, json};
use weir_control::{auth::TokenVerifier, ca};
use weir_mesh::Identity;

use super::text;
use crate::{Shape, Target};

pub(super) const CSR: Target = Target {
    name: "csr",
    holds: "a signing request is accepted only with one of the keys that signed the saved ones, and only for its own identity",
    max_len: 4096,
    words: &[&[
        b"-----BEGIN CERTIFICATE REQUEST-----\n",
        b"-----END CERTIFICATE REQUEST-----\n",
        b"-----BEGIN CERTIFICATE-----\n",
        b"\n",
        b"\r\n",
        b"=",
        b"AAAA",
        b"MIH",
        b"MIIB",
        b"\0",
        b" ",
        b"Proc-Type: 4,ENCRYPTED\n",
    ]],
    seeds: requests,
    run: csr,
};

pub(super) const TOKEN: Target = Target {
    name: "token",
    holds: "a token is accepted only as it was signed, byte for byte, and never for another audience, issuer, time or algorithm",
    max_len: 4096,
    words: &[&[
        b".",
        b"..",
        b"=",
        b"-",
        b"_",
        b"eyJhbGciOiJub25lIn0",
        b"eyJhbGciOiJIUzI1NiJ9",
        b"AAAA",
        b" ",
        b"Bearer ",
        b"\0",
    ]],
    seeds: tokens,
    run: token,
};

struct Requests {
    pem: Vec<String>,
    /// Public keys of those that may be accepted.
    keys: Vec<Vec<u8>>,
}

const OWN: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn made_requests() -> &'static Requests {
    static MADE: OnceLock<Requests> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut made = Requests { pem: Vec::new(), keys: Vec::new() };
        let names: [&[&str]; 4] =
            [&[], &[OWN], &["spiffe://cluster.local/ns/shop/sa/other"], &[OWN, "https://a.example/"]];
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            for names in names {
                let Ok(key) = KeyPair::generate_for(algorithm) else { continue };
                let mut params = CertificateParams::default();
                params.subject_alt_names =
                    names.iter().filter_map(|name| Some(SanType::URI((*name).try_into().ok()?))).collect();
                let Some(pem) = params.serialize_request(&key).ok().and_then(|request| request.pem().ok()) else {
                    continue;
                };
                made.pem.push(pem);
                let foreign = names.contains(&"spiffe://cluster.local/ns/shop/sa/other");
                if algorithm != &PKCS_ED25519 && !foreign {
                    made.keys.push(key.der_bytes().to_vec());
                }
            }
        }
        made.pem.push(include_str!("../../../control-plane/tests/data/rsa1024.csr.pem").to_owned());
        made.pem.push(include_str!("../../../control-plane/tests/data/rsa2048-sha1.csr.pem").to_owned());
        made
    })
}

fn requests() -> Vec<Vec<u8>> {
    made_requests().pem.iter().map(|pem| pem.clone().into_bytes()).collect()
}

fn csr(bytes: &[u8]) -> Shape {
    let Ok(own) = OWN.parse::<Identity>() else { panic!("an identity") };
    match ca::check(&text(bytes), &own) {
        Err(refused) => {
            let text = refused.to_string();
            assert!(!text.is_empty() && text.len() < 2048);
            Shape::of(text.chars().take(32).collect::<String>())
        }
        Ok(key) => {
            let known = made_requests().keys.iter().any(|known| known == key.der_bytes());
            assert!(known, "accepted with a key that signed none of the saved requests");
            Shape::of("accepted")
        }
    }
}

/// Public and private half of a key that is nowhere else in use.
struct Signer {
    verifier: TokenVerifier,
    /// Tokens that may be accepted.
    good: Vec<String>,
    bad: Vec<String>,
}

const ISSUER: &str = "https://kubernetes.default.svc";

fn claims() -> Value {
    // Far from now, whenever that is.
    json!({"aud": ["weir-control"], "iss": ISSUER, "exp": 32_503_680_000_u64, "iat": 1_700_000_000, "nbf": 1_700_000_000,
        "sub": "system:serviceaccount:shop:cart",
        "kubernetes.io": {"namespace": "shop", "pod": {"name": "cart-1", "uid": "u"}, "serviceaccount": {"name": "cart", "uid": "s"}}})
}

fn signer() -> &'static Signer {
    static MADE: OnceLock<Signer> = OnceLock::new();
    #[allow(clippy::expect_used)] // without a key there is nothing to test
    MADE.get_or_init(|| {
        let key = KeyPair::generate().expect("a key");
        let verifier =
            TokenVerifier::new(key.public_key_pem().as_bytes(), ISSUER, "cluster.local".parse().expect("a domain"));
        let private = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).expect("its own key");
        let sign =
            |claims: &Value| jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &private).expect("a token");
        let mut bad = Vec::new();
        let with = |pointer: &str, value: Value| {
            let mut claims = claims();
            if let Some(place) = claims.pointer_mut(pointer) {
                *place = value;
            }
            claims
        };
        for (pointer, value) in [
            ("/aud", json!(["other"])),
            ("/iss", json!("https://evil")),
            ("/exp", json!(1_700_000_001)),
            ("/nbf", json!(32_503_680_000_u64)),
            ("/sub", json!("system:serviceaccount:shop:other")),
            ("/kubernetes.io/pod", json!({"name": "cart-1"})),
            ("/kubernetes.io/namespace", json!("../x")),
        ] {
            bad.push(sign(&with(pointer, value)));
        }
        let secret = EncodingKey::from_secret(key.public_key_pem().as_bytes());
        bad.extend(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &secret));
        let good = vec![sign(&claims()), sign(&with("/aud", json!("weir-control")))];
        Signer { verifier: verifier.expect("a public key"), good, bad }
    })
}

fn tokens() -> Vec<Vec<u8>> {
    let signer = signer();
    signer.good.iter().chain(&signer.bad).map(|token| token.clone().into_bytes()).collect()
}

fn token(bytes: &[u8]) -> Shape {
    let signer = signer();
    let text = text(bytes);
    match signer.verifier.verify(&text) {
        Err(refused) => Shape::of(refused.to_string().chars().take(48).collect::<String>()),
        Ok(caller) => {
            let signed = |token: &str| token.rsplit_once('.').map(|(signed, _)| signed.to_owned());
            assert!(signer.good.iter().any(|good| signed(good) == signed(&text)), "accepted: {text}");
            assert_eq!((caller.identity.uri(), caller.uid.as_str()), (OWN, "u"));
            assert_eq!(caller.pod.to_string(), "shop/cart-1");
            Shape::of("accepted")
        }
    }
}
