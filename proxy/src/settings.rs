//! What the proxy is told at start, by environment (`weir_mesh::bootstrap::env`); read once, strictly.

use std::{env, net::IpAddr, path::PathBuf, str::FromStr};

use ipnet::IpNet;
use weir_mesh::{
    CaptureSettings, Identity, TrustDomain,
    bootstrap::{DEFAULT_DRAIN_SECONDS, DEFAULT_TRUST_DOMAIN, env as name},
    names::{ROOT_DIR, ROOT_FILE, TOKEN_DIR, TOKEN_FILE},
    probe::AppCalls,
};

use crate::telemetry::Mode;

/// Overrides the token's file, for use outside a pod.
const TOKEN_FILE_ENV: &str = "WEIR_TOKEN_FILE";
/// Overrides the root certificates' file, for use outside a pod.
const ROOT_FILE_ENV: &str = "WEIR_ROOT_FILE";
/// Bytes of memory beyond which load is shed, instead of the limit of the container.
const MEMORY_LIMIT_ENV: &str = "WEIR_MEMORY_LIMIT";
/// Most workers that make sense for a sidecar.
const MAX_WORKERS: usize = 64;

/// The settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Pod name.
    pub pod: String,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// What of the requests is logged.
    pub access_log: Mode,
    /// Identity that this pod is expected to get.
    pub identity: Identity,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// `HOST:PORT` of the control plane.
    pub control: String,
    /// Name in the control plane's certificate.
    pub control_name: String,
    /// Service and pod ranges. Empty: every address counts as inside.
    pub mesh_cidrs: Vec<IpNet>,
    /// Ports that are never looked into, of this pod and of destinations.
    pub opaque_ports: Vec<u16>,
    /// The application's probes and hooks.
    pub probes: AppCalls,
    /// What is captured; `None`: the redirect is not checked.
    pub capture: Option<CaptureSettings>,
    /// `PORT/PATH` of the application's metrics.
    pub app_metrics: Option<String>,
    /// Time for open connections at shutdown.
    pub drain: std::time::Duration,
    /// Log filter.
    pub log: String,
    /// Number of workers.
    pub workers: usize,
    /// Memory limit in bytes where it is not the container's.
    pub memory_limit: Option<u64>,
    /// File of the token.
    pub token_file: PathBuf,
    /// File of the root certificates.
    pub root_file: PathBuf,
}

/// `off`, `errors`, `all`, or `sample:N` for one of N requests and every error.
fn access_log() -> Result<Mode, SettingsError> {
    let value = optional(name::ACCESS_LOG).unwrap_or_default();
    match value.as_str() {
        "off" => Ok(Mode::Off),
        "" | "errors" => Ok(Mode::Sample(u32::MAX)),
        "all" => Ok(Mode::On),
        other => match other.strip_prefix("sample:") {
            Some(n) => Ok(Mode::Sample(parse(name::ACCESS_LOG, n, "a number behind sample:")?)),
            None => Err(SettingsError {
                name: name::ACCESS_LOG,
                reason: format!("{other:?} is none of off, errors, all and sample:N"),
            }),
        },
    }
}

/// A variable that is missing or wrong.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {name}: {reason}")]
pub struct SettingsError {
    name: &'static str,
    reason: String,
}

fn optional(name: &'static str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn required(name: &'static str) -> Result<String, SettingsError> {
    optional(name)
        .ok_or_else(|| SettingsError { name, reason: "is missing; the webhook sets it in every injected pod".into() })
}

fn parse<T: FromStr>(name: &'static str, value: &str, what: &str) -> Result<T, SettingsError> {
    value.trim().parse().map_err(|_| SettingsError { name, reason: format!("{value:?} is not {what}") })
}

fn list<T: FromStr>(name: &'static str, what: &str) -> Result<Vec<T>, SettingsError> {
    let value = optional(name).unwrap_or_default();
    value.split(',').filter(|part| !part.trim().is_empty()).map(|part| parse(name, part, what)).collect()
}

fn or_default<T: FromStr>(name: &'static str, default: T, what: &str) -> Result<T, SettingsError> {
    optional(name).map_or(Ok(default), |value| parse(name, &value, what))
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`SettingsError`] names the variable.
    pub fn from_env() -> Result<Self, SettingsError> {
        let domain: TrustDomain = parse(
            name::TRUST_DOMAIN,
            &optional(name::TRUST_DOMAIN).unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned()),
            "a trust domain",
        )?;
        let identity = Identity::new(&domain, &required(name::POD_NAMESPACE)?, &required(name::SERVICE_ACCOUNT)?)
            .map_err(|error| SettingsError { name: name::SERVICE_ACCOUNT, reason: error.to_string() })?;
        let control = required(name::CONTROL)?;
        let host = control.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
        let Some(host) = host.filter(|host| !host.is_empty()) else {
            return Err(SettingsError { name: name::CONTROL, reason: format!("{control:?} is not HOST:PORT") });
        };
        let control_name = optional(name::CONTROL_NAME).unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
        let json = |name: &'static str, error: String| SettingsError { name, reason: error };
        let probes = match optional(name::PROBES) {
            None => AppCalls::new(),
            Some(text) => serde_json::from_str(&text).map_err(|error| json(name::PROBES, error.to_string()))?,
        };
        let capture = match optional(name::CAPTURE) {
            None => None,
            Some(text) => {
                Some(CaptureSettings::from_json(&text).map_err(|error| json(name::CAPTURE, error.to_string()))?)
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let drain: u32 = or_default(name::DRAIN_SECONDS, DEFAULT_DRAIN_SECONDS, "a number of seconds")?;
        Ok(Self {
            pod: required(name::POD_NAME)?,
            trust_domain: domain,
            access_log: access_log()?,
            identity,
            addresses: list(name::POD_IPS, "an IP address")?,
            control,
            control_name,
            mesh_cidrs: list(name::MESH_CIDRS, "a CIDR")?,
            opaque_ports: list(name::OPAQUE_PORTS, "a port")?,
            probes,
            capture,
            app_metrics: optional(name::APP_METRICS),
            drain: std::time::Duration::from_secs(drain.into()),
            log: optional(name::LOG).unwrap_or_else(|| "info".to_owned()),
            // One worker carries thousands of requests per second; a second one only where the machine is large.
            workers: or_default(name::WORKERS, if cores >= 8 { 2 } else { 1 }, "a number of workers")?
                .clamp(1, MAX_WORKERS),
            memory_limit: optional(MEMORY_LIMIT_ENV)
                .map(|value| parse(MEMORY_LIMIT_ENV, &value, "a number of bytes"))
                .transpose()?,
            token_file: optional(TOKEN_FILE_ENV)
                .map_or_else(|| [TOKEN_DIR, TOKEN_FILE].iter().collect(), PathBuf::from),
            root_file: optional(ROOT_FILE_ENV).map_or_else(|| [ROOT_DIR, ROOT_FILE].iter().collect(), PathBuf::from),
        })
    }

    /// True for an address inside the mesh's Service and pod ranges.
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.mesh_cidrs.is_empty() || self.mesh_cidrs.iter().any(|net| net.contains(&address))
    }
}
