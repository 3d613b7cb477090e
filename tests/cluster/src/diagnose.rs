//! What a failed test prints: pods, events, logs, and what the proxies were configured with.

use std::fs;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use weir_mesh::{names, ports};

use crate::cluster::Cluster;

/// Lines of each container's log.
const LINES: i64 = 60;
/// Lines of errors of each of the cluster's own programs.
const ERRORS: usize = 8;
/// Longest configuration that is printed, in bytes.
const CONFIGURATION: usize = 64 * 1024;

impl Cluster {
    /// Prints what there is to know of a namespace to standard error. What can not be had is said, and the rest goes on.
    pub async fn diagnose(&self, namespace: &str) {
        eprintln!("==== namespace {namespace}");
        self.print_pods(namespace).await;
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let Ok(listed) = pods.list(&ListParams::default()).await else { return };
        for pod in listed {
            self.print_pod(&pods, &pod).await;
        }
        self.print_errors();
        eprintln!("==== end of namespace {namespace}");
    }

    /// What the cluster's own programs said of errors last.
    fn print_errors(&self) {
        for file in fs::read_dir(self.layout().logs()).into_iter().flatten().flatten() {
            let log = fs::read(file.path()).unwrap_or_default();
            let start = self.start_logs.get(&file.file_name()).copied().unwrap_or(0);
            let log = String::from_utf8_lossy(log.get(start..).unwrap_or_default());
            // As klog and containerd mark them.
            let errors = log.lines().filter(|line| line.starts_with('E') || line.contains("level=error"));
            let errors: Vec<&str> = errors.collect();
            let from = errors.len().saturating_sub(ERRORS);
            for line in errors.iter().skip(from) {
                eprintln!("[{}] {line}", file.file_name().to_string_lossy());
            }
        }
    }

    async fn print_pods(&self, namespace: &str) {
        match self.kubectl(&["get", "pods,services,endpointslices", "--namespace", namespace, "--output=wide"]) {
            Ok(table) => eprint!("{table}"),
            Err(error) => eprintln!("{error:#}"),
        }
        let events: Api<Event> = Api::namespaced(self.client(), namespace);
        match events.list(&ListParams::default()).await {
            Ok(events) => {
                for event in events {
                    let about = event.involved_object.name.as_deref().unwrap_or("?");
                    let (reason, message) = (event.reason.as_deref(), event.message.as_deref());
                    eprintln!("event {about}: {}: {}", reason.unwrap_or("?"), message.unwrap_or("?"));
                }
            }
            Err(error) => eprintln!("no events: {error}"),
        }
    }

    async fn print_pod(&self, pods: &Api<Pod>, pod: &Pod) {
        let name = pod.name_any();
        let status = pod.status.clone().unwrap_or_default();
        for status in status.init_container_statuses.iter().chain(&status.container_statuses).flatten() {
            let state = serde_json::to_string(&(&status.state, &status.last_state)).unwrap_or_default();
            eprintln!("---- {name}/{}: restarts {}, {state}", status.name, status.restart_count);
            for previous in [true, false] {
                if previous && status.restart_count == 0 {
                    continue;
                }
                let which = LogParams {
                    container: Some(status.name.clone()),
                    previous,
                    tail_lines: Some(LINES),
                    ..LogParams::default()
                };
                match pods.logs(&name, &which).await {
                    Ok(log) => eprint!("{log}"),
                    // A kubelet shows none while a postStart hook runs.
                    Err(error) => match self.log_on_node(pod, &status.name) {
                        Some(log) => eprint!("{log}"),
                        None => eprintln!("no log: {error}"),
                    },
                }
            }
            if status.name == names::PROXY_CONTAINER {
                match configuration(pods, &name).await {
                    Ok(dump) => eprintln!("configuration of {name}: {dump}"),
                    Err(error) => eprintln!("no configuration: {error:#}"),
                }
            }
        }
    }

    /// The log as the runtime wrote it on the pod's node.
    fn log_on_node(&self, pod: &Pod, container: &str) -> Option<String> {
        let node = pod.spec.as_ref()?.node_name.as_deref()?.strip_prefix("node")?.parse().ok()?;
        let files = format!("/var/log/pods/{}_{}_*/{container}/*.log", pod.namespace()?, pod.name_any());
        self.node(node).shell(&format!("tail -n {LINES} {files}")).ok()
    }
}

async fn configuration(pods: &Api<Pod>, pod: &str) -> anyhow::Result<String> {
    let mut forward = pods.portforward(pod, &[ports::ADMIN]).await?;
    let mut stream = forward.take_stream(ports::ADMIN).ok_or_else(|| anyhow::anyhow!("no stream"))?;
    stream.write_all(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(5), read).await??;
    answer.truncate(CONFIGURATION);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
