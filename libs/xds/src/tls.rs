//! A TLS endpoint for the client's connection.

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// Why there is no way to the control plane.
#[derive(Debug, thiserror::Error)]
#[error("control plane {address}: {cause}")]
pub struct ChannelError {
    address: String,
    cause: String,
}

/// An endpoint for `HOST:PORT` that trusts only these root certificates (PEM, one or more), and asks for this name in the
/// server's certificate.
///
/// # Errors
/// Where the address or the certificates can not be read.
pub fn endpoint(address: &str, server_name: &str, roots_pem: &str) -> Result<Endpoint, ChannelError> {
    let failed = |cause: String| ChannelError { address: address.to_owned(), cause };
    if !roots_pem.contains("-----BEGIN CERTIFICATE-----") {
        return Err(failed("the file of root certificates holds none".into()));
    }
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots_pem)).domain_name(server_name);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|error| failed(error.to_string()))?;
    endpoint.tls_config(tls).map_err(|error| failed(chain(&error)))
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
