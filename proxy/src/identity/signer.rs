//! Who signs: the control plane, behind a small trait so that tests need none.

use std::time::Duration;

use weir_xds::{
    ca::create_certificate,
    tonic::{Code, Status},
};

/// Longest time for a connection to the control plane.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct SignRequest<'a> {
    /// The certificate request.
    pub csr_pem: &'a str,
    /// Proves who asks.
    pub token: &'a str,
    /// How long the certificate should be valid.
    pub validity: Duration,
    /// Roots that the control plane's own certificate must stand on.
    pub roots: &'a [u8],
}

/// Why the control plane did not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It can not be reached.
    #[error("the control plane can not be reached: {0}")]
    Unreachable(String),
    /// It does not believe the token.
    #[error("the control plane refused the token: {0}")]
    Unauthenticated(String),
    /// It does not sign for us.
    #[error("the control plane refused to sign: {0}")]
    Refused(String),
    /// It failed.
    #[error("the control plane failed to sign: {0}")]
    Failed(String),
}

impl SignError {
    /// A word for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }
}

/// Signs certificate requests.
pub trait Signer: Send + Sync {
    /// Returns the chain as PEM: the leaf first, roots last.
    ///
    /// # Errors
    /// [`SignError`]
    fn sign(&self, request: SignRequest<'_>) -> impl Future<Output = Result<Vec<String>, SignError>> + Send;
}

/// Asks the control plane by Istio's certificate service. Every call has a connection of its own: calls are hours apart, and
/// each sees the roots as they are then.
#[derive(Debug, Clone)]
pub struct GrpcSigner {
    /// `HOST:PORT`
    pub address: String,
    /// Name that the control plane's certificate must have.
    pub server_name: String,
}

impl Signer for GrpcSigner {
    async fn sign(&self, request: SignRequest<'_>) -> Result<Vec<String>, SignError> {
        let unreachable = |error: &dyn std::error::Error| SignError::Unreachable(causes(error));
        let roots = String::from_utf8_lossy(request.roots);
        let endpoint =
            weir_xds::endpoint(&self.address, &self.server_name, &roots).map_err(|error| unreachable(&error))?;
        let channel = endpoint.connect_timeout(CONNECT_LIMIT).connect().await.map_err(|error| unreachable(&error))?;
        create_certificate(channel, request.token, request.csr_pem.to_owned(), request.validity).await.map_err(refusal)
    }
}

fn refusal(status: Status) -> SignError {
    let why = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated => SignError::Unauthenticated(why),
        Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => SignError::Refused(why),
        Code::Unavailable => SignError::Unreachable(why),
        code => SignError::Failed(format!("{code:?}: {why}")),
    }
}

/// An error with its causes: the transport's own text says only that it failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
