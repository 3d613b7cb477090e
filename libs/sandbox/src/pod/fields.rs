//! Fields of a pod that its containers can ask for (`fieldRef`).

use k8s_openapi::api::core::v1::Pod;

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    /// Not offered.
    #[error("fieldRef {0:?} is not offered")]
    Unknown(String),
}

/// The value of a field, as a kubelet gives it.
///
/// # Errors
/// For a path that Kubernetes does not offer either.
pub fn value(pod: &Pod, path: &str) -> Result<String, FieldError> {
    let metadata = &pod.metadata;
    let status = pod.status.clone().unwrap_or_default();
    let keyed = |map: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
    };
    let all = |map: &Option<std::collections::BTreeMap<String, String>>| {
        map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(keyed(&metadata.labels, key));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(keyed(&metadata.annotations, key));
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => all(&metadata.labels),
        "metadata.annotations" => all(&metadata.annotations),
        "spec.nodeName" => pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" => status.pod_ip.unwrap_or_default(),
        "status.podIPs" => {
            let ips: Vec<String> = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect();
            ips.join(",")
        }
        "status.hostIP" => status.host_ip.unwrap_or_default(),
        "status.hostIPs" => {
            let ips: Vec<String> = status.host_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect();
            ips.join(",")
        }
        _ => return Err(FieldError::Unknown(path.to_owned())),
    })
}

fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_by_key() {
        let pod: Pod = serde_json::from_str(r#"{"metadata":{"name":"p","labels":{"weir.dev/x":"1"}}}"#).unwrap();
        assert_eq!(value(&pod, "metadata.labels['weir.dev/x']").unwrap(), "1");
        assert_eq!(value(&pod, "metadata.labels['y']").unwrap(), "");
        assert_eq!(value(&pod, "metadata.name").unwrap(), "p");
        assert!(value(&pod, "spec.nodename").is_err());
    }
}
