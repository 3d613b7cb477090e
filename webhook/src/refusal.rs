//! Why a pod is refused: every reason at once, each with its remedy, in words for the person who wrote the pod.

use std::fmt;

use weir_mesh::{AnnotationError, ports};

/// One reason to refuse a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The object has another shape than the Kubernetes API gives it.
    #[error("{path}: expected {expected}")]
    Malformed {
        /// Where, as dotted path.
        path: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A `weir.dev/…` annotation with a bad value or name.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The injection label has a value that means nothing.
    #[error("label weir.dev/inject: {0:?} is neither \"true\" nor \"false\"")]
    Label(String),
    /// Asks for injection and for the node's network.
    #[error(
        "label weir.dev/inject=true on a pod with hostNetwork: its traffic is the node's and can not be redirected; \
         remove the label or hostNetwork"
    )]
    HostNetwork,
    /// Asks for injection on Windows.
    #[error("label weir.dev/inject=true on a Windows pod: the proxy runs on Linux only; remove the label")]
    Windows,
    /// Runs as the proxy's user.
    #[error(
        "{0} is {uid}, the user of the proxy, whose traffic is not redirected: give the application another user",
        uid = ports::PROXY_UID
    )]
    ProxyUser(String),
    /// A container or volume with one of our names that is not ours.
    #[error("{0} is a name of the mesh: rename it, or find the webhook that has put another in its place")]
    ReservedName(String),
    /// A container port that the proxy listens on.
    #[error("{path} is {port}, a port of the proxy: serve on another port")]
    ReservedPort {
        /// Where, as dotted path.
        path: String,
        /// The port.
        port: u16,
    },
    /// A probe already points at the proxy, and nothing says what it was.
    #[error(
        "{0} calls the proxy already, but what it was before is lost: another webhook or a copied pod took away the \
         weir-proxy container; restore the original probe or hook"
    )]
    LostCall(String),
    /// Resources of the proxy that can not be met.
    #[error("{0}")]
    Resources(String),
}

/// Why a pod is refused; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    reasons: Vec<Reason>,
}

impl Refusal {
    /// All reasons, in the order in which they were found.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// `Ok` where there is no reason.
    pub(crate) fn unless_empty(reasons: Vec<Reason>) -> Result<(), Self> {
        if reasons.is_empty() { Ok(()) } else { Err(Self { reasons }) }
    }

    pub(crate) fn malformed(path: impl Into<String>, expected: &'static str) -> Self {
        Reason::Malformed { path: path.into(), expected }.into()
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reasons: vec![reason] }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, reason) in self.reasons.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            reason.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}
