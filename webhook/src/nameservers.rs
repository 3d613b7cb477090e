//! The name servers that a pod will ask, as far as they can be known at admission: for pods whose UDP is blocked.

use std::net::IpAddr;

use serde_json::Value;

use crate::edit::get;

/// Those of the cluster's DNS as the operator gave them, or the pod's own by its `dnsPolicy`; empty where they are the node's, or
/// nobody said.
pub(crate) fn of_pod(pod: &Value, cluster: &[IpAddr]) -> Vec<IpAddr> {
    let text = |path: &[&str]| get(pod, path).and_then(Value::as_str);
    let mut servers = match text(&["spec", "dnsPolicy"]) {
        Some("None") => Vec::new(),
        Some("Default") => return Vec::new(),
        _ if cluster.is_empty() => return Vec::new(),
        _ => cluster.to_vec(),
    };
    // What is no address is refused by the API server.
    let own = get(pod, &["spec", "dnsConfig", "nameservers"]).and_then(Value::as_array);
    for server in own.into_iter().flatten().filter_map(|server| server.as_str()?.parse().ok()) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn by_policy() {
        let cluster = ["198.19.0.10".parse().unwrap()];
        let own = json!(["198.18.0.53", "fd00::53", "198.19.0.10", "no address"]);
        for (spec, cluster, want) in [
            (json!({}), &cluster[..], &["198.19.0.10"][..]),
            (json!({"dnsPolicy": "ClusterFirst"}), &cluster, &["198.19.0.10"]),
            (json!({"dnsConfig": {"nameservers": own}}), &cluster, &["198.19.0.10", "198.18.0.53", "fd00::53"]),
            (json!({"dnsConfig": {"nameservers": own}}), &[], &[]),
            (json!({"dnsPolicy": "Default", "dnsConfig": {"nameservers": own}}), &cluster, &[]),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": own}}),
                &cluster,
                &["198.18.0.53", "fd00::53", "198.19.0.10"],
            ),
        ] {
            let want: Vec<IpAddr> = want.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(of_pod(&json!({"spec": spec}), cluster), want, "{spec}");
        }
    }
}
