//! Who signs: the control plane, behind a small trait so that tests need none.

use std::time::Duration;

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
