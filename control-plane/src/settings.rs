//! Command line of `weir-control`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use weir_mesh::{TrustDomain, names};

use crate::ca::{MAX_TTL, MIN_TTL};

/// Weir's control plane: tells proxies where services are and which rules hold, and gives them certificates.
#[derive(Debug, Clone, Parser)]
#[command(name = "weir-control", version)]
pub struct Settings {
    /// Address that proxies connect to (TLS).
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:15012")]
    pub listen: SocketAddr,
    /// Folder of manifests to serve; changes take effect at once.
    #[arg(long, value_name = "DIR")]
    pub config_dir: PathBuf,
    /// Folder with ca-key.pem and root-cert.pem; both are made where there are none.
    #[arg(long, value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Trust domain of the identities.
    #[arg(long, value_name = "NAME", default_value = weir_mesh::bootstrap::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// PEM file with the public key that pods' tokens are signed with (RS256 or ES256).
    #[arg(long, value_name = "FILE")]
    pub token_key: PathBuf,
    /// Issuer of pods' tokens.
    #[arg(long, value_name = "ISSUER")]
    pub token_issuer: String,
    /// Longest life of a pod's certificate, in seconds; proxies renew theirs at half of it.
    #[arg(long, value_name = "SECONDS", default_value_t = MAX_TTL.as_secs(), value_parser = clap::value_parser!(u64).range(MIN_TTL.as_secs()..=MAX_TTL.as_secs()))]
    pub certificate_ttl: u64,
    /// DNS name in the serving certificate; may be repeated.
    #[arg(long, value_name = "DNS", default_value = default_server_name())]
    pub server_name: Vec<String>,
    /// DNS suffix of Services.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Address of /healthz, /metrics and /debug, in plaintext. Keep it on loopback or behind a policy.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15014")]
    pub admin: SocketAddr,
    /// Log filter, such as info or weir_control=debug.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "WEIR_LOG")]
    pub log: String,
}

fn default_server_name() -> String {
    format!("{}.{}.svc", names::CONTROL_SERVICE, names::SYSTEM_NAMESPACE)
}
