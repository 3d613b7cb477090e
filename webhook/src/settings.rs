//! What the operator of the mesh chose; the same for every pod.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use weir_mesh::{TrustDomain, bootstrap, names};

/// Largest root certificates, in bytes: they go into every pod, whose annotations may hold 256 KiB together.
const MAX_ROOTS: usize = 32 * 1024;

/// Who programs the redirect in a pod's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// The CNI plugin: the pod needs no privilege.
    Cni,
    /// An init container with `NET_ADMIN`, where no plugin is installed.
    Init,
}

impl Redirect {
    /// The value of the flag `--redirect`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cni => "cni",
            Self::Init => "init",
        }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Redirect {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text {
            "cni" => Ok(Self::Cni),
            "init" => Ok(Self::Init),
            _ => Err(SettingsError::Redirect(text.to_owned())),
        }
    }
}

/// How the init container puts the redirect in force; `weir-init`'s option `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectBackend {
    /// nf_tables; iptables where the kernel refuses it.
    Auto,
    /// nf_tables: one capability, no program.
    Nft,
    /// The programs of iptables, which the image must have.
    Iptables,
}

impl RedirectBackend {
    /// The value of the flag `--redirect-backend`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }

    /// What the init container needs. The older interface of iptables is spoken over a raw socket.
    pub(crate) fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Nft => &["NET_ADMIN"],
            Self::Auto | Self::Iptables => &["NET_ADMIN", "NET_RAW"],
        }
    }
}

impl FromStr for RedirectBackend {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let all = [Self::Auto, Self::Nft, Self::Iptables];
        all.into_iter().find(|one| one.as_str() == text).ok_or_else(|| SettingsError::Backend(text.to_owned()))
    }
}

/// Why settings can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Neither `cni` nor `init`.
    #[error("{0:?} is no way to redirect: use cni (the CNI plugin is installed) or init (it is not)")]
    Redirect(String),
    /// None of `auto`, `nft` and `iptables`.
    #[error("{0:?} is no back end of the redirect: use auto, nft or iptables")]
    Backend(String),
    /// Not `HOST:PORT`.
    #[error("{0:?} is not HOST:PORT of the control plane, such as weir-control.weir-system.svc:15012")]
    Control(String),
    /// Not certificates alone.
    #[error("--roots must hold certificates in PEM form and nothing else, at most {MAX_ROOTS} bytes")]
    Roots,
    /// An image name that no container runtime would take.
    #[error("{0:?} is not an image name")]
    Image(String),
}

/// What the operator of the mesh chose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Image of the proxy container.
    pub proxy_image: String,
    /// Image of the init container ([`Redirect::Init`] only).
    pub init_image: String,
    /// Who programs the redirect.
    pub redirect: Redirect,
    /// How the init container does ([`Redirect::Init`] only).
    pub redirect_backend: RedirectBackend,
    /// The cluster's name servers; empty: not known. Pods whose UDP is blocked may ask them.
    pub cluster_dns: Vec<IpAddr>,
    /// `HOST:PORT` of the control plane.
    pub control: String,
    /// Name in the control plane's certificate, where it differs from the host of `control`.
    pub control_name: Option<String>,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Service and pod ranges of the mesh.
    pub mesh_cidrs: Vec<IpNet>,
    /// Seconds that open connections get at shutdown, where the pod does not say.
    pub drain_seconds: u32,
    /// Seconds between the end of a pod and the SIGTERM of its containers that have no `preStop`; 0 for none.
    pub pre_stop_seconds: u32,
    /// Log filter of the proxy, where the pod does not say.
    pub proxy_log: String,
    /// Namespace that Weir itself runs in: never injected.
    pub system_namespace: String,
    /// The mesh's root certificates (PEM), put into each pod as a start until its ConfigMap is there. See `parts::root_volume`.
    pub roots: Option<String>,
}

impl Default for Settings {
    #[allow(clippy::expect_used)] // a constant
    fn default() -> Self {
        Self {
            proxy_image: "weir-proxy".into(),
            init_image: "weir-init".into(),
            redirect: Redirect::Cni,
            redirect_backend: RedirectBackend::Nft,
            cluster_dns: Vec::new(),
            control: format!(
                "{}.{}.svc:{}",
                names::CONTROL_SERVICE,
                names::SYSTEM_NAMESPACE,
                weir_mesh::ports::CONTROL
            ),
            control_name: None,
            trust_domain: bootstrap::DEFAULT_TRUST_DOMAIN.parse().expect("the default is a trust domain"),
            mesh_cidrs: Vec::new(),
            drain_seconds: bootstrap::DEFAULT_DRAIN_SECONDS,
            pre_stop_seconds: 0,
            proxy_log: "info".into(),
            system_namespace: names::SYSTEM_NAMESPACE.into(),
            roots: None,
        }
    }
}

impl Settings {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The first value that can not be used.
    pub fn check(&self) -> Result<(), SettingsError> {
        for image in [&self.proxy_image, &self.init_image] {
            if image.is_empty() || image.len() > 1024 || !image.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(SettingsError::Image(image.clone()));
            }
        }
        if self.roots.as_deref().is_some_and(|roots| !is_certificates(roots)) {
            return Err(SettingsError::Roots);
        }
        let good = self.control.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if good { Ok(()) } else { Err(SettingsError::Control(self.control.clone())) }
    }
}

/// True for certificates in PEM form. They are readable by everyone who can read pods, so nothing else may be among them.
fn is_certificates(text: &str) -> bool {
    let mut begins = text.lines().filter(|line| line.starts_with("-----BEGIN")).peekable();
    text.len() <= MAX_ROOTS
        && text.is_ascii()
        && begins.peek().is_some()
        && begins.all(|line| line.trim_end() == "-----BEGIN CERTIFICATE-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_what_a_flag_may_hold() {
        let with = |control: &str| Settings { control: control.into(), ..Settings::default() }.check();
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(with("[fd00::1]:15012"), Ok(()));
        for bad in ["", "host", "host:0", "host:99999", ":15012", "ho st:1", "a\nb:1"] {
            assert!(with(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Settings { proxy_image: "a b".into(), ..Settings::default() }.check().is_err());
        assert!("CNI".parse::<Redirect>().is_err());
        for word in ["auto", "nft", "iptables"] {
            assert_eq!(word.parse::<RedirectBackend>().unwrap().as_str(), word);
        }
        assert!("legacy".parse::<RedirectBackend>().is_err());
        let roots = |text: &str| Settings { roots: Some(text.into()), ..Settings::default() }.check();
        let good = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert_eq!(roots(good), Ok(()));
        let with_key = format!("{good}-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n");
        for bad in ["", "text", &with_key, &good.repeat(1000)] {
            assert_eq!(roots(bad), Err(SettingsError::Roots));
        }
    }
}
