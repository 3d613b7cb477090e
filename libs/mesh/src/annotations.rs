//! The `weir.dev/…` annotations that a user may set on a pod, parsed strictly: every bad value is named, unknown names too.

use std::{collections::BTreeMap, str::FromStr};

use ipnet::IpNet;

use crate::{
    capture::{CaptureSettings, MAX_ENTRIES, is_interface},
    names::{CAPTURE_ANNOTATION, INJECT_LABEL, PREFIX, STATUS_ANNOTATION},
    ports::RESERVED,
};

/// Longest time that a pod may be given to drain, in seconds.
const MAX_DRAIN_SECONDS: u32 = 3600;
/// Longest annotation value that is read, in bytes.
const MAX_VALUE: usize = 4096;

/// Why an annotation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name}: {reason}")]
pub struct AnnotationError {
    /// Full name of the annotation.
    pub name: String,
    /// What is wrong with its value, and what is expected.
    pub reason: String,
}

/// What a user asked for on one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodSettings {
    /// What is captured.
    pub capture: CaptureSettings,
    /// `opaque-ports`: never looked into.
    pub opaque_ports: Vec<u16>,
    /// `proxy-cpu-request`, as a Kubernetes quantity.
    pub proxy_cpu_request: Option<String>,
    /// `proxy-cpu-limit`, as a Kubernetes quantity.
    pub proxy_cpu_limit: Option<String>,
    /// `proxy-memory-request`, as a Kubernetes quantity.
    pub proxy_memory_request: Option<String>,
    /// `proxy-memory-limit`, as a Kubernetes quantity.
    pub proxy_memory_limit: Option<String>,
    /// `proxy-log`: a log filter.
    pub proxy_log: Option<String>,
    /// `drain-seconds`
    pub drain_seconds: Option<u32>,
}

impl PodSettings {
    /// Reads the annotations of a pod. Annotations without our prefix are not looked at; the two that the webhook itself writes
    /// are passed over, whatever they hold (they are never believed).
    ///
    /// # Errors
    /// All bad annotations, ordered by name.
    pub fn from_annotations<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<AnnotationError>> {
        let ours: BTreeMap<&str, &str> =
            annotations.into_iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value))).collect();
        let mut settings = Self::default();
        let mut errors = Vec::new();
        for (name, value) in ours {
            if let Err(reason) = settings.set(name, value) {
                errors.push(AnnotationError { name: format!("{PREFIX}{}", printable(name)), reason });
            }
        }
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if [CAPTURE_ANNOTATION, STATUS_ANNOTATION].iter().any(|ours| ours.strip_prefix(PREFIX) == Some(name)) {
            return Ok(());
        }
        if INJECT_LABEL.strip_prefix(PREFIX) == Some(name) {
            return Err("is a label, not an annotation: move it to metadata.labels".into());
        }
        if value.len() > MAX_VALUE {
            return Err(format!("is longer than {MAX_VALUE} bytes"));
        }
        if let Some(bad) = value.chars().find(|c| c.is_control() || !c.is_ascii()) {
            return Err(format!("has the character {bad:?}, which no value may have"));
        }
        match name {
            "exclude-inbound-ports" => self.capture.exclude_inbound_ports = ports(value)?,
            "exclude-outbound-ports" => self.capture.exclude_outbound_ports = ports(value)?,
            "include-outbound-cidrs" => self.capture.include_outbound_cidrs = list(value, cidr)?,
            "exclude-outbound-cidrs" => self.capture.exclude_outbound_cidrs = list(value, cidr)?,
            "skip-interfaces" => self.capture.skip_interfaces = list(value, interface)?,
            "block-udp" => self.capture.block_udp = switch(value)?,
            "opaque-ports" => self.opaque_ports = ports(value)?,
            "proxy-cpu-request" => self.proxy_cpu_request = Some(quantity(value)?),
            "proxy-cpu-limit" => self.proxy_cpu_limit = Some(quantity(value)?),
            "proxy-memory-request" => self.proxy_memory_request = Some(quantity(value)?),
            "proxy-memory-limit" => self.proxy_memory_limit = Some(quantity(value)?),
            "proxy-log" => self.proxy_log = Some(log_filter(value)?),
            "drain-seconds" => self.drain_seconds = Some(seconds(value)?),
            _ => return Err(format!("is not known; known are {}", KNOWN.join(", "))),
        }
        Ok(())
    }
}

/// Every annotation that a user may set, without the prefix.
pub const KNOWN: [&str; 13] = [
    "exclude-inbound-ports",
    "exclude-outbound-ports",
    "include-outbound-cidrs",
    "exclude-outbound-cidrs",
    "skip-interfaces",
    "block-udp",
    "opaque-ports",
    "proxy-cpu-request",
    "proxy-cpu-limit",
    "proxy-memory-request",
    "proxy-memory-limit",
    "proxy-log",
    "drain-seconds",
];

fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

