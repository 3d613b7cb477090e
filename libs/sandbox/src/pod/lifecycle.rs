//! The life of a pod, from admission to its removal.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1 as core;
use tokio::time::sleep;

use super::{
    Node, Pod,
    containers::{Kept, Restart, Role},
    state::{ContainerState, ContainerStatus, Phase},
    termination,
};
use crate::{
    api::admission::AdmissionError,
    cni::PodNetwork,
    layout::{CLUSTER_DOMAIN, DNS_ADDRESS},
    net::namespace,
    runtime::{
        container::blocking,
        volumes::{self, KeptToken, Sources, VolumeError},
    },
    util::unix_now,
};

/// Pause before something that is missing is looked for again.
const AGAIN: Duration = Duration::from_millis(100);
/// Longest pause before a refused pod is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often volumes are brought up to date.
const REFRESH: Duration = Duration::from_secs(1);

/// Runs a pod until it is gone.
pub async fn run(node: Arc<Node>, pod: Arc<Pod>) {
    let told = tokio::spawn(tell(node.clone(), pod.clone()));
    let mut delete = pod.delete.subscribe();
    let running = tokio::select! {
        biased;
        _ = delete.wait_for(Option::is_some) => None,
        refresher = bring_up(&node, &pod) => refresher,
    };
    if running.is_some() {
        tokio::select! {
            _ = delete.wait_for(Option::is_some) => {}
            () = all_ended(&node, &pod) => {}
        }
    }
    let _ = delete.wait_for(Option::is_some).await;
    termination::run(&node, &pod).await;
    if let Some(refresher) = running {
        refresher.abort();
    }
    remove(&node, &pod).await;
    pod.change(|status| status.phase = Phase::Gone);
    node.changed.notify_one();
    told.abort();
}

/// Passes every change of the pod on to whoever computes endpoints.
async fn tell(node: Arc<Node>, pod: Arc<Pod>) {
    let mut status = pod.status.subscribe();
    while status.changed().await.is_ok() {
        status.mark_unchanged();
        node.changed.notify_one();
    }
}

async fn bring_up(node: &Arc<Node>, pod: &Arc<Pod>) -> Option<tokio::task::JoinHandle<()>> {
    admit(node, pod).await;
    pod.change(|status| status.phase = Phase::Pending);
    let spec = match prepare(node, pod).await {
        Ok(spec) => spec,
        Err(reason) => {
            give_up(node, pod, reason);
            return None;
        }
    };
    if let Err(reason) = network(node, pod).await {
        give_up(node, pod, reason);
        return None;
    }
    let (volumes, tokens) = match volumes(node, pod).await {
        Ok(ready) => ready,
        Err(reason) => {
            give_up(node, pod, reason);
            return None;
        }
    };
    let refresher = tokio::spawn(keep_fresh(node.clone(), pod.clone(), tokens));
    for container in spec.init_containers.iter().flatten() {
        if !init_container(node, pod, container, &spec, &volumes).await {
            return Some(refresher);
        }
    }
    let restart = match spec.restart_policy.as_deref() {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        _ => Restart::Always,
    };
    for container in &spec.containers {
        let kept = Kept::new(container.clone(), Role::Main, restart);
        register(pod, &kept);
        kept.keep(node, pod, &volumes);
        // The next one starts when this one's post-start hook is done.
        if container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some()) {
            started(pod, kept.name()).await;
        }
    }
    pod.change(|status| status.phase = Phase::Running);
    Some(refresher)
}

/// A pod that can not become anything by waiting.
fn give_up(node: &Node, pod: &Pod, reason: String) {
    node.events.warning(&pod.reference(), "Failed", reason.clone());
    pod.change(|status| {
        status.message = Some(reason);
        status.hopeless = true;
    });
}

