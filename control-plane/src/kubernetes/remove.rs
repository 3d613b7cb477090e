//! `weir-control remove`: takes away what outlives the objects of the chart, when these are gone. Run by the chart at the end of
//! `helm uninstall`, as a Job with rights of its own; the control plane itself may delete nothing.
//!
//! In this order, so that nothing is put back: the pods that would do so must have ended; then the nodes, by a DaemonSet; then the
//! Secrets, the Lease, and the roots of each namespace. An object of the same name that somebody else made stays.

use std::{fmt::Debug, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};
use weir_mesh::names::{CONTROL_SERVICE, ROOT_CONFIG_MAP, SYSTEM_NAMESPACE};

use super::{MANAGED_BY, backoff::Backoff, ca_secret, code, connect, explain, lease, webhook};

/// Who puts back what is removed while they run: the control plane its Secrets, the agent the files of its node.
const RESTORERS: &str = "app.kubernetes.io/name in (weir-control, weir-cni)";
/// The webhook's pods.
const WEBHOOK: &str = "app.kubernetes.io/name=weir-webhook";
/// Label of a part's pods.
const PART: &str = "app.kubernetes.io/name";
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// Removes what the control plane and the node agents have left in the cluster, after the chart was uninstalled.
#[derive(Debug, Clone, Parser)]
#[command(name = "weir-control remove", version)]
pub struct Remove {
    /// Namespace that Weir was in.
    #[arg(long, value_name = "NAME", default_value = SYSTEM_NAMESPACE, env = "POD_NAMESPACE")]
    namespace: String,
    /// DaemonSet (JSON) whose pods are ready when their node is clean; left out: nothing is on the nodes.
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Seconds until it gives up.
    #[arg(long, value_name = "N", default_value_t = 180)]
    seconds: u64,
    /// Kubeconfig file; left out, the service account of the own pod is used.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The own pod, so that the DaemonSet goes with it.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
    /// Its uid.
    #[arg(long, env = "POD_UID", hide = true)]
    pod_uid: Option<String>,
}

/// Removes all of it.
///
/// # Errors
/// Where something could not be removed, in one line that names it.
pub async fn remove(settings: Remove) -> anyhow::Result<()> {
    let client = connect(settings.kubeconfig.as_deref()).await?;
    let end = Instant::now() + Duration::from_secs(settings.seconds);
    let namespace = &settings.namespace;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    if patiently(end, async || deployments.get_opt(CONTROL_SERVICE).await).await?.is_some() {
        println!("Weir is installed in {namespace}: nothing was removed");
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    gone(&pods, RESTORERS, end).await?;
    let nodes = match &settings.nodes {
        Some(file) => {
            let text = std::fs::read(file).with_context(|| format!("--nodes {}", file.display()))?;
            let set = serde_json::from_slice(&text).with_context(|| format!("--nodes {}", file.display()))?;
            remove_from_nodes(&settings, &client, set, end).await
        }
        None => Ok(()),
    };
    for name in [ca_secret::NAME, webhook::NAME] {
        remove_ours(&Api::<Secret>::namespaced(client.clone(), namespace), name, end).await?;
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    patiently(end, async || found(leases.delete(lease::NAME, &DeleteParams::default()).await)).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for other in patiently(end, async || namespaces.list_metadata(&ListParams::default()).await).await? {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &other.name_any());
        remove_ours(&maps, ROOT_CONFIG_MAP, end).await?;
    }
    nodes?;
    // It answers a little longer than it must, for API servers that have not noticed.
    gone(&pods, WEBHOOK, end).await?;
    println!("nothing of Weir is left");
    Ok(())
}

/// Has every node cleaned, and waits for the last of them.
async fn remove_from_nodes(settings: &Remove, client: &Client, mut set: DaemonSet, end: Instant) -> anyhow::Result<()> {
    let namespace = &settings.namespace;
    let name = set.name_any();
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    if let (Some(pod), Some(uid)) = (&settings.pod_name, &settings.pod_uid) {
        set.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: pod.clone(),
            uid: uid.clone(),
            ..OwnerReference::default()
        }]);
    }
    patiently(end, async || match sets.create(&PostParams::default(), &set).await {
        // Made by the try before, whose answer was lost.
        Err(error) if code(&error) == 409 => Ok(()),
        result => result.map(drop),
    })
    .await?;
    let cleaned = loop {
        let now = patiently(end, async || sets.get(&name).await).await?;
        if is_everywhere(&now) {
            break Ok(());
        }
        if Instant::now() >= end {
            break Err(());
        }
        sleep(LOOK).await;
    };
    let label = format!("{PART}={name}");
    let later = Instant::now() + Duration::from_secs(30);
    let unclean = match cleaned {
        Ok(()) => Vec::new(),
        Err(()) => patiently(later, async || pods.list(&ListParams::default().labels(&label)).await)
            .await?
            .iter()
            .filter(|pod| !is_ready(pod))
            .map(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| pod.name_any()))
            .collect(),
    };
    patiently(later, async || found(sets.delete(&name, &DeleteParams::default()).await)).await?;
    if cleaned.is_err() {
        anyhow::bail!(
            "plugin and configuration are left on: {}. When these nodes are back: helm install and helm uninstall once more, or \
             remove 00-weir.conflist from the CNI configurations and then weir-cni from the plugins by hand",
            unclean.join(", ")
        );
    }
    gone(&pods, &label, later).await
}

