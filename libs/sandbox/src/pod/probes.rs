//! Probes and lifecycle hooks, made from the node as a kubelet makes them.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Node, Pod, containers::Kept};
use crate::runtime::{container::Streams, init::exit_code};

/// How often a container that is not ready yet is asked again, whatever the probe's period: it makes the start quicker, and
/// failures still count only once a period.
const EAGER: Duration = Duration::from_millis(100);
/// Most of an answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;
/// Most of a command's output that is told, in bytes.
const MAX_TOLD: usize = 512;
/// Longest time for a hook, which has no limit of its own.
const HOOK_LIMIT: Duration = Duration::from_secs(120);

/// Runs the probes of a container that was just started. Ends only when the container must be killed.
///
/// # Errors
/// Which probe failed for good, and how.
pub async fn watch(kept: &Arc<Kept>, node: &Arc<Node>, pod: &Arc<Pod>) -> Result<(), String> {
    let manifest = &kept.manifest;
    if let Some(probe) = &manifest.startup_probe {
        let mut runner = Runner::new(probe, kept, pod, "start-up");
        while !runner.once(true).await? {}
    }
    pod.change_container(kept.name(), |status| {
        status.started = true;
        status.ready = manifest.readiness_probe.is_none();
    });
    let readiness = async {
        let Some(probe) = &manifest.readiness_probe else { return std::future::pending().await };
        let mut runner = Runner::new(probe, kept, pod, "readiness");
        let about = format!("{} container {}", pod.reference(), kept.name());
        let mut ready = false;
        loop {
            let now = match runner.once(!ready).await {
                Ok(true) => true,
                Ok(false) => ready,
                Err(failed) => {
                    if ready {
                        node.events.warning(&about, "Unhealthy", failed.clone());
                    }
                    pod.change(|status| status.message = Some(failed));
                    false
                }
            };
            if now != ready {
                ready = now;
                pod.change_container(kept.name(), |status| status.ready = ready);
            }
            if ready {
                pod.change(|status| status.message = None);
            }
        }
    };
    let liveness = async {
        let Some(probe) = &manifest.liveness_probe else { return std::future::pending().await };
        let mut runner = Runner::new(probe, kept, pod, "liveness");
        loop {
            runner.once(false).await?;
        }
    };
    tokio::select! {
        () = readiness => Ok(()),
        failed = liveness => failed,
    }
}

/// One probe over its life.
struct Runner<'a> {
    probe: &'a Probe,
    kept: &'a Kept,
    pod: &'a Pod,
    which: &'static str,
    first: bool,
    successes: i32,
    failures: i32,
    counted: Option<Instant>,
}

impl<'a> Runner<'a> {
    fn new(probe: &'a Probe, kept: &'a Kept, pod: &'a Pod, which: &'static str) -> Self {
        Self { probe, kept, pod, which, first: true, successes: 0, failures: 0, counted: None }
    }

    fn seconds(value: Option<i32>, default: u64) -> Duration {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).filter(|n| *n > 0).unwrap_or(default))
    }

    /// Waits for the next turn and probes once: whether it succeeded often enough in a row.
    ///
    /// # Errors
    /// It failed as often in a row as the probe allows.
    async fn once(&mut self, eager: bool) -> Result<bool, String> {
        let period = Self::seconds(self.probe.period_seconds, 10);
        if self.first {
            let delay = self.probe.initial_delay_seconds.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            sleep(Duration::from_secs(delay)).await;
            self.first = false;
        } else {
            sleep(if eager { period.min(EAGER) } else { period }).await;
        }
        let limit = Self::seconds(self.probe.timeout_seconds, 1);
        match check(self.probe, self.kept, self.pod, limit).await {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                Ok(self.successes >= self.probe.success_threshold.unwrap_or(1))
            }
            Err(reason) => {
                self.successes = 0;
                if self.counted.is_none_or(|counted| counted.elapsed() >= period) {
                    self.counted = Some(Instant::now());
                    self.failures = self.failures.saturating_add(1);
                }
                let allowed = self.probe.failure_threshold.unwrap_or(3).max(1);
                if self.failures >= allowed {
                    return Err(format!("{} probe failed {} times: {reason}", self.which, self.failures));
                }
                Ok(false)
            }
        }
    }
}