async fn admit(node: &Arc<Node>, pod: &Arc<Pod>) {
    let mut pause = AGAIN;
    loop {
        match node.admission.review(&pod.object()).await {
            Ok(reviewed) => {
                for warning in reviewed.warnings {
                    node.events.warning(&pod.reference(), "AdmissionWarning", warning);
                }
                if let Some(object) = reviewed.object {
                    let added = added_containers(&pod.object(), &object);
                    node.events.normal(&pod.reference(), "Injected", format!("the webhook added {added}"));
                    pod.set_object(object);
                }
                pod.change(|status| {
                    status.message = None;
                    status.hopeless = false;
                });
                return;
            }
            Err(error) => {
                let refused = matches!(error, AdmissionError::Denied { .. });
                if refused {
                    node.events.warning(&pod.reference(), "FailedCreate", error.to_string());
                }
                pod.change(|status| {
                    status.message = Some(error.to_string());
                    status.hopeless = refused;
                });
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        if !pod.status().hopeless {
            // The webhook is not up yet, or on its way: ask again soon.
            pause = AGAIN;
        }
    }
}

fn added_containers(before: &serde_json::Value, after: &serde_json::Value) -> String {
    let names = |object: &serde_json::Value| -> Vec<String> {
        ["/spec/initContainers", "/spec/containers", "/spec/volumes"]
            .iter()
            .flat_map(|list| {
                let entries = object.pointer(list).and_then(serde_json::Value::as_array);
                let kind = if list.ends_with("volumes") { "volume" } else { "container" };
                entries
                    .into_iter()
                    .flatten()
                    .filter_map(|entry| entry.get("name")?.as_str())
                    .map(|name| format!("{kind} {name}"))
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let known = names(before);
    let added: Vec<String> = names(after).into_iter().filter(|name| !known.contains(name)).collect();
    if added.is_empty() { "nothing but metadata".into() } else { added.join(", ") }
}

/// Reads the pod as it was admitted, and makes its folder.
async fn prepare(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<core::PodSpec, String> {
    let typed = pod.typed().map_err(|error| format!("is no pod any more after admission: {error}"))?;
    let spec = typed.spec.ok_or("has no spec")?;
    if spec.host_network == Some(true) {
        return Err("hostNetwork: the sandbox has no pods in the node's network".into());
    }
    let mut containers = Vec::new();
    let init = spec.init_containers.iter().flatten().map(|container| (container, true));
    for (container, init) in init.chain(spec.containers.iter().map(|container| (container, false))) {
        node.images
            .resolve(container.image.as_deref().unwrap_or_default(), container.command.is_some())
            .map_err(|error| format!("container {}: {error}", container.name))?;
        containers.push(ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            init,
            ..ContainerStatus::default()
        });
    }
    pod.change(|status| status.containers = containers);
    let folder = node.layout.pod(&pod.uid);
    let files = || -> std::io::Result<()> {
        fs::create_dir_all(folder.join("volumes"))?;
        fs::write(folder.join("hostname"), format!("{}\n", pod.name))?;
        fs::write(folder.join("resolv.conf"), resolv_conf(&pod.namespace))
    };
    files().map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(spec)
}

/// Name resolution as a kubelet sets it up for `dnsPolicy: ClusterFirst`.
fn resolv_conf(namespace: &str) -> String {
    format!(
        "search {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\nnameserver {DNS_ADDRESS}\noptions ndots:5\n"
    )
}

async fn network(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<(), String> {
    let (node_, pod_) = (node.clone(), pod.clone());
    let attached = blocking(move || {
        let netns = node_.layout.netns().join(&pod_.uid);
        namespace::create(&netns, node_.ipv6)?;
        let annotations = annotations(&pod_);
        let network = PodNetwork {
            uid: &pod_.uid,
            namespace: &pod_.namespace,
            name: &pod_.name,
            netns: &netns,
            annotations: &annotations,
        };
        node_.chain.add(&network).map_err(std::io::Error::other)
    })
    .await
    .map_err(|error| error.to_string())?;
    for call in &attached.calls {
        let mut message = format!("{} took {:.1} ms", call.plugin, call.elapsed.as_secs_f64() * 1000.0);
        if !call.stderr.is_empty() {
            message.push_str(": ");
            message.push_str(&call.stderr);
        }
        node.events.normal(&pod.reference(), "NetworkPlugin", message);
    }
    let mut hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{}\t{}\n", attached.address, pod.name);
    if let Some(address) = attached.address_v6 {
        hosts += &format!("{address}\t{}\n", pod.name);
    }
    fs::write(node.layout.pod(&pod.uid).join("hosts"), hosts).map_err(|error| error.to_string())?;
    pod.change(|status| {
        status.address = Some(attached.address);
        status.address_v6 = attached.address_v6;
        status.host_interface = Some(attached.host_interface);
    });
    Ok(())
}

fn annotations(pod: &Pod) -> serde_json::Map<String, serde_json::Value> {
    pod.object().pointer("/metadata/annotations").and_then(serde_json::Value::as_object).cloned().unwrap_or_default()
}

type Tokens = BTreeMap<String, KeptToken>;

/// Sets the volumes up, waiting for what does not exist yet, as the kubelet does.
async fn volumes(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<(BTreeMap<String, PathBuf>, Tokens), String> {
    let mut tokens = Tokens::new();
    let mut told = false;
    loop {
        match refresh(node, pod, &mut tokens) {
            Ok(folders) => {
                pod.change(|status| status.message = None);
                return Ok((folders, tokens));
            }
            Err(error @ VolumeError::Missing { .. }) => {
                if !told {
                    pod.change(|status| status.message = Some(error.to_string()));
                    told = true;
                }
                sleep(AGAIN).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn refresh(node: &Node, pod: &Pod, tokens: &mut Tokens) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
    let typed =
        pod.typed().map_err(|error| VolumeError::Invalid { volume: "(pod)".into(), reason: error.to_string() })?;
    let config_map = |name: &str| node.config_map(&pod.namespace, name);
    let mut sources =
        Sources { pod: &typed, config_map: &config_map, tokens: &node.tokens, kept: tokens, now: unix_now() };
    volumes::refresh(&node.layout.pod(&pod.uid).join("volumes"), &mut sources)
}

async fn keep_fresh(node: Arc<Node>, pod: Arc<Pod>, mut tokens: Tokens) {
    loop {
        sleep(REFRESH).await;
        if let Err(error) = refresh(&node, &pod, &mut tokens) {
            node.events.warning(&pod.reference(), "FailedMount", error.to_string());
        }
    }
}

fn register(pod: &Pod, kept: &Arc<Kept>) {
    pod.containers.lock().unwrap_or_else(PoisonError::into_inner).push(kept.clone());
}

/// Whether the next container may start.
async fn init_container(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    container: &core::Container,
    spec: &core::PodSpec,
    volumes: &BTreeMap<String, PathBuf>,
) -> bool {
    if container.restart_policy.as_deref() == Some("Always") {
        let kept = Kept::new(container.clone(), Role::Sidecar, Restart::Always);
        register(pod, &kept);
        kept.keep(node, pod, volumes);
        started(pod, kept.name()).await;
        return true;
    }
    let never = spec.restart_policy.as_deref() == Some("Never");
    let restart = if never { Restart::Never } else { Restart::OnFailure };
    let kept = Kept::new(container.clone(), Role::Init, restart);
    register(pod, &kept);
    kept.keep(node, pod, volumes);
    let code = kept.ended().await;
    if code != 0 {
        pod.change(|status| {
            status.phase = Phase::Failed;
            status.hopeless = true;
            status.message = Some(format!("init container {} ended with exit code {code}", container.name));
        });
        return false;
    }
    true
}

/// Waits until the start of a container is over.
async fn started(pod: &Pod, name: &str) {
    let mut status = pod.status.subscribe();
    let _ = status
        .wait_for(|status| {
            status.containers.iter().any(|container| {
                container.name == name && (container.started || matches!(container.state, ContainerState::Ended(_)))
            })
        })
        .await;
}

/// Waits until all ordinary containers have ended for good; then ends the sidecars.
async fn all_ended(node: &Arc<Node>, pod: &Arc<Pod>) {
    let containers: Vec<Arc<Kept>> = pod.containers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut worst = 0;
    for kept in containers.iter().filter(|kept| !kept.is_init()) {
        worst = worst.max(kept.ended().await);
    }
    pod.change(|status| status.phase = if worst == 0 { Phase::Succeeded } else { Phase::Failed });
    termination::sidecars(node, pod, super::containers::grace(pod)).await;
}

async fn remove(node: &Arc<Node>, pod: &Arc<Pod>) {
    let (node_, pod_) = (node.clone(), pod.clone());
    let removed = blocking(move || {
        let netns = node_.layout.netns().join(&pod_.uid);
        let annotations = annotations(&pod_);
        let network = PodNetwork {
            uid: &pod_.uid,
            namespace: &pod_.namespace,
            name: &pod_.name,
            netns: &netns,
            annotations: &annotations,
        };
        let detached = if netns.exists() { node_.chain.del(&network) } else { Ok(()) };
        namespace::delete(&netns);
        match fs::remove_dir_all(node_.layout.pod(&pod_.uid)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        detached.map_err(std::io::Error::other)
    })
    .await;
    if let Err(error) = removed {
        node.events.warning(&pod.reference(), "FailedKillPod", error.to_string());
    }
}
