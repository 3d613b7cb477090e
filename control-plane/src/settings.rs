//! Command line of `weir-control`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum};
use weir_mesh::{TrustDomain, identity::is_name, names};

use crate::ca::{MAX_TTL, MIN_TTL};

/// Where the admin server listens, where nothing else is said.
pub const ADMIN: &str = "127.0.0.1:15014";
/// Says the same by the environment, for all programs of a container alike.
pub const ADMIN_VARIABLE: &str = "WEIR_ADMIN";

/// Weir's control plane: tells proxies where services are and which rules hold, and gives them certificates.
#[derive(Debug, Clone, Parser)]
#[command(name = "weir-control", version)]
pub struct Settings {
    /// Address that proxies connect to (TLS).
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:15012")]
    pub listen: SocketAddr,
    /// Where objects come from; directory where --config-dir is given.
    #[arg(long, value_enum)]
    pub source: Option<SourceKind>,
    /// Trust domain of the identities.
    #[arg(long, value_name = "NAME", default_value = weir_mesh::bootstrap::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Longest life of a pod's certificate, in seconds; proxies renew theirs at half of it.
    #[arg(long, value_name = "SECONDS", default_value_t = MAX_TTL.as_secs(), value_parser = clap::value_parser!(u64).range(MIN_TTL.as_secs()..=MAX_TTL.as_secs()))]
    pub certificate_ttl: u64,
    /// DNS name in the serving certificate; may be repeated. Left out: weir-control.NAMESPACE.svc
    #[arg(long, value_name = "DNS")]
    pub server_name: Vec<String>,
    /// DNS suffix of Services.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Address of /healthz, /metrics and /debug, in plaintext. Keep it on loopback or behind a policy.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADMIN, env = ADMIN_VARIABLE)]
    pub admin: SocketAddr,
    /// Address of /healthz (ready to answer proxies) and /livez (alive), in plaintext, for the kubelet.
    #[arg(long, value_name = "ADDR:PORT")]
    pub health: Option<SocketAddr>,
    /// Log filter, such as info or weir_control=debug.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "WEIR_LOG")]
    pub log: String,

    /// Directory: folder of manifests to serve; changes take effect at once.
    #[arg(long, value_name = "DIR", help_heading = "With --source directory")]
    pub config_dir: Option<PathBuf>,
    /// Folder with ca-key.pem and root-cert.pem; both are made where there are none.
    #[arg(long, value_name = "DIR", help_heading = "With --source directory")]
    pub ca_dir: Option<PathBuf>,
    /// PEM file with the public key that pods' tokens are signed with (RS256 or ES256).
    #[arg(long, value_name = "FILE", help_heading = "With --source directory")]
    pub token_key: Option<PathBuf>,
    /// Issuer of pods' tokens.
    #[arg(long, value_name = "ISSUER", help_heading = "With --source directory")]
    pub token_issuer: Option<String>,

    /// Own namespace: the CA, the webhook's certificate and the lease are there.
    #[arg(long, value_name = "NAME", default_value = names::SYSTEM_NAMESPACE, env = "POD_NAMESPACE",
        help_heading = "With --source kubernetes")]
    pub namespace: String,
    /// Own name among the replicas.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        env = "POD_NAME",
        hide_default_value = true,
        help_heading = "With --source kubernetes"
    )]
    pub replica: String,
    /// Audience that callers' tokens must be for.
    #[arg(long, value_name = "AUDIENCE", default_value = names::TOKEN_AUDIENCE, help_heading = "With --source kubernetes")]
    pub token_audience: String,
    /// Kubeconfig file; left out, the service account of the own pod is used.
    #[arg(long, value_name = "FILE", help_heading = "With --source kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Who makes the webhook's serving certificate and its caBundle.
    #[arg(long, value_enum, default_value = "managed", help_heading = "With --source kubernetes")]
    pub webhook_certificate: WebhookCertificate,
}

/// Where objects come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// A folder of manifests.
    Directory,
    /// The API server.
    Kubernetes,
}

