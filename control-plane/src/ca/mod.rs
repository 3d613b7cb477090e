//! The certificate authority: a root kept in a folder or a Secret, certificates for callers that have proven who they are.

mod csr;
mod issue;
mod store;

pub use csr::{CsrError, check};
pub use issue::{CertificateAuthority, IssueError, Issuing, MAX_TTL, MIN_TTL, Pair, RootChanges};
pub(crate) use store::KEY_FILE;
pub use store::StoreError;
