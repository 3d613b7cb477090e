//! Peers with certificates of the test's making.

use std::{io, net::TcpStream, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection, SignatureScheme,
    StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    version::TLS13,
};

/// A certificate with its key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
}

impl Certificate {
    /// A certificate with these URIs, signed by the CA in this folder as Weir signs: so that only the names can be wrong.
    pub fn signed_by(ca: &Path, uris: &[&str]) -> Self {
        Self::with_names(ca, uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect())
    }

    /// The same for a server with this name.
    pub fn of_server(ca: &Path, name: &str) -> Self {
        Self::with_names(ca, vec![SanType::DnsName(name.try_into().unwrap())])
    }

    fn with_names(ca: &Path, names: Vec<SanType>) -> Self {
        let read = |name: &str| std::fs::read_to_string(ca.join(name)).unwrap();
        let ca_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("root-cert.pem"), ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
        params.subject_alt_names = names;
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Self { chain: vec![leaf.der().clone()], pem: leaf.pem(), key }
    }

    /// PEM of the certificate and of its key, for programs that read files.
    pub fn pem(&self) -> (&str, String) {
        (&self.pem, self.key.serialize_pem())
    }
}

/// Makes a new root in a folder, as Weir names the files.
pub fn new_root(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "another root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("ca-key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("root-cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
}

/// A TLS stream.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Calls a proxy of the mesh as a peer with this certificate (or none) would; whoever answers is believed. The handshake is complete
/// on this side only when this returns: a refusal shows at the first read.
pub fn call(stream: TcpStream, certificate: Option<&Certificate>, alpn: &[&str]) -> io::Result<Tls> {
    call_over(stream, certificate, alpn)
}

/// The same over any stream. The key share is a post-quantum one, as today's clients send it: a hello does not fit into one packet.
pub fn call_over<S: io::Read + io::Write>(
    stream: S,
    certificate: Option<&Certificate>,
    alpn: &[&str],
) -> io::Result<StreamOwned<ClientConnection, S>> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() });
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
            builder.with_client_auth_cert(own.chain.clone(), key).map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.enable_sni = false;
    let name = ServerName::try_from("unused.test").map_err(io::Error::other)?;
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?, stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(tls)
}

/// Answers as an application with TLS of its own: a certificate of no CA, no questions to the client.
pub fn accept(stream: TcpStream) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    let own = rcgen::generate_simple_self_signed(["app.test".to_owned()]).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(StreamOwned::new(ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?, stream))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
