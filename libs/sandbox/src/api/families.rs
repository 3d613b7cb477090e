//! Which families of addresses a Service has: `ipFamilyPolicy` and `ipFamilies`, as an API server of a cluster whose first family
//! is IPv4 fills them in.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;
use serde::{Deserialize, Serialize};

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The families of a Service, the first one first.
///
/// # Errors
/// The field that can not be, and why.
pub fn of(spec: &ServiceSpec, ipv6: bool) -> Result<Vec<Family>, (&'static str, String)> {
    let mut families = Vec::new();
    for name in spec.ip_families.iter().flatten() {
        let family = match name.as_str() {
            "IPv4" => Family::V4,
            "IPv6" if ipv6 => Family::V6,
            "IPv6" => return Err(("ipFamilies", "this sandbox has IPv4 only".into())),
            other => return Err(("ipFamilies", format!("{other:?} is neither IPv4 nor IPv6"))),
        };
        if families.contains(&family) {
            return Err(("ipFamilies", format!("{name} is there twice")));
        }
        families.push(family);
    }
    // Without families, addresses that the manifest names say them.
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let named = addresses.filter_map(|address| address.parse().ok()).map(Family::of).next();
    let first = *families.first().or(named.as_ref()).unwrap_or(&Family::V4);
    let both = vec![first, first.other()];
    match spec.ip_family_policy.as_deref() {
        // As an API server does it: two families named, and no policy, ask for both.
        None if families.len() == 2 => Ok(families),
        None | Some("SingleStack") if families.len() < 2 => Ok(vec![first]),
        Some("SingleStack") => Err(("ipFamilies", "SingleStack has one family".into())),
        Some("PreferDualStack") => Ok(if ipv6 { both } else { vec![first] }),
        Some("RequireDualStack") if ipv6 => Ok(both),
        Some("RequireDualStack") => {
            Err(("ipFamilyPolicy", "RequireDualStack can not be: this sandbox has IPv4 only".into()))
        }
        other => Err((
            "ipFamilyPolicy",
            format!("{:?} is not SingleStack, PreferDualStack or RequireDualStack", other.unwrap_or_default()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let of = |policy: Option<&str>, families: &[&str], ipv6| {
            let spec = ServiceSpec {
                ip_family_policy: policy.map(str::to_owned),
                ip_families: Some(families.iter().map(|family| (*family).to_owned()).collect()),
                ..ServiceSpec::default()
            };
            super::of(&spec, ipv6).map_err(|(field, _)| field)
        };
        let (v4, v6) = (Family::V4, Family::V6);
        assert_eq!(of(None, &[], true), Ok(vec![v4]));
        assert_eq!(of(None, &["IPv6"], true), Ok(vec![v6]));
        assert_eq!(of(None, &["IPv6", "IPv4"], true), Ok(vec![v6, v4]));
        assert_eq!(of(Some("SingleStack"), &["IPv6"], true), Ok(vec![v6]));
        assert_eq!(of(Some("SingleStack"), &["IPv6", "IPv4"], true), Err("ipFamilies"));
        assert_eq!(of(Some("PreferDualStack"), &[], true), Ok(vec![v4, v6]));
        assert_eq!(of(Some("PreferDualStack"), &["IPv6"], true), Ok(vec![v6, v4]));
        assert_eq!(of(Some("PreferDualStack"), &[], false), Ok(vec![v4]));
        assert_eq!(of(Some("RequireDualStack"), &[], true), Ok(vec![v4, v6]));
        assert_eq!(of(Some("RequireDualStack"), &[], false), Err("ipFamilyPolicy"));
        assert_eq!(of(None, &["IPv6"], false), Err("ipFamilies"));
        assert_eq!(of(None, &["IPv4", "IPv4"], true), Err("ipFamilies"));
        assert_eq!(of(None, &["IPv5"], true), Err("ipFamilies"));
        assert_eq!(of(Some("Dual"), &[], true), Err("ipFamilyPolicy"));
    }
}
