//! Mutual TLS between proxies: who we are, whom we talk to, and nothing else.
//!
//! [`MeshTls`] owns the pod's certificate, its key and the mesh's roots, and hands out ready `rustls` configurations. It does
//! not fetch certificates (`identity`), it does not decide when TLS is spoken (`detect`, route tables) and it does no name
//! resolution: the only name it knows is the SPIFFE identity.
//!
//! TLS 1.3 only. Sessions are never resumed: a resumed session would carry an identity that was checked against roots and a
//! certificate which may both have been replaced since. HTTP connections are pooled, so a handshake is rare there; what a
//! resumption would save for opaque TCP is measured in `docs/security.md`.

mod error;
mod handshake;
mod material;
mod provider;
mod svid;
#[cfg(test)]
mod tests;
mod verify;

pub use error::{HandshakeError, InstallError, PeerError};
pub use handshake::{accept, connect};
pub use material::{Alpn, CertFacts, MeshTls, PortKind, RootFacts};
pub use provider::provider;
pub(crate) use svid::svid_identity;
pub use svid::{Side, Svid};

use rustls::CommonState;
use weir_mesh::Identity;

/// ALPN names, as Istio's sidecars speak them.
pub mod alpn {
    /// HTTP/1.1 inside.
    pub const HTTP1: &[u8] = b"istio-http/1.1";
    /// HTTP/2 inside.
    pub const HTTP2: &[u8] = b"istio-h2";
    /// Opaque bytes inside.
    pub const OPAQUE: &[u8] = b"istio";
    /// Opaque bytes behind a metadata preamble: never chosen.
    pub const PEER_EXCHANGE: &[u8] = b"istio-peer-exchange";
}

/// The peer's identity, after a completed handshake of one of our configurations; `None` before it.
///
/// Reads the certificate that the verifier accepted. Call it once a connection and keep the result beside it.
pub fn peer_identity(connection: &CommonState) -> Option<Identity> {
    let leaf = connection.peer_certificates()?.first()?;
    svid_identity(leaf).ok()
}

/// What the two proxies agreed to speak inside; `None` without an agreement.
pub fn negotiated(connection: &CommonState) -> Option<Alpn> {
    match connection.alpn_protocol()? {
        alpn::HTTP1 => Some(Alpn::Http1),
        alpn::HTTP2 => Some(Alpn::Http2),
        alpn::OPAQUE => Some(Alpn::Opaque),
        _ => None,
    }
}