fn list<T>(value: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let entries: Vec<T> = value.split(',').map(|entry| parse(entry.trim())).collect::<Result<_, _>>()?;
    if entries.len() > MAX_ENTRIES {
        return Err(format!("has more than {MAX_ENTRIES} entries"));
    }
    Ok(entries)
}

fn ports(value: &str) -> Result<Vec<u16>, String> {
    list(value, |entry| match u16::from_str(entry) {
        Ok(port) if RESERVED.contains(&port) => Err(format!("port {port} belongs to the proxy")),
        Ok(port) if port > 0 && entry.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("{entry:?} is not a port (1 to 65535; a list is comma-separated)")),
    })
}

fn cidr(entry: &str) -> Result<IpNet, String> {
    let net = IpNet::from_str(entry).map_err(|_| {
        format!("{entry:?} is not a CIDR such as 198.18.0.0/16 or fd00::/8 (a list is comma-separated)")
    })?;
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(format!("{entry:?} has bits set behind its prefix; did you mean {}?", net.trunc()))
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

fn interface(entry: &str) -> Result<String, String> {
    if is_interface(entry) { Ok(entry.to_owned()) } else { Err(format!("{entry:?} is not an interface name")) }
}

/// A Kubernetes quantity, as far as it makes sense for a processor share or an amount of memory: digits, an optional fraction
/// and a suffix of the API's list.
fn quantity(value: &str) -> Result<String, String> {
    let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = value.get(number.len()..).unwrap_or_default();
    let known = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].contains(&suffix);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
    if known && digits(whole) && digits(fraction) {
        Ok(value.to_owned())
    } else {
        Err(format!("{value:?} is not a quantity such as 100m, 0.5 or 64Mi"))
    }
}

fn log_filter(value: &str) -> Result<String, String> {
    let ok = !value.is_empty()
        && value.len() <= 256
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'=' | b','));
    if ok {
        Ok(value.to_owned())
    } else {
        Err(format!("{value:?} is not a log filter such as info or weir_proxy=debug"))
    }
}

fn seconds(value: &str) -> Result<u32, String> {
    match u32::from_str(value) {
        Ok(n) if n <= MAX_DRAIN_SECONDS && value.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(format!("{value:?} is not a number of seconds from 0 to {MAX_DRAIN_SECONDS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<PodSettings, Vec<AnnotationError>> {
        PodSettings::from_annotations([(name, value)])
    }

    #[test]
    fn good_values() {
        let got = PodSettings::from_annotations([
            ("weir.dev/exclude-inbound-ports", "22, 9100"),
            ("weir.dev/exclude-outbound-cidrs", "198.18.9.0/24,fd00::/64"),
            ("weir.dev/block-udp", "true"),
            ("weir.dev/drain-seconds", "40"),
            ("weir.dev/proxy-memory-limit", "64Mi"),
            ("weir.dev/capture", "anything: never believed"),
            ("other.dev/exclude-inbound-ports", "not ours"),
        ])
        .unwrap();
        assert_eq!(got.capture.exclude_inbound_ports, [22, 9100]);
        assert_eq!(got.capture.exclude_outbound_cidrs.len(), 2);
        assert_eq!(got.drain_seconds, Some(40));
        assert!(got.capture.block_udp);
        assert!(!parse("weir.dev/block-udp", "false").unwrap().capture.block_udp);
    }

    #[test]
    fn every_bad_value_is_refused_by_name() {
        for (name, value) in [
            ("exclude-inbound-ports", ""),
            ("exclude-inbound-ports", "0"),
            ("exclude-inbound-ports", "80;81"),
            ("exclude-inbound-ports", "+80"),
            ("exclude-outbound-ports", "65536"),
            ("exclude-outbound-ports", "15006"),
            ("include-outbound-cidrs", "198.18.0.1/16"),
            ("exclude-outbound-cidrs", "10.0.0.0/8\n,::/0"),
            ("skip-interfaces", "eth0/../x"),
            ("block-udp", ""),
            ("block-udp", "yes"),
            ("block-udp", "True"),
            ("opaque-ports", "redis"),
            ("proxy-cpu-request", "-1"),
            ("proxy-cpu-limit", "1e3"),
            ("proxy-memory-request", "1.5.2Gi"),
            ("proxy-memory-limit", "64Mi\", \"x\": \""),
            ("proxy-log", "info\nprivileged: true"),
            ("drain-seconds", "3601"),
            ("no-such-thing", "1"),
            ("inject", "true"),
        ] {
            let name = format!("weir.dev/{name}");
            let errors = parse(&name, value).expect_err(value);
            assert_eq!(errors.len(), 1);
            assert_eq!(errors[0].name, name);
        }
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let errors = PodSettings::from_annotations([("weir.dev/drain-seconds", "x"), ("weir.dev/opaque-ports", "y")])
            .unwrap_err();
        assert_eq!(errors.len(), 2);
    }
}
