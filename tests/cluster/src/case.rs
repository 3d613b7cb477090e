//! What a test of a [`crate::suite`] has in its hands. Everything here fails by panicking, as tests do.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Pod, ServiceAccount},
};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;

/// How long a condition may take to come true: long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a condition of the cluster.
///
/// # Panics
/// When it does not come true in time.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A cluster, and a namespace of the test's own.
pub struct Case<'a> {
    /// The cluster, shared with the other tests of the file.
    pub cluster: &'a Cluster,
    /// The namespace, empty at first and removed afterwards.
    pub namespace: &'a str,
}

impl<'a> Case<'a> {
    pub(crate) fn new(cluster: &'a Cluster, namespace: &'a str) -> Self {
        Self { cluster, namespace }
    }

    /// Objects of a kind in the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client(), self.namespace)
    }

    /// `kubectl apply` in the test's namespace.
    ///
    /// # Panics
    /// When it fails.
    pub fn apply(&self, manifests: &str) {
        self.cluster.apply(self.namespace, manifests).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// kubectl in the test's namespace; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let arguments = [&["--namespace", self.namespace], arguments].concat();
        self.cluster.kubectl(&arguments).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a program in a pod's container; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// Waits until `condition` gives something for the object of this name.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn until<K, T>(&self, name: &str, what: &str, condition: impl Fn(&K) -> Option<T>) -> T
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api = self.api::<K>();
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let last = api.get_opt(name).await;
            if let Ok(Some(object)) = &last
                && let Some(value) = condition(object)
            {
                return value;
            }
            assert!(tokio::time::Instant::now() < end, "not within {PATIENCE:?}: {name}: {what}; last: {last:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a pod is ready; the pod.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn ready(&self, name: &str) -> Pod {
        self.until(name, "is ready", |pod: &Pod| is_ready(pod).then(|| pod.clone())).await
    }

    /// Waits until so many pods with this label are ready; the pods.
    ///
    /// # Panics
    /// When they are not in time.
    pub async fn ready_with(&self, label: &str, count: usize) -> Vec<Pod> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let params = kube::api::ListParams::default().labels(label);
        loop {
            let pods = self.api::<Pod>().list(&params).await.map(|list| list.items).unwrap_or_default();
            let ready: Vec<Pod> = pods.into_iter().filter(is_ready).collect();
            if ready.len() == count {
                return ready;
            }
            let names: Vec<String> = ready.iter().map(|pod| pod.name_any()).collect();
            assert!(tokio::time::Instant::now() < end, "not {count} pods with {label} are ready, only {names:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn wait_for_service_account(&self) {
        self.until("default", "is there", |_: &ServiceAccount| Some(())).await;
    }
}

/// True for a pod that gets traffic.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}
