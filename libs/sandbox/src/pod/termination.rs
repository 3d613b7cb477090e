//! The way down: endpoints first, then hooks and SIGTERM, the sidecars last and in reverse order.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Node, Pod,
    containers::{self, Kept, Role},
    probes,
};

/// The least that a container gets between SIGTERM and SIGKILL, as with the kubelet.
const LEAST: Duration = Duration::from_secs(2);
/// Pause between two looks at a container that has not ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for the endpoints to be published without the pod.
const PUBLICATION: Duration = Duration::from_secs(2);

/// Ends all containers of a pod, within its grace period.
pub async fn run(node: &Arc<Node>, pod: &Arc<Pod>) {
    pod.change(|status| status.terminating = true);
    if pod.status().address.is_some() {
        let _ = timeout(PUBLICATION, node.endpoints_published()).await;
    }
    let at_most = (*pod.delete.borrow()).and_then(|deletion| deletion.at_most);
    let grace = containers::grace(pod).min(at_most.unwrap_or(Duration::MAX));
    end(node, pod, grace, false).await;
}

/// Ends the sidecars of a pod whose ordinary containers have ended.
pub async fn sidecars(node: &Arc<Node>, pod: &Arc<Pod>, grace: Duration) {
    end(node, pod, grace, true).await;
}

async fn end(node: &Arc<Node>, pod: &Arc<Pod>, grace: Duration, only_sidecars: bool) {
    let all: Vec<Arc<Kept>> = pod.containers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let deadline = Instant::now() + grace;
    for kept in all.iter().filter(|kept| !only_sidecars || kept.role == Role::Sidecar) {
        kept.stop();
    }
    // Hooks of all containers run at once, those of sidecars too, though these are stopped last.
    let mut hooks = JoinSet::new();
    let mut mains = JoinSet::new();
    for kept in all.iter().filter(|kept| !kept.has_ended()) {
        let (node, pod, kept) = (node.clone(), pod.clone(), kept.clone());
        match kept.role {
            Role::Sidecar => {
                hooks.spawn(async move { pre_stop(&node, &pod, &kept, deadline).await });
            }
            Role::Init | Role::Main if !only_sidecars => {
                mains.spawn(async move {
                    pre_stop(&node, &pod, &kept, deadline).await;
                    stop(&kept, deadline).await;
                });
            }
            Role::Init | Role::Main => {}
        }
    }
    mains.join_all().await;
    let _ = timeout(left(deadline), hooks.join_all()).await;
    for kept in all.iter().rev().filter(|kept| kept.role == Role::Sidecar) {
        stop(kept, deadline).await;
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(LEAST)
}

async fn pre_stop(node: &Node, pod: &Pod, kept: &Kept, deadline: Instant) {
    let hook = kept.manifest.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let Some(hook) = hook
        && kept.running().is_some()
        && let Ok(Err(reason)) = timeout(left(deadline), probes::hook(hook, kept, pod)).await
    {
        let about = format!("{} container {}", pod.reference(), kept.name());
        node.events.warning(&about, "FailedPreStopHook", reason);
    }
}

async fn stop(kept: &Kept, deadline: Instant) {
    // A container may just be on its way up: what is not running now can be a moment later.
    loop {
        if let Some((container, _)) = kept.running() {
            containers::kill(&container, left(deadline)).await;
        }
        if timeout(LOOK_AGAIN, kept.ended()).await.is_ok() {
            return;
        }
    }
}
