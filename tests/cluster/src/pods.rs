//! Pods for tests of traffic, and calls from one of them.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::case::Case;

/// One server on each node, behind a Service; clients are the servers' own pods.
pub const SERVERS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: weir.test/app:1
        args: [serve]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

/// A pod that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name, and its label `app`.
    pub name: &'a str,
    /// Where it runs.
    pub node: &'a str,
    /// In the mesh, in a namespace that is.
    pub mesh: bool,
    /// More of its specification, such as `hostNetwork: true,`.
    pub more: &'a str,
}

impl<'a> Wanted<'a> {
    /// A pod of the mesh.
    pub fn new(name: &'a str, node: &'a str) -> Self {
        Self { name, node, mesh: true, more: "" }
    }

    /// The same outside of the mesh.
    pub fn outside(self) -> Self {
        Self { mesh: false, ..self }
    }

    /// Its manifest, with these containers.
    pub fn with(self, containers: &[String]) -> String {
        let Self { name, node, mesh, more } = self;
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}, weir.dev/inject: '{mesh}'}}}},
  spec: {{nodeName: {node}, terminationGracePeriodSeconds: 1, {more} containers: [{}]}}}}\n",
            containers.join(",\n    ")
        )
    }

    /// The manifest of a pod that only waits, for calls to be made from it.
    pub fn waiting(self) -> String {
        self.with(&["{name: app, image: 'weir.test/app:1', args: [pause]}".to_owned()])
    }
}

/// A container of `weir.test/app:1` that is ready when this port of it is open. The port has the container's name.
pub fn container(name: &str, arguments: &str, port: u16) -> String {
    format!(
        "{{name: {name}, image: 'weir.test/app:1', args: [{arguments}], ports: [{{name: {name}, containerPort: {port}}}],
      readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}}}"
    )
}

/// Programs of the machine in a pod: its volumes, for [`Wanted::more`].
pub const MACHINE: &str =
    "volumes: [{name: usr, hostPath: {path: /usr, type: Directory}}, {name: tmp, emptyDir: {medium: Memory}}],";

/// A container with the programs of the machine, that is ready when this port of it is open.
pub fn machine_container(name: &str, command: &str, port: Option<u16>) -> String {
    let mut text = format!(
        "{{name: {name}, image: 'weir.test/app:1', command: [{command}], workingDir: /tmp, env: [{{name: HOME, value: /tmp}}],
      securityContext: {{runAsUser: 1000, readOnlyRootFilesystem: true}},
      volumeMounts: [{{name: usr, mountPath: /usr, readOnly: true}}, {{name: tmp, mountPath: /tmp}},
        {{name: usr, mountPath: /lib, subPath: lib, readOnly: true}}, {{name: usr, mountPath: /lib64, subPath: lib64, readOnly: true}}]"
    );
    if let Some(port) = port {
        let _ = write!(text, ", readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}");
    }
    text.push('}');
    text
}

/// The addresses of a pod.
pub fn addresses(pod: &Pod) -> Vec<String> {
    let addresses = pod.status.as_ref().and_then(|status| status.pod_ips.clone()).unwrap_or_default();
    addresses.into_iter().map(|address| address.ip).collect()
}

/// An address as it stands in a URL.
pub fn in_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Asks for each URL once, one after the other; what the server said (`app serve`), or null where there was no answer.
///
/// # Panics
/// When the pod can not be entered.
pub fn fetch_each(case: &Case<'_>, pod: &str, urls: &[String]) -> Vec<Value> {
    const SCRIPT: &str = r#"for url in "$@"; do /app fetch --seconds 5 "$url" || echo null; done"#;
    let mut command = vec!["/bin/busybox", "sh", "-c", SCRIPT, "each"];
    command.extend(urls.iter().map(String::as_str));
    let said = case.exec(pod, &command);
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Waits until the pod's resolver knows all these names. It asks nobody else.
///
/// # Panics
/// When it does not in time.
pub async fn known(case: &Case<'_>, pod: &str, names: &[&str]) {
    const SCRIPT: &str = r#"for i in $(seq 100); do
        missing=; for name in "$@"; do nslookup "$name" >/dev/null 2>&1 || missing="$missing $name"; done
        [ -z "$missing" ] && exit 0; sleep 0.2
    done; echo "no address for$missing" >&2; exit 1"#;
    let mut command = vec!["/bin/busybox", "sh", "-c", SCRIPT, "known"];
    command.extend(names);
    case.exec(pod, &command);
}

/// The sum of the values of a pod's metric over the label sets that have all these, such as `reporter="destination"`.
///
/// # Panics
/// When they can not be read.
pub fn count(case: &Case<'_>, pod: &str, metric: &str, labels: &[&str]) -> f64 {
    let text = case.exec(pod, &["/app", "fetch", "http://127.0.0.1:15020/stats/prometheus"]);
    let of_metric = text.lines().filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{')));
    let matching = of_metric.filter(|line| labels.iter().all(|label| line.contains(label)));
    matching.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until a pod refuses what comes in plaintext from this one, which is not in the mesh.
///
/// # Panics
/// When it does not in time.
pub async fn refuses_plaintext(case: &Case<'_>, outside: &str, url: &str) {
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while fetch_each(case, outside, &[url.to_owned()]) != [Value::Null] {
        assert!(tokio::time::Instant::now() < end, "{url} still answers in plaintext");
    }
}

/// A pod's name.
pub fn name(pod: &Pod) -> String {
    pod.name_any()
}
