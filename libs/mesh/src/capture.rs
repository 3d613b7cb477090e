//! What of a pod's traffic is captured: written by the webhook as one annotation, read by the CNI plugin and by the proxy.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Version of the JSON form that this build writes and reads.
pub const VERSION: u32 = 1;
/// Largest JSON text that is read, in bytes.
pub const MAX_JSON: usize = 16 * 1024;
/// Most entries in one list.
pub const MAX_ENTRIES: usize = 256;

/// What of a pod's traffic is captured. The empty settings capture all TCP, in and out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureSettings {
    /// Version of this form; [`VERSION`].
    pub version: u32,
    /// Ports of the pod that are not captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination ports that are not captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_outbound_ports: Vec<u16>,
    /// Where not empty, only these destinations are captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include_outbound_cidrs: Vec<IpNet>,
    /// Destinations that are not captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Interfaces of the pod whose traffic is not captured, in either direction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_interfaces: Vec<String>,
    /// Capture DNS queries to these name servers. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_servers: Vec<std::net::IpAddr>,
    /// Drop the UDP that the pod sends, wherever its TCP is captured: nothing of it could go through the proxy. Queries to the
    /// pod's name servers pass.
    #[serde(default, skip_serializing_if = "is_false")]
    pub block_udp: bool,
    /// Name servers that the pod asks, for `block_udp`. Empty: not known, and port 53 of every address passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub name_servers: Vec<std::net::IpAddr>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            version: VERSION,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_cidrs: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            skip_interfaces: Vec::new(),
            dns_servers: Vec::new(),
            block_udp: false,
            name_servers: Vec::new(),
        }
    }
}

/// Why a text is not a [`CaptureSettings`].
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Larger than [`MAX_JSON`].
    #[error("larger than {MAX_JSON} bytes")]
    TooLarge,
    /// Not the JSON form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Written by another version of Weir.
    #[error(
        "version {0} is not known here (this build knows version {VERSION}): upgrade the CNI plugin before the webhook"
    )]
    Version(u32),
    /// A list has more than [`MAX_ENTRIES`] entries.
    #[error("{0} has more than {MAX_ENTRIES} entries")]
    TooMany(&'static str),
    /// An interface name the kernel would not take.
    #[error("skipInterfaces: {0:?} is not an interface name")]
    Interface(String),
}

impl CaptureSettings {
    /// Reads the JSON form, strictly: unknown fields are errors.
    ///
    /// # Errors
    /// [`CaptureError`] says which part is wrong.
    pub fn from_json(text: &str) -> Result<Self, CaptureError> {
        if text.len() > MAX_JSON {
            return Err(CaptureError::TooLarge);
        }
        let settings: Self = serde_json::from_str(text)?;
        if settings.version != VERSION {
            return Err(CaptureError::Version(settings.version));
        }
        for (name, len) in [
            ("excludeInboundPorts", settings.exclude_inbound_ports.len()),
            ("excludeOutboundPorts", settings.exclude_outbound_ports.len()),
            ("includeOutboundCidrs", settings.include_outbound_cidrs.len()),
            ("excludeOutboundCidrs", settings.exclude_outbound_cidrs.len()),
            ("skipInterfaces", settings.skip_interfaces.len()),
            ("dnsServers", settings.dns_servers.len()),
            ("nameServers", settings.name_servers.len()),
        ] {
            if len > MAX_ENTRIES {
                return Err(CaptureError::TooMany(name));
            }
        }
        if let Some(bad) = settings.skip_interfaces.iter().find(|name| !is_interface(name)) {
            return Err(CaptureError::Interface(bad.clone()));
        }
        Ok(settings)
    }

    /// The JSON form, in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() // every field is plain data: this can not fail
    }
}

/// True for a name that the kernel takes for an interface (`dev_valid_name`): 1 to 15 printable ASCII characters, no slash, no colon, no space.
pub fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trip() {
        let settings = CaptureSettings {
            exclude_inbound_ports: vec![22],
            exclude_outbound_cidrs: vec!["198.18.9.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            block_udp: true,
            name_servers: vec!["198.19.0.10".parse().unwrap()],
            ..Default::default()
        };
        assert!(settings.to_json().contains(r#""blockUdp":true,"nameServers":["198.19.0.10"]"#));
        assert_eq!(CaptureSettings::from_json(&settings.to_json()).unwrap(), settings);
        assert_eq!(CaptureSettings::default().to_json(), r#"{"version":1}"#);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for bad in [
            "",
            "null",
            r#"{"version":2}"#,
            r#"{"version":1,"other":1}"#,
            r#"{"version":1,"excludeInboundPorts":[70000]}"#,
            r#"{"version":1,"excludeOutboundCidrs":["10.0.0.0/33"]}"#,
            r#"{"version":1,"skipInterfaces":["a b"]}"#,
            r#"{"version":1,"blockUdp":"true"}"#,
            r#"{"version":1,"nameServers":["dns"]}"#,
        ] {
            assert!(CaptureSettings::from_json(bad).is_err(), "{bad} was accepted");
        }
    }
}