/// Who makes the webhook's serving certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WebhookCertificate {
    /// The control plane.
    Managed,
    /// Something else, such as cert-manager.
    External,
}

/// What belongs to one source.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    /// A folder of manifests.
    Directory {
        /// The folder.
        config: &'a Path,
        /// Folder of the CA.
        ca: &'a Path,
        /// Public key of the tokens.
        token_key: &'a Path,
        /// Issuer of the tokens.
        token_issuer: &'a str,
    },
    /// The API server.
    Kubernetes,
}

impl Settings {
    /// Which source, with what belongs to it.
    ///
    /// # Errors
    /// Where flags are missing or do not fit together, in one line for a person.
    pub fn mode(&self) -> Result<Mode<'_>, String> {
        let given = [
            ("--config-dir", self.config_dir.is_some()),
            ("--ca-dir", self.ca_dir.is_some()),
            ("--token-key", self.token_key.is_some()),
            ("--token-issuer", self.token_issuer.is_some()),
        ];
        let flags = |wanted: bool| {
            let list: Vec<&str> = given.iter().filter(|(_, is)| *is == wanted).map(|(flag, _)| *flag).collect();
            list.join(", ")
        };
        match self.source {
            None if self.config_dir.is_none() => {
                Err("say where objects come from: --source kubernetes, or --config-dir DIR".into())
            }
            Some(SourceKind::Kubernetes) => {
                if given.iter().any(|(_, is)| *is) {
                    return Err(format!("--source kubernetes does not go with {}", flags(true)));
                }
                if !is_name(&self.namespace) {
                    return Err(format!("--namespace {:?} is not a namespace's name", self.namespace));
                }
                Ok(Mode::Kubernetes)
            }
            None | Some(SourceKind::Directory) => {
                let (Some(config), Some(ca), Some(token_key), Some(token_issuer)) =
                    (&self.config_dir, &self.ca_dir, &self.token_key, &self.token_issuer)
                else {
                    return Err(format!("--source directory needs {}", flags(false)));
                };
                if self.kubeconfig.is_some() {
                    return Err("--kubeconfig does not go with --source directory".into());
                }
                Ok(Mode::Directory { config, ca, token_key, token_issuer })
            }
        }
    }

    /// DNS names in the serving certificate.
    pub fn server_names(&self) -> Vec<String> {
        if self.server_name.is_empty() {
            vec![format!("{}.{}.svc", names::CONTROL_SERVICE, self.namespace)]
        } else {
            self.server_name.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(args: &[&str]) -> String {
        let settings = Settings::parse_from(["weir-control"].iter().chain(args));
        match settings.mode() {
            Ok(mode) => format!("{mode:?}"),
            Err(error) => error,
        }
    }

    #[test]
    fn exactly_one_source() {
        let all = ["--config-dir", "/c", "--ca-dir", "/a", "--token-key", "/k", "--token-issuer", "i"];
        assert!(mode(&all).starts_with("Directory"));
        assert_eq!(mode(&all[..2]), "--source directory needs --ca-dir, --token-key, --token-issuer");
        assert_eq!(mode(&[]), "say where objects come from: --source kubernetes, or --config-dir DIR");
        assert_eq!(mode(&["--source", "kubernetes"]), "Kubernetes");
        let both: Vec<&str> = ["--source", "kubernetes"].iter().chain(&all[..2]).copied().collect();
        assert_eq!(mode(&both), "--source kubernetes does not go with --config-dir");
        assert!(mode(&["--source", "kubernetes", "--namespace", "A/b"]).contains("is not a namespace's name"));
    }

    #[test]
    fn the_serving_certificate_is_for_the_service_of_the_own_namespace() {
        let names = |args: &[&str]| Settings::parse_from(["weir-control"].iter().chain(args)).server_names();
        assert_eq!(names(&["--namespace", "mesh"]), ["weir-control.mesh.svc"]);
        assert_eq!(names(&["--server-name", "a", "--server-name", "b"]), ["a", "b"]);
    }
}
