//! What a kubelet does for one pod: network, volumes, containers in their order, probes, and the way down.

pub mod containers;
pub mod env;
pub mod fields;
pub mod lifecycle;
pub mod probes;
pub mod state;
pub mod termination;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::ConfigMap;
use tokio::sync::{Notify, watch};

use crate::{
    api::admission::Admission, api::tokens::TokenIssuer, cni::Chain, events::Events, images::Images, layout::Layout,
};

pub use state::{Owner, Pod, PodStatus};

/// What pods need of the machine and of the API.
pub struct Node {
    /// Folders.
    pub layout: Layout,
    /// This executable.
    pub weir: PathBuf,
    /// Images.
    pub images: Images,
    /// Whether pods have addresses of IPv6.
    pub ipv6: bool,
    /// The CNI chain.
    pub chain: Chain,
    /// Tokens of service accounts.
    pub tokens: TokenIssuer,
    /// Webhooks.
    pub admission: Admission,
    /// What happened.
    pub events: Events,
    /// Something about a pod changed: endpoints must be looked at.
    pub changed: Notify,
    /// ConfigMaps by namespace and name.
    pub config_maps: Mutex<HashMap<(String, String), ConfigMap>>,
    /// Counts publications of endpoints.
    pub published: watch::Sender<u64>,
}

impl Node {
    /// A ConfigMap by namespace and name.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        let maps = self.config_maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Waits until endpoints were published after now, so that what was said about a pod is known to all who route to it.
    pub async fn endpoints_published(self: &Arc<Self>) {
        // One publication may be under way with what was known before; the one after it has seen everything.
        let mut published = self.published.subscribe();
        let target = published.borrow_and_update().saturating_add(2);
        while *published.borrow() < target {
            self.changed.notify_one();
            if published.changed().await.is_err() {
                return;
            }
        }
    }
}
