//! The mesh's roots, as a ConfigMap in every namespace that needs them: those whose pods get our proxy, and those that have such
//! pods by the pods' own label. It comes with the label, is put right when it differs, and stays when the label goes, for pods
//! still mount it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch as state,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use weir_mesh::names::{ROOT_CONFIG_MAP, ROOT_FILE};

use super::{
    MANAGED_BY, MANAGER,
    backoff::Backoff,
    code, explain,
    watch::{Event, Prompt, What, follow},
};
use crate::{ca::CertificateAuthority, catalog::Catalog};

/// Writes at a time: a new root reaches a thousand namespaces in seconds, and the API server has other work.
const AT_ONCE: usize = 8;
/// Everything that should be there is looked at again after this time, whatever was told.
const AGAIN: Duration = Duration::from_secs(300);

/// The roots of each namespace that has some; nothing before they were read.
type Published = Option<HashMap<Arc<str>, Arc<str>>>;

/// Keeps them.
pub(super) async fn keep(client: Client, authority: Arc<CertificateAuthority>, catalog: Arc<Catalog>) {
    let (published, mut there) = state::channel::<Published>(None);
    let reading = read(Api::all(client.clone()), published);
    let writing = async {
        let mut world = catalog.changes();
        let mut root = authority.changes();
        let mut backoff = Backoff::default();
        let mut again = Instant::now() + AGAIN;
        loop {
            let roots = authority.roots();
            let missing = {
                let there = there.borrow_and_update();
                world.mark_unchanged();
                there.as_ref().map(|there| missing(&catalog.look(|world| world.mesh_namespaces()), there, &roots))
            };
            let mut failed = false;
            let mut tasks = JoinSet::new();
            for namespace in missing.unwrap_or_default() {
                while tasks.len() >= AT_ONCE {
                    failed |= !matches!(tasks.join_next().await, Some(Ok(true)));
                }
                tasks.spawn(write(client.clone(), namespace, roots.clone()));
            }
            while let Some(done) = tasks.join_next().await {
                failed |= !matches!(done, Ok(true));
            }
            if failed {
                again = Instant::now() + backoff.next();
            } else {
                backoff.reset();
                again = again.max(Instant::now());
            }
            tokio::select! {
                changed = there.changed() => if changed.is_err() { return },
                changed = world.changed() => if changed.is_err() { return },
                () = root.next() => {}
                () = sleep_until(again) => again = Instant::now() + AGAIN,
            }
        }
    };
    tokio::join!(reading, writing);
}

/// Follows the ConfigMaps of this name.
async fn read(api: Api<ConfigMap>, published: state::Sender<Published>) {
    let mut reading: HashMap<Arc<str>, Arc<str>> = HashMap::new();
    let mut whole = false;
    let mut troubled = false;
    let pem = |map: &ConfigMap| -> Arc<str> {
        map.data.as_ref().and_then(|data| data.get(ROOT_FILE)).map(String::as_str).unwrap_or_default().into()
    };
    let namespace = |map: &ConfigMap| -> Arc<str> { map.namespace().unwrap_or_default().into() };
    let listener = Prompt(move |event| {
        match event {
            Event::Begin => {
                reading.clear();
                whole = false;
            }
            Event::There(map) if whole => {
                published.send_modify(|there| {
                    there.get_or_insert_default().insert(namespace(&map), pem(&map));
                });
            }
            Event::There(map) => {
                reading.insert(namespace(&map), pem(&map));
            }
            Event::Gone(map) => {
                published.send_modify(|there| {
                    there.get_or_insert_default().remove(&namespace(&map));
                });
            }
            Event::Complete | Event::Absent => {
                whole = true;
                published.send_replace(Some(std::mem::take(&mut reading)));
            }
            Event::Failed(reason) => {
                if !std::mem::replace(&mut troubled, true) {
                    tracing::error!(reason, "the ConfigMaps with the roots can not be watched; trying again");
                }
                return true;
            }
        }
        troubled = false;
        true
    });
    follow(api, What::named(ROOT_CONFIG_MAP), listener).await;
}

/// Namespaces that have other roots, or none.
fn missing(wanted: &BTreeSet<Arc<str>>, there: &HashMap<Arc<str>, Arc<str>>, roots: &Arc<str>) -> Vec<Arc<str>> {
    wanted.iter().filter(|namespace| there.get(*namespace) != Some(roots)).cloned().collect()
}

/// Writes them; `false` where it should be tried again.
async fn write(client: Client, namespace: Arc<str>, roots: Arc<str>) -> bool {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ROOT_CONFIG_MAP, "labels": BTreeMap::from([MANAGED_BY])},
        "data": {ROOT_FILE: &*roots},
    });
    match api.patch(ROOT_CONFIG_MAP, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await {
        Ok(_) => {
            tracing::info!(namespace = &*namespace, "the mesh's roots were written");
            true
        }
        // The namespace is gone or going; if it is not, its next change or the regular look comes back here.
        Err(error)
            if matches!(code(&error), 404)
                || (code(&error) == 403 && error.to_string().contains("being terminated")) =>
        {
            true
        }
        Err(error) => {
            tracing::error!(
                namespace = &*namespace,
                reason = explain(&error),
                "the mesh's roots can not be written; trying again"
            );
            false
        }
    }
}
