//! The certificate service as the proxy calls it, over real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tls_authority;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{CertificateSigningRequestParams, KeyPair, SanType};
use tls_authority::*;
use weir_proxy::identity::{GrpcSigner, SignError, SignRequest, Signer};
use weir_xds::{
    ca::{Authority as Service, CertificateRequest, CertificateService},
    tonic::{
        Status,
        metadata::MetadataMap,
        transport::{Identity, Server, ServerTlsConfig},
    },
};

const NAME: &str = "weir-control.weir-system.svc";

struct Control(Authority);

impl Service for Control {
    async fn create(&self, metadata: &MetadataMap, request: CertificateRequest) -> Result<Vec<String>, Status> {
        match metadata.get("authorization").and_then(|value| value.to_str().ok()) {
            Some("Bearer good") => {}
            Some("Bearer busy") => return Err(Status::unavailable("come back later")),
            Some("Bearer other") => return Err(Status::permission_denied("not your pod")),
            _ => return Err(Status::unauthenticated("the token has expired")),
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr)
            .map_err(|_| Status::invalid_argument("no request"))?;
        let public = csr.params.subject_alt_names.is_empty();
        assert!(public && request.validity_seconds == 3600);
        csr.params.subject_alt_names = vec![uri(CLIENT)];
        Ok(vec![csr.signed_by(&self.0.root).unwrap().pem(), self.0.root.pem()])
    }
}

/// A control plane and the roots that its own certificate stands on.
async fn control() -> (SocketAddr, String) {
    let authority = Authority::new("mesh root");
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params(CLIENT);
    params.subject_alt_names = vec![SanType::DnsName(NAME.try_into().unwrap())];
    let certificate = params.signed_by(&key, &authority.root).unwrap();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate.pem(), key.serialize_pem()));
    let roots = authority.root.pem();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = CertificateService::new(Arc::new(Control(authority)));
    tokio::spawn(
        Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    (address, roots)
}

async fn ask(address: SocketAddr, name: &str, roots: &str, token: &str) -> Result<Vec<String>, SignError> {
    let signer = GrpcSigner { address: address.to_string(), server_name: name.into() };
    let key = KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let validity = Duration::from_secs(3600);
    signer.sign(SignRequest { csr_pem: &csr, token, validity, roots: roots.as_bytes() }).await
}

#[tokio::test]
async fn signs_for_a_good_token_and_says_why_not() {
    let (address, roots) = control().await;
    let chain = ask(address, NAME, &roots, "good").await.unwrap();
    assert_eq!(chain.len(), 2);
    let error = ask(address, NAME, &roots, "expired").await.unwrap_err();
    assert_eq!(error.to_string(), "the control plane refused the token: the token has expired");
    let error = ask(address, NAME, &roots, "other").await.unwrap_err();
    assert_eq!(error.to_string(), "the control plane refused to sign: not your pod");
    assert!(matches!(ask(address, NAME, &roots, "busy").await, Err(SignError::Unreachable(_))));
}

#[tokio::test]
async fn shows_its_token_to_nobody_else() {
    let (address, roots) = control().await;
    let stranger = Authority::new("stranger").root.pem();
    for (what, name, roots) in
        [("another root", NAME, stranger.as_str()), ("another name", "evil.example", roots.as_str())]
    {
        let error = ask(address, name, roots, "good").await.unwrap_err();
        assert!(matches!(error, SignError::Unreachable(_)), "{what}: {error}");
        assert!(error.to_string().contains("certificate"), "{what}: the cause is told: {error}");
        assert!(!error.to_string().contains("good"), "{what}: {error}");
    }
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = ask(nobody, NAME, &roots, "good").await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(matches!(ask(address, NAME, "", "good").await, Err(SignError::Unreachable(_))));
}