/// True where the pods of this version are ready on all nodes.
fn is_everywhere(set: &DaemonSet) -> bool {
    set.status.as_ref().is_some_and(|status| {
        status.observed_generation == set.metadata.generation
            && status.observed_generation.is_some()
            && status.number_ready >= status.desired_number_scheduled
    })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Waits until no pod with these labels is left.
async fn gone(pods: &Api<Pod>, labels: &str, end: Instant) -> anyhow::Result<()> {
    loop {
        let left = patiently(end, async || pods.list(&ListParams::default().labels(labels)).await).await?;
        let names: Vec<String> = left.iter().map(Pod::name_any).collect();
        if names.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            anyhow::bail!("these pods have not ended, and would put back what is removed: {}", names.join(", "));
        }
        sleep(LOOK).await;
    }
}

/// Removes an object that the control plane has made.
async fn remove_ours<K>(api: &Api<K>, name: &str, end: Instant) -> anyhow::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    patiently(end, async || {
        let Some(object) = api.get_opt(name).await? else { return Ok(()) };
        if object.labels().get(MANAGED_BY.0).map(String::as_str) != Some(MANAGED_BY.1) {
            println!("{name} in {} was not made by Weir and stays", object.namespace().unwrap_or_default());
            return Ok(());
        }
        let preconditions = Some(Preconditions { uid: object.uid(), resource_version: None });
        found(api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await)
    })
    .await
}

/// What is gone already need not be removed.
fn found<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if code(&error) == 404 => Ok(()),
        result => result.map(drop),
    }
}

/// Tries until it goes well, the API server says a definite no, or it takes too long.
async fn patiently<T>(end: Instant, attempt: impl AsyncFn() -> Result<T, kube::Error>) -> anyhow::Result<T> {
    let mut backoff = Backoff::default();
    loop {
        let reason = match timeout_at(end.max(Instant::now() + LOOK), attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if matches!(code(&error), 400..=404) => anyhow::bail!(explain(&error)),
            Ok(Err(error)) => explain(&error),
            Err(_) => "the API server does not answer".into(),
        };
        if Instant::now() >= end {
            anyhow::bail!(reason);
        }
        sleep(backoff.next()).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_daemon_set_that_nobody_has_looked_at_yet_is_nowhere() {
        let set = |status: serde_json::Value| -> DaemonSet {
            serde_json::from_value(json!({"metadata": {"name": "s", "generation": 2}, "spec": {"selector": {},
                "template": {}}, "status": status}))
            .unwrap()
        };
        let status = |observed: i64, wanted: i32, ready: i32| {
            set(json!({"observedGeneration": observed, "desiredNumberScheduled": wanted, "numberReady": ready,
                "currentNumberScheduled": wanted, "numberMisscheduled": 0}))
        };
        assert!(!is_everywhere(&DaemonSet::default()));
        assert!(!is_everywhere(&set(
            json!({"desiredNumberScheduled": 0, "numberReady": 0, "currentNumberScheduled": 0,
            "numberMisscheduled": 0})
        )));
        assert!(!is_everywhere(&status(1, 2, 2)));
        assert!(!is_everywhere(&status(2, 2, 1)));
        assert!(is_everywhere(&status(2, 2, 2)));
        assert!(is_everywhere(&status(2, 0, 0)));
    }
}
