//! Certificates that are wrong in one way each, shown to both sides in real handshakes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tls_authority;

use std::{net::IpAddr, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, OtherNameValue, RsaKeySize, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tls_authority::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weir_proxy::tls::{self, Alpn, HandshakeError, MeshTls, PortKind};

/// How a certificate is expected to fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Accepted,
    Refused,
    /// Right for servers only.
    ServerOnly,
    /// Right for clients only.
    ClientOnly,
}

struct Animal {
    name: &'static str,
    material: Material,
    expect: Expect,
    /// A word that the refusal must have.
    because: &'static str,
}

/// DER of a SubjectAlternativeName with raw URI names, for what no builder would write.
fn raw_uris(names: &[&[u8]]) -> CustomExtension {
    fn length(n: usize) -> Vec<u8> {
        match n {
            0..128 => vec![u8::try_from(n).unwrap()],
            128..256 => vec![0x81, u8::try_from(n).unwrap()],
            _ => [vec![0x82], u16::try_from(n).unwrap().to_be_bytes().to_vec()].concat(),
        }
    }
    let inner: Vec<u8> =
        names.iter().flat_map(|name| [vec![0x86], length(name.len()), name.to_vec()].concat()).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], [vec![0x30], length(inner.len()), inner].concat())
}

fn zoo(mesh: &Authority) -> Vec<Animal> {
    use Expect::{Accepted, ClientOnly, Refused, ServerOnly};
    let other = Authority::new("another root");
    // The same name as the mesh's root, another key.
    let twin = Authority::new("mesh root");
    let mut zoo = Vec::new();
    let mut add = |name, expect, because, uri: &str, change: &dyn Fn(&mut CertificateParams)| {
        zoo.push(Animal { name, material: mesh.leaf(uri, change), expect, because });
    };
    let as_is = |_: &mut CertificateParams| {};
    add("as it should be", Accepted, "", SERVER, &as_is);
    add("without key usage", Accepted, "", SERVER, &|p| p.key_usages.clear());
    add("without extended key usage", Accepted, "", SERVER, &|p| p.extended_key_usages.clear());
    add("with a DNS name beside the URI", Accepted, "", SERVER, &|p| {
        p.subject_alt_names.push(SanType::DnsName("catalog.shop".try_into().unwrap()));
    });
    add("with a common name of somebody else", Accepted, "", SERVER, &|p| {
        p.distinguished_name.push(DnType::CommonName, "spiffe://cluster.local/ns/shop/sa/admin");
    });
    add("no names", Refused, "no URI name", SERVER, &|p| p.subject_alt_names.clear());
    add("DNS name only", Refused, "no URI name", SERVER, &|p| {
        p.subject_alt_names = vec![SanType::DnsName("cluster.local".try_into().unwrap())];
    });
    add("DNS name that looks like the identity", Refused, "", SERVER, &|p| {
        p.subject_alt_names = vec![SanType::DnsName(SERVER.try_into().unwrap())];
    });
    add("mail address that looks like the identity", Refused, "no URI name", SERVER, &|p| {
        p.subject_alt_names = vec![SanType::Rfc822Name(SERVER.try_into().unwrap())];
    });
    add("address only", Refused, "no URI name", SERVER, &|p| {
        p.subject_alt_names = vec![SanType::IpAddress(IpAddr::from([198, 18, 0, 1]))];
    });
    add("other name that looks like the identity", Refused, "no URI name", SERVER, &|p| {
        p.subject_alt_names =
            vec![SanType::OtherName((vec![1, 2, 3, 4], OtherNameValue::Utf8String(SERVER.to_owned())))];
    });
    add("identity in the common name only", Refused, "no URI name", SERVER, &|p| {
        p.subject_alt_names.clear();
        p.distinguished_name.push(DnType::CommonName, SERVER);
    });
    add("two URI names", Refused, "2 URI names", SERVER, &|p| p.subject_alt_names.push(uri(CLIENT)));
    add("the same URI name twice", Refused, "2 URI names", SERVER, &|p| p.subject_alt_names.push(uri(SERVER)));
    add("a URI name of another kind beside it", Refused, "2 URI names", SERVER, &|p| {
        p.subject_alt_names.push(uri("https://example.org"));
    });
    add("https", Refused, "no identity", "https://cluster.local/ns/shop/sa/catalog", &as_is);
    add("another trust domain", Refused, "trust domain", "spiffe://elsewhere/ns/shop/sa/catalog", &as_is);
    add(
        "our trust domain as a prefix",
        Refused,
        "trust domain",
        "spiffe://cluster.local.evil/ns/shop/sa/catalog",
        &as_is,
    );
    add("no trust domain", Refused, "no identity", "spiffe:///ns/shop/sa/catalog", &as_is);
    add("trust domain only", Refused, "no identity", "spiffe://cluster.local", &as_is);
    add("upper-case scheme", Refused, "no identity", "SPIFFE://cluster.local/ns/shop/sa/catalog", &as_is);
    add("upper-case trust domain", Refused, "no identity", "spiffe://Cluster.Local/ns/shop/sa/catalog", &as_is);
    add("upper-case account", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/Catalog", &as_is);
    add("query", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/catalog?x=y", &as_is);
    add("fragment", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/catalog#x", &as_is);
    add("user", Refused, "no identity", "spiffe://me@cluster.local/ns/shop/sa/catalog", &as_is);
    add("port", Refused, "no identity", "spiffe://cluster.local:443/ns/shop/sa/catalog", &as_is);
    add("path traversal", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/../sa/catalog", &as_is);
    add("dot segment", Refused, "no identity", "spiffe://cluster.local/ns/./shop/sa/catalog", &as_is);
    add("percent-encoding", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/%63atalog", &as_is);
    add("trailing slash", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/catalog/", &as_is);
    add("double slash", Refused, "no identity", "spiffe://cluster.local/ns//shop/sa/catalog", &as_is);
    add("further segments", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/catalog/sa/x", &as_is);
    add("empty namespace", Refused, "no identity", "spiffe://cluster.local/ns//sa/catalog", &as_is);
    add("empty account", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/", &as_is);
    add("empty account, cut", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa", &as_is);
    add("segments exchanged", Refused, "no identity", "spiffe://cluster.local/sa/catalog/ns/shop", &as_is);
    add("wildcard trust domain", Refused, "", "spiffe://*/ns/shop/sa/catalog", &as_is);
    add("trust domain with a trailing dot", Refused, "", "spiffe://cluster.local./ns/shop/sa/catalog", &as_is);
    add(
        "trust domain in Punycode",
        Refused,
        "trust domain",
        "spiffe://xn--cluster-9za.local/ns/shop/sa/catalog",
        &as_is,
    );
    add("an address as trust domain", Refused, "trust domain", "spiffe://198.18.0.1/ns/shop/sa/catalog", &as_is);
    add("wildcard", Refused, "no identity", "spiffe://cluster.local/ns/shop/sa/*", &as_is);
    add("space in front", Refused, "no identity", " spiffe://cluster.local/ns/shop/sa/catalog", &as_is);
    add(
        "a trust domain of 300 bytes",
        Refused,
        "no identity",
        &format!("spiffe://{}/ns/a/sa/b", "a".repeat(300)),
        &as_is,
    );
    add("4,000 bytes", Refused, "no identity", &format!("{SERVER}{}", "a".repeat(4000)), &as_is);
    let raw = |names: Vec<Vec<u8>>| {
        move |p: &mut CertificateParams| {
            p.subject_alt_names.clear();
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            p.custom_extensions.push(raw_uris(&names));
        }
    };
    let with = |tail: &[u8]| [SERVER.as_bytes(), tail].concat();
    add("raw, but as it should be", Accepted, "", SERVER, &raw(vec![SERVER.into()]));
    add("embedded NUL", Refused, "", SERVER, &raw(vec![with(b"\0.evil")]));
    add("NUL at the end", Refused, "", SERVER, &raw(vec![with(b"\0")]));
    add("newline", Refused, "", SERVER, &raw(vec![with(b"\n")]));
    add("not ASCII", Refused, "", SERVER, &raw(vec![with("\u{e9}".as_bytes())]));
    add("not UTF-8", Refused, "", SERVER, &raw(vec![with(b"\xff")]));
    add("empty", Refused, "", SERVER, &raw(vec![vec![]]));
    add("an empty one beside it", Refused, "", SERVER, &raw(vec![SERVER.into(), vec![]]));
    add("a broken one beside it", Refused, "", SERVER, &raw(vec![SERVER.into(), vec![0xff]]));
    add("names that do not parse", Refused, "", SERVER, &|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x80, 1, 2, 3]));
    });
    add("names twice", Refused, "", SERVER, &|p| p.custom_extensions.push(raw_uris(&[CLIENT.as_bytes()])));
    add("an unknown extension that is critical", Refused, "", SERVER, &|p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4, 5], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    add("expired", Refused, "expired", SERVER, &|p| {
        p.not_after = time::OffsetDateTime::now_utc() - time::Duration::minutes(1);
    });
    add("not yet valid", Refused, "not valid yet", SERVER, &|p| {
        p.not_before = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    });
    add("CA:TRUE", Refused, "", SERVER, &|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    add("may sign certificates", Refused, "sign certificates", SERVER, &|p| {
        p.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    add("may sign revocation lists", Refused, "sign certificates or revocation", SERVER, &|p| {
        p.key_usages.push(KeyUsagePurpose::CrlSign);
    });
    add("may not sign", Refused, "digital signatures", SERVER, &|p| {
        p.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    });
    add("for servers", ServerOnly, "", SERVER, &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    add("for clients", ClientOnly, "", SERVER, &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    add("for code", Refused, "", SERVER, &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    add("for any use", Refused, "", SERVER, &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]);

    let key = KeyPair::generate().unwrap();
    let own = leaf_params(SERVER).self_signed(&key).unwrap();
    let mut push = |name, material, expect, because| zoo.push(Animal { name, material, expect, because });
    push("self-signed", Material { chain: vec![own.der().clone()], key: pkcs8(&key) }, Refused, "UnknownIssuer");
    push("of another root", other.leaf(SERVER, |_| {}), Refused, "UnknownIssuer");
    let mut with_root = other.leaf(SERVER, |_| {});
    with_root.chain.push(other.root_der());
    push("of another root, which it brings along", with_root, Refused, "UnknownIssuer");
    push("of a root with the same name", twin.leaf(SERVER, |_| {}), Refused, "");

    let intermediate = |constraints: IsCa, usages: Vec<KeyUsagePurpose>| {
        let mut params = authority_params("intermediate");
        params.is_ca = constraints;
        params.key_usages = usages;
        CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &mesh.root).unwrap()
    };
    let through = |issuer: &CertifiedIssuer<'static, KeyPair>, bring: bool| {
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(SERVER).signed_by(&key, issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend(bring.then(|| issuer.der().clone()));
        Material { chain, key: pkcs8(&key) }
    };
    let good = intermediate(IsCa::Ca(BasicConstraints::Constrained(0)), vec![KeyUsagePurpose::KeyCertSign]);
    push("through an intermediate", through(&good, true), Accepted, "");
    push("through an intermediate that is missing", through(&good, false), Refused, "UnknownIssuer");
    let no_authority = intermediate(IsCa::ExplicitNoCa, vec![KeyUsagePurpose::DigitalSignature]);
    push("signed by a leaf", through(&no_authority, true), Refused, "");
    let second = CertifiedIssuer::signed_by(authority_params("second"), KeyPair::generate().unwrap(), &good).unwrap();
    let mut too_deep = through(&second, true);
    too_deep.chain.push(good.der().clone());
    push("deeper than the intermediate allows", too_deep, Refused, "");

    // Kinds of keys. rcgen signs with one of a kind that webpki takes; what it does not take is refused, and nothing else breaks.
    for (name, algorithm, expect) in [
        ("with a key on P-384", &rcgen::PKCS_ECDSA_P384_SHA384, Accepted),
        ("with a key on P-521", &rcgen::PKCS_ECDSA_P521_SHA512, Accepted),
        ("with a key of Ed25519", &rcgen::PKCS_ED25519, Accepted),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = leaf_params(SERVER).signed_by(&key, &mesh.root).unwrap();
        push(name, Material { chain: vec![leaf.der().clone()], key: pkcs8(&key) }, expect, "");
    }
    for (name, size, expect) in [
        ("with a key of RSA, 2048 bits", RsaKeySize::_2048, Accepted),
        ("with a key of RSA, 4096 bits", RsaKeySize::_4096, Accepted),
    ] {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
        let leaf = leaf_params(SERVER).signed_by(&key, &mesh.root).unwrap();
        push(name, Material { chain: vec![leaf.der().clone()], key: pkcs8(&key) }, expect, "");
    }

    // Chains. An intermediate for other names only; one that has expired; one that may sign nothing; more of them than anybody needs.
    let constrained = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = authority_params("constrained");
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &mesh.root).unwrap();
        through(&issuer, true)
    };
    let names = |permitted: &[&str], excluded: &[&str]| {
        let subtrees = |list: &[&str]| list.iter().map(|name| GeneralSubtree::DnsName((*name).into())).collect();
        Some(NameConstraints { permitted_subtrees: subtrees(permitted), excluded_subtrees: subtrees(excluded) })
    };
    let expired = constrained(&|p| p.not_after = time::OffsetDateTime::now_utc() - time::Duration::minutes(1));
    push("through an intermediate that has expired", expired, Refused, "expired");
    let no_signing = constrained(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    push("through an authority without the key usage of one", no_signing, Refused, "came with it does not allow");
    let silent = constrained(&|p| p.key_usages.clear());
    push("through an authority that says nothing of its key's usage", silent, Accepted, "");
    let mut bystander = through(&good, true);
    bystander.chain.push(bystander.chain[0].clone());
    push("with its leaf among the authorities", bystander, Refused, "came with it does not allow");
    let no_constraints = constrained(&|p| p.is_ca = IsCa::NoCa);
    push("through an authority without basic constraints", no_constraints, Refused, "");
    let for_others = constrained(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    push("through an intermediate for code", for_others, Refused, "");
    let no_uris = constrained(&|p| p.name_constraints = names(&["example.org"], &[]));
    push("through an intermediate for other kinds of names", no_uris, Accepted, "");
    let critical = constrained(&|p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4, 5], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    push("through an intermediate with an unknown critical extension", critical, Refused, "");
    let mut issuers =
        vec![CertifiedIssuer::signed_by(authority_params("0"), KeyPair::generate().unwrap(), &mesh.root).unwrap()];
    for number in 1..12 {
        let last = issuers.last().unwrap();
        let name = number.to_string();
        issuers.push(CertifiedIssuer::signed_by(authority_params(&name), KeyPair::generate().unwrap(), last).unwrap());
    }
    let mut long = through(issuers.last().unwrap(), true);
    long.chain.extend(issuers.iter().rev().skip(1).map(|issuer| issuer.der().clone()));
    push("through twelve intermediates", long, Refused, "");
    let mut crowd = mesh.leaf(SERVER, |_| {});
    crowd.chain.extend(std::iter::repeat_n(twin.root_der(), 50));
    push("with fifty certificates that lead nowhere", crowd, Accepted, "");
    let mut circle = through(&good, true);
    circle.chain.extend(std::iter::repeat_n(circle.chain[1].clone(), 30));
    push("with its intermediate thirty times over", circle, Accepted, "");
    let heavy = mesh.leaf(SERVER, |p| {
        p.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4, 6], vec![0; 60_000]));
    });
    push("of 60 kB", heavy, Accepted, "");
    let many = mesh.leaf(SERVER, |p| {
        p.subject_alt_names.extend((0..1000).map(|n| SanType::DnsName(format!("a{n}.test").try_into().unwrap())));
    });
    push("with a thousand other names", many, Accepted, "");

    let mut foreign_key = mesh.leaf(SERVER, |_| {});
    foreign_key.key = mesh.leaf(CLIENT, |_| {}).key;
    push("with a key of somebody else", foreign_key, Refused, "");
    let mut tail = mesh.leaf(SERVER, |_| {});
    let longer = [tail.chain[0].as_ref(), &[0]].concat();
    tail.chain[0] = longer.into();
    push("with a byte behind its end", tail, Refused, "");
    let mut cut = mesh.leaf(SERVER, |_| {});
    let shorter = cut.chain[0][..cut.chain[0].len() - 1].to_vec();
    cut.chain[0] = shorter.into();
    push("cut short", cut, Refused, "");
    let mut changed = mesh.leaf(SERVER, |_| {});
    let mut der = changed.chain[0].to_vec();
    let at = der.windows(7).position(|w| w == b"catalog").unwrap();
    der[at] = b'k';
    changed.chain[0] = der.into();
    push("changed after it was signed", changed, Refused, "");
    zoo
}

#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Shows a certificate whatever it is, also with a key that is not its own.
#[derive(Debug)]
struct Show(Arc<rustls::sign::CertifiedKey>);

impl Show {
    fn new(material: &Material) -> Arc<Self> {
        let key = tls::provider().key_provider.load_private_key(material.key.clone_key()).unwrap();
        Arc::new(Self(Arc::new(rustls::sign::CertifiedKey::new(material.chain.clone(), key))))
    }
}

impl rustls::server::ResolvesServerCert for Show {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Show {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A server that shows any certificate and asks for none.
fn any_server(material: &Material) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Show::new(material));
    config.alpn_protocols = vec![tls::alpn::HTTP1.to_vec()];
    Arc::new(config)
}

/// A client that shows any certificate and checks none.
fn any_client(material: &Material) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_cert_resolver(Show::new(material));
    config.alpn_protocols = vec![tls::alpn::HTTP1.to_vec()];
    Arc::new(config)
}

async fn called_by_us(us: &MeshTls, material: &Material) -> Result<(), HandshakeError> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let expected = id(SERVER);
    let config = us.client_config(&expected, Alpn::Http1).unwrap();
    let server = TlsAcceptor::from(any_server(material)).accept(far);
    let (ours, _) = tokio::join!(tls::connect(config, near, peer(), &expected, LIMIT), server);
    ours.map(|stream| assert_eq!(tls::peer_identity(stream.get_ref().1), Some(expected.clone())))
}

async fn calling_us(us: &MeshTls, material: &Material) -> Result<(), HandshakeError> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let config = us.server_config(PortKind::Http).unwrap();
    let client = TlsConnector::from(any_client(material)).connect(ServerName::try_from("any").unwrap(), near);
    let (ours, _) = tokio::join!(tls::accept(config, far, peer(), LIMIT), client);
    ours.map(|stream| assert_eq!(tls::peer_identity(stream.get_ref().1), Some(id(SERVER))))
}

#[tokio::test]
async fn both_sides_judge_every_certificate_alike() {
    let mesh = Authority::new("mesh root");
    let us = side(&mesh, CLIENT);
    let zoo = zoo(&mesh);
    assert!(zoo.len() > 60, "{} certificates", zoo.len());
    let mut wrong = Vec::new();
    for Animal { name, material, expect, because } in &zoo {
        for (side, result, accepted) in [
            ("server", called_by_us(&us, material).await, matches!(expect, Expect::Accepted | Expect::ServerOnly)),
            ("client", calling_us(&us, material).await, matches!(expect, Expect::Accepted | Expect::ClientOnly)),
        ] {
            match result {
                Ok(()) if accepted => {}
                Ok(()) => wrong.push(format!("{name}: accepted as {side}")),
                Err(error) if accepted => wrong.push(format!("{name}: refused as {side}: {error}")),
                Err(error) if !format!("{error} {:?}", error.source).contains(because) => {
                    wrong.push(format!("{name}: refused as {side} for another reason: {error}"));
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.chars().all(|c| !c.is_control()), "{name}: {text:?}");
                    assert!(text.len() < 1000, "{name}: {text}");
                    assert!(text.contains("198.18.0.1:80"), "{text}");
                    assert_eq!(error.expected.is_some(), side == "server");
                    assert_ne!(error.reason(), "connection", "{name}: {text}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_server_must_be_whom_we_called() {
    let mesh = Authority::new("mesh root");
    let (client, server) = (side(&mesh, CLIENT), side(&mesh, SERVER));
    let other = "spiffe://cluster.local/ns/shop/sa/admin";
    let (got, _) = shake(&client, &server, other, Alpn::Http1, PortKind::Http).await;
    let error = got.unwrap_err();
    assert_eq!(error.expected, Some(id(other)));
    assert_eq!(error.got(), Some(&id(SERVER)));
    assert_eq!(error.reason(), "peer_identity");
    assert_eq!(
        error.to_string(),
        format!("mutual TLS with 198.18.0.1:80 (expected {other}) failed: expected {other}, the peer is {SERVER}")
    );
}

#[tokio::test]
async fn aliases_of_the_trust_domain_are_accepted_on_request() {
    let mesh = Authority::new("mesh root");
    let elsewhere = "spiffe://old.example/ns/shop/sa/catalog";
    let strict = side(&mesh, CLIENT);
    let wide = MeshTls::with_aliases("cluster.local".parse().unwrap(), ["old.example".parse().unwrap()]);
    let material = mesh.leaf(CLIENT, |_| {});
    wide.install(material.chain, material.key, vec![mesh.root_der()]).unwrap();
    let visitor = mesh.leaf(elsewhere, |_| {});
    let (near, far) = tokio::io::duplex(64 * 1024);
    let config = wide.server_config(PortKind::Http).unwrap();
    let client = TlsConnector::from(any_client(&visitor)).connect(ServerName::try_from("any").unwrap(), near);
    let (ours, _) = tokio::join!(tls::accept(config, far, peer(), LIMIT), client);
    assert_eq!(tls::peer_identity(ours.unwrap().get_ref().1), Some(id(elsewhere)));
    let error = calling_us(&strict, &visitor).await.unwrap_err();
    assert_eq!(error.got(), Some(&id(elsewhere)));
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused() {
    let mesh = Authority::new("mesh root");
    let us = side(&mesh, SERVER);
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::alpn::HTTP1.to_vec()];
    let (near, far) = tokio::io::duplex(64 * 1024);
    let server = tls::accept(us.server_config(PortKind::Http).unwrap(), far, peer(), LIMIT);
    let client = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("any").unwrap(), near);
    let (ours, theirs) = tokio::join!(server, client);
    assert_eq!(ours.unwrap_err().reason(), "peer_without_certificate");
    // The client learns of it at its first read.
    let mut theirs = theirs.unwrap();
    let _ = theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    let error = theirs.read(&mut [0; 16]).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn only_tls_13_is_spoken() {
    let mesh = Authority::new("mesh root");
    let us = side(&mesh, SERVER);
    let material = mesh.leaf(CLIENT, |_| {});
    let old = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(old.clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_cert_resolver(Show::new(&material));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (ours, theirs) = tokio::join!(
        tls::accept(us.server_config(PortKind::Http).unwrap(), far, peer(), LIMIT),
        TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("any").unwrap(), near)
    );
    assert_eq!(ours.unwrap_err().reason(), "peer_incompatible");
    assert!(theirs.is_err());

    let server = ServerConfig::builder_with_provider(old)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Show::new(&mesh.leaf(SERVER, |_| {})));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let expected = id(SERVER);
    let config = us.client_config(&expected, Alpn::Http1).unwrap();
    let (ours, _) = tokio::join!(
        tls::connect(config, near, peer(), &expected, LIMIT),
        TlsAcceptor::from(Arc::new(server)).accept(far)
    );
    assert!(ours.is_err());
}

#[tokio::test]
async fn a_stock_verifier_refuses_what_has_no_name_for_it() {
    // Our own certificate is one that other software can check, too.
    let mesh = Authority::new("mesh root");
    let us = side(&mesh, CLIENT);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(mesh.root_der()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build().unwrap();
    let material = mesh.leaf(SERVER, |_| {});
    let server = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Show::new(&material));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let expected = id(SERVER);
    let config = us.client_config(&expected, Alpn::Http1).unwrap();
    let (ours, theirs) = tokio::join!(
        tls::connect(config, near, peer(), &expected, LIMIT),
        TlsAcceptor::from(Arc::new(server)).accept(far)
    );
    let theirs = theirs.unwrap();
    assert_eq!(theirs.get_ref().1.server_name(), None, "no server name is sent");
    assert_eq!(theirs.get_ref().1.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert!(ours.is_ok());
}

#[tokio::test]
async fn the_port_decides_the_protocol() {
    let mesh = Authority::new("mesh root");
    let us = side(&mesh, SERVER);
    let material = mesh.leaf(CLIENT, |_| {});
    let (http, h2, opaque, exchange) =
        (tls::alpn::HTTP1, tls::alpn::HTTP2, tls::alpn::OPAQUE, tls::alpn::PEER_EXCHANGE);
    type Case<'a> = (&'a [&'a [u8]], PortKind, Option<&'a [u8]>);
    let cases: &[Case<'_>] = &[
        (&[http], PortKind::Http, Some(http)),
        (&[http, opaque], PortKind::Http, Some(http)),
        (&[opaque, http], PortKind::Http, Some(http)),
        (&[opaque], PortKind::Http, Some(opaque)),
        (&[exchange, opaque], PortKind::Http, Some(opaque)),
        (&[h2, opaque, b"h2"], PortKind::Http, Some(h2)),
        (&[http, opaque, b"http/1.1"], PortKind::Opaque, Some(opaque)),
        (&[exchange, opaque], PortKind::Opaque, Some(opaque)),
        (&[opaque], PortKind::Opaque, Some(opaque)),
        (&[http], PortKind::Opaque, Some(http)),
        (&[h2], PortKind::Opaque, Some(h2)),
        (&[h2], PortKind::Http, Some(h2)),
        (&[h2, http], PortKind::Http, Some(h2)),
        (&[exchange], PortKind::Http, None),
        (&[exchange], PortKind::Opaque, None),
        (&[b"h2", b"http/1.1"], PortKind::Http, None),
    ];
    for (offered, port, expected) in cases {
        let mut config = Arc::unwrap_or_clone(any_client(&material));
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (ours, theirs) = tokio::join!(
            tls::accept(us.server_config(*port).unwrap(), far, peer(), LIMIT),
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("any").unwrap(), near)
        );
        let shown: Vec<_> = offered.iter().map(|name| String::from_utf8_lossy(name)).collect();
        match expected {
            Some(expected) => {
                let stream = ours.unwrap();
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(*expected), "{shown:?} {port:?}");
                let spoken = [(http, Alpn::Http1), (h2, Alpn::Http2), (opaque, Alpn::Opaque)];
                let inside = spoken.into_iter().find(|(name, _)| name == expected);
                assert_eq!(tls::negotiated(stream.get_ref().1), inside.map(|(_, alpn)| alpn));
                assert_eq!(theirs.unwrap().get_ref().1.alpn_protocol(), Some(*expected));
            }
            None => {
                assert_eq!(ours.unwrap_err().reason(), "no_common_alpn", "{shown:?} {port:?}");
                assert!(theirs.is_err());
            }
        }
    }
    // Between two of us.
    let client = side(&mesh, CLIENT);
    for (alpn, port, inside) in [
        (Alpn::Http1, PortKind::Http, Alpn::Http1),
        (Alpn::Http1, PortKind::Opaque, Alpn::Opaque),
        (Alpn::Http2, PortKind::Http, Alpn::Http2),
        (Alpn::Http2, PortKind::Opaque, Alpn::Opaque),
        (Alpn::Opaque, PortKind::Http, Alpn::Opaque),
        (Alpn::Opaque, PortKind::Opaque, Alpn::Opaque),
    ] {
        let (near, far) = shake(&client, &us, SERVER, alpn, port).await;
        let (near, far) = (near.unwrap(), far.unwrap());
        assert_eq!(tls::negotiated(near.get_ref().1), Some(inside));
        assert_eq!(tls::negotiated(far.get_ref().1), Some(inside));
        assert_eq!(tls::peer_identity(far.get_ref().1), Some(id(CLIENT)));
    }
}

#[tokio::test]
async fn bytes_that_are_no_tls_and_silence() {
    let mesh = Authority::new("mesh root");
    let us = side(&mesh, SERVER);
    let config = || us.server_config(PortKind::Http).unwrap();
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 64], &[]] {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(junk).await.unwrap();
        near.shutdown().await.unwrap();
        let error = tls::accept(config(), far, peer(), LIMIT).await.unwrap_err();
        assert!(error.to_string().starts_with("mutual TLS with caller 198.18.0.1:80 failed"), "{error}");
    }
    let (_silent, far) = tokio::io::duplex(1024);
    let error = tls::accept(config(), far, peer(), std::time::Duration::from_millis(30)).await.unwrap_err();
    assert_eq!(error.reason(), "handshake_timeout");
}