async fn check(probe: &Probe, kept: &Kept, pod: &Pod, limit: Duration) -> Result<(), String> {
    let what = async {
        if let Some(get) = &probe.http_get {
            http_get(get, kept, pod).await
        } else if let Some(tcp) = &probe.tcp_socket {
            tcp_socket(tcp, kept, pod).await
        } else if let Some(command) = &probe.exec {
            exec(command, kept).await
        } else {
            Err("grpc probes are not made by the sandbox itself (the proxy of a mesh pod makes them)".into())
        }
    };
    timeout(limit, what).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

/// Runs a lifecycle hook to its end.
///
/// # Errors
/// Why it failed.
pub async fn hook(hook: &LifecycleHandler, kept: &Kept, pod: &Pod) -> Result<(), String> {
    let what = async {
        if let Some(get) = &hook.http_get {
            http_get(get, kept, pod).await
        } else if let Some(command) = &hook.exec {
            exec(command, kept).await
        } else if let Some(pause) = &hook.sleep {
            sleep(Duration::from_secs(u64::try_from(pause.seconds).unwrap_or(0))).await;
            Ok(())
        } else if let Some(tcp) = &hook.tcp_socket {
            tcp_socket(tcp, kept, pod).await
        } else {
            Ok(())
        }
    };
    timeout(HOOK_LIMIT, what).await.unwrap_or_else(|_| Err(format!("not done within {} s", HOOK_LIMIT.as_secs())))
}

fn port(port: &IntOrString, kept: &Kept) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => kept
                .manifest
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.container_port),
        },
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("the container has no port {port:?}"))
}

fn host(host: Option<&String>, pod: &Pod) -> Result<String, String> {
    let own = || pod.status().address.map(|address: Ipv4Addr| address.to_string());
    host.filter(|host| !host.is_empty()).cloned().or_else(own).ok_or_else(|| "the pod has no address".to_owned())
}

async fn http_get(get: &HTTPGetAction, kept: &Kept, pod: &Pod) -> Result<(), String> {
    if get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS")) {
        return Err("https probes are not made by the sandbox itself (the proxy of a mesh pod makes them)".into());
    }
    let (host, port) = (host(get.host.as_ref(), pod)?, port(&get.port, kept)?);
    let path = get.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut headers = String::new();
    let mut named = (false, false, false);
    for header in get.http_headers.iter().flatten() {
        if header.name.contains(['\r', '\n', ':']) || header.value.contains(['\r', '\n']) {
            return Err(format!("header {:?} can not be sent", header.name));
        }
        named.0 |= header.name.eq_ignore_ascii_case("host");
        named.1 |= header.name.eq_ignore_ascii_case("user-agent");
        named.2 |= header.name.eq_ignore_ascii_case("accept");
        headers.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    for (is_named, line) in [
        (named.0, format!("Host: {host}:{port}\r\n")),
        (named.1, "User-Agent: kube-probe/1.34\r\n".to_owned()),
        (named.2, "Accept: */*\r\n".to_owned()),
    ] {
        if !is_named {
            headers.push_str(&line);
        }
    }
    if path.contains([' ', '\r', '\n']) {
        return Err(format!("path {path:?} can not be sent"));
    }
    let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    let said = |error: std::io::Error| format!("http://{host}:{port}{path}: {error}");
    let mut stream = TcpStream::connect((host.as_str(), port)).await.map_err(said)?;
    stream.write_all(request.as_bytes()).await.map_err(said)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    while answer.len() < MAX_ANSWER && !answer.contains(&b'\n') {
        match stream.read(&mut buffer).await.map_err(said)? {
            0 => break,
            n => answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let line = text.lines().next().unwrap_or_default();
    let code: Option<u16> = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    match code {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("http://{host}:{port}{path} answered {code}")),
        None => Err(format!("http://{host}:{port}{path} gave no HTTP answer")),
    }
}

async fn tcp_socket(tcp: &TCPSocketAction, kept: &Kept, pod: &Pod) -> Result<(), String> {
    let (host, port) = (host(tcp.host.as_ref(), pod)?, port(&tcp.port, kept)?);
    TcpStream::connect((host.as_str(), port)).await.map(|_| ()).map_err(|error| format!("{host}:{port}: {error}"))
}

async fn exec(command: &ExecAction, kept: &Kept) -> Result<(), String> {
    let (container, mut process) = kept.running().ok_or("the container is not running")?;
    process.argv = command.command.clone().unwrap_or_default();
    let child = container.exec(&process, Streams::captured()).await.map_err(|error| error.to_string())?;
    let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
    match exit_code(output.status) {
        0 => Ok(()),
        code => {
            let said = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
            let said: String = said.trim().chars().take(MAX_TOLD).collect();
            Err(format!("{} ended with exit code {code}: {said}", process.argv.join(" ")))
        }
    }
}
