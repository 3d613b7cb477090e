//! The one crypto provider of the data plane.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// aws-lc-rs with TLS 1.3 suites only.
///
/// The hybrid key exchange comes first, so that recorded traffic stays closed to a later quantum computer. AES-128-GCM comes
/// before AES-256-GCM: the mesh's certificates are P-256, so a longer key would cost time and add nothing.
/// Given explicitly everywhere: the process-wide default panics as soon as two providers are linked.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            use aws_lc_rs::{cipher_suite as suite, kx_group};
            Arc::new(CryptoProvider {
                cipher_suites: vec![
                    suite::TLS13_AES_128_GCM_SHA256,
                    suite::TLS13_AES_256_GCM_SHA384,
                    suite::TLS13_CHACHA20_POLY1305_SHA256,
                ],
                kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
                ..aws_lc_rs::default_provider()
            })
        })
        .clone()
}
