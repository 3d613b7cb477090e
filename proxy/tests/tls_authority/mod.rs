//! Authorities and certificates for the tests of mutual TLS.
#![allow(dead_code, unreachable_pub)] // each test program uses a part

use std::{net::SocketAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::DuplexStream;
use weir_mesh::Identity;
use weir_proxy::tls::{self, Alpn, HandshakeError, MeshTls, PortKind};

/// The called one.
pub const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/catalog";
/// The caller.
pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// Signs leaf certificates, perhaps through an intermediate authority.
pub struct Authority {
    pub root: CertifiedIssuer<'static, KeyPair>,
}

pub fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let root = CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap();
        Self { root }
    }

    pub fn root_der(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// A leaf as it should be, or as `change` makes it.
    pub fn leaf(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Material {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf_params(uri);
        change(&mut params);
        let leaf = params.signed_by(&key, &self.root).unwrap();
        Material { chain: vec![leaf.der().clone()], key: pkcs8(&key) }
    }
}

pub fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn leaf_params(name: &str) -> CertificateParams {
    let now = time::OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(name)];
    params.not_before = now - time::Duration::minutes(5);
    params.not_after = now + time::Duration::hours(24);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A chain and its key.
pub struct Material {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Material {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// One side, with a certificate of this authority.
pub fn side(authority: &Authority, name: &str) -> MeshTls {
    let tls = MeshTls::new("cluster.local".parse().unwrap());
    let material = authority.leaf(name, |_| {});
    tls.install(material.chain, material.key, vec![authority.root_der()]).unwrap();
    tls
}

pub fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

pub const LIMIT: Duration = Duration::from_secs(10);

pub fn peer() -> SocketAddr {
    "198.18.0.1:80".parse().unwrap()
}

pub type Client = tokio_rustls::client::TlsStream<DuplexStream>;
pub type Server = tokio_rustls::server::TlsStream<DuplexStream>;

/// A handshake in memory, both results.
pub async fn shake(
    client: &MeshTls,
    server: &MeshTls,
    expected: &str,
    alpn: Alpn,
    port: PortKind,
) -> (Result<Client, HandshakeError>, Result<Server, HandshakeError>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let expected = id(expected);
    let client = client.client_config(&expected, alpn).unwrap();
    let server = server.server_config(port).unwrap();
    tokio::join!(tls::connect(client, near, peer(), &expected, LIMIT), tls::accept(server, far, peer(), LIMIT))
}
