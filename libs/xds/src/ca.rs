//! Istio's certificate service (`istio.v1.auth.IstioCertificateService`), client and server.
//!
//! The caller is authenticated by its token (`authorization: Bearer …`); what the signing request says of
//! names gives nobody an identity.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, task::Poll, time::Duration};

use tonic::{Request, Response, Status, body::Body, codegen::http, metadata::MetadataMap, transport::Channel};
use tonic_prost::ProstCodec;

const SERVICE: &str = "istio.v1.auth.IstioCertificateService";
const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Largest request that is read, in bytes: a signing request with an RSA key of 8,192 bits has less than 4 KiB.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// A request for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS#10 signing request, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wanted validity in seconds; 0 for the server's default.
    #[prost(int64, tag = "3")]
    pub validity_seconds: i64,
}

/// The certificate, and what it is signed by.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// PEM certificates: the leaf, intermediates if any, and at the end one entry with the root certificates.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// Asks for a certificate.
///
/// # Errors
/// The server's status; `UNAVAILABLE` where it can not be reached.
pub async fn create_certificate(
    channel: Channel,
    token: &str,
    csr_pem: String,
    validity: Duration,
) -> Result<Vec<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(crate::tls::chain(&error)))?;
    let validity_seconds = i64::try_from(validity.as_secs()).unwrap_or(i64::MAX);
    let mut request = Request::new(CertificateRequest { csr: csr_pem, validity_seconds });
    request.metadata_mut().insert("authorization", crate::client::bearer(token)?);
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    let response = grpc.unary(request, http::uri::PathAndQuery::from_static(METHOD), codec).await?;
    Ok(response.into_inner().cert_chain)
}

/// Makes certificates for callers that it authenticates itself.
pub trait Authority: Send + Sync + 'static {
    /// Answers one request with the chain: leaf first.
    fn create(
        &self,
        metadata: &MetadataMap,
        request: CertificateRequest,
    ) -> impl Future<Output = Result<Vec<String>, Status>> + Send;
}

/// The service for a tonic server.
#[derive(Debug)]
pub struct CertificateService<A>(Arc<A>);

impl<A> CertificateService<A> {
    /// Serves this authority.
    pub fn new(authority: Arc<A>) -> Self {
        Self(authority)
    }
}

impl<A> Clone for CertificateService<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A> tonic::server::NamedService for CertificateService<A> {
    const NAME: &'static str = SERVICE;
}

struct Create<A>(Arc<A>);

impl<A: Authority> tonic::server::UnaryService<CertificateRequest> for Create<A> {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let authority = self.0.clone();
        Box::pin(async move {
            let (metadata, _, request) = request.into_parts();
            let cert_chain = authority.create(&metadata, request).await?;
            Ok(Response::new(CertificateResponse { cert_chain }))
        })
    }
}

impl<A: Authority> tonic::codegen::Service<http::Request<Body>> for CertificateService<A> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let authority = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("only CreateCertificate is served").into_http());
            }
            let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
            let mut grpc = tonic::server::Grpc::new(codec).apply_max_message_size_config(Some(MAX_REQUEST_BYTES), None);
            Ok(grpc.unary(Create(authority), request).await)
        })
    }
}
