//! The status of objects, written by the leader: whether they are in force, and why not. What other controllers wrote is left as it is.

mod book;
pub(super) mod policy;
pub(super) mod route;

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::{Value as Json, json};
use tokio::{
    sync::watch as state,
    time::{Instant, sleep, sleep_until},
};
use weir_config::model::Origin;

pub(super) use self::book::Book;
pub(crate) use self::book::Books;
use super::{MANAGER, backoff::Backoff, code, explain};
use crate::{catalog::Catalog, verdict::Verdict, world::World};

/// What changes together is written together.
const QUIET: Duration = Duration::from_millis(100);
/// Everything is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(300);
/// Longest message of a condition (the API allows 32 KiB; nobody reads so much).
const MAX_MESSAGE: usize = 1024;

/// What is known of an object whose status is written.
pub(super) trait Facts: PartialEq + Send + 'static {
    /// The field of the status that has our entries among others'.
    const LIST: &'static str;

    /// Where objects of a kind are.
    fn resource(kind: &str) -> ApiResource;

    /// Which version this is.
    fn generation(&self) -> i64;

    /// Our entries as they are.
    fn ours(&self) -> &[Json];

    /// Our entries as they should be at a time; `None` where the world does not have the object yet.
    fn wanted(&self, name: &Origin, world: &World, now: &str) -> Option<Vec<Json>>;

    /// True for an entry that is ours.
    fn is_ours(entry: &Json) -> bool;
}

/// Writes what differs, while this replica leads.
pub(super) async fn keep<F: Facts>(
    client: Client,
    mut leads: state::Receiver<bool>,
    book: Arc<Book<F>>,
    catalog: Arc<Catalog>,
) {
    let mut facts = book.changes();
    let mut world = catalog.changes();
    let mut backoff = Backoff::default();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        facts.mark_unchanged();
        world.mark_unchanged();
        let mut again = Instant::now() + AGAIN;
        if catalog.ready().await.is_ok() {
            let wanted = catalog.look(|world| wanted(&book, world));
            let mut failed = false;
            for (name, entries) in wanted {
                if !*leads.borrow() {
                    break;
                }
                failed |= !write(&client, &name, &book, entries).await;
            }
            if failed {
                again = Instant::now() + backoff.next();
            } else {
                backoff.reset();
            }
        }
        tokio::select! {
            _ = facts.changed() => {}
            changed = world.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = sleep_until(again) => {}
        }
        sleep(QUIET).await;
    }
}

/// Objects whose status is not what it should be, with our entries as they should be.
fn wanted<F: Facts>(book: &Book<F>, world: &World) -> Vec<(Origin, Vec<Json>)> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let all = book.lock();
    let differing = all.iter().filter_map(|(name, facts)| {
        let entries = facts.wanted(name, world, &now)?;
        (!same(&entries, facts.ours())).then(|| (name.clone(), entries))
    });
    differing.collect()
}

fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value.get(key).and_then(Json::as_str).unwrap_or_default()
}

/// A condition, which keeps the time of the one before where the status is the same.
fn condition(kind: &str, verdict: Verdict, generation: i64, before: Option<&Json>, now: &str) -> Json {
    let Verdict { holds, reason, mut message } = verdict;
    let mut end = MAX_MESSAGE.min(message.len());
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    let status = if holds { "True" } else { "False" };
    let since =
        before.filter(|before| text(before, "status") == status).map(|before| text(before, "lastTransitionTime"));
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "observedGeneration": generation, "lastTransitionTime": since.unwrap_or(now),
    })
}

/// True where nothing but times differs.
fn same(wanted: &[Json], there: &[Json]) -> bool {
    timeless(wanted) == timeless(there)
}

fn timeless(entries: &[Json]) -> Vec<Json> {
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        let conditions = entry.get_mut("conditions").and_then(Json::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            without_time(condition);
        }
        without_time(entry);
    }
    entries
}

fn without_time(condition: &mut Json) {
    if let Some(fields) = condition.as_object_mut() {
        fields.remove("lastTransitionTime");
    }
}

/// Writes our entries over the version that is there now; `false` where it should be tried again.
async fn write<F: Facts>(client: &Client, origin: &Origin, book: &Book<F>, entries: Vec<Json>) -> bool {
    let Origin { kind, name } = origin;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, &F::resource(kind));
    let result = async {
        let Some(current) = api.get_opt(&name.name).await? else { return Ok(()) };
        let generation = book.lock().get(origin).map(F::generation);
        if current.metadata.generation != generation {
            return Ok(()); // the news of another generation is on its way
        }
        let all = current.data.pointer(&format!("/status/{}", F::LIST)).and_then(Json::as_array);
        let others = all.into_iter().flatten().filter(|entry| !F::is_ours(entry)).cloned();
        let patch = json!({
            "metadata": {"resourceVersion": current.metadata.resource_version},
            "status": {F::LIST: others.chain(entries).collect::<Vec<_>>()},
        });
        let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        api.patch_status(&name.name, &parameters, &Patch::Merge(&patch)).await.map(|_| ())
    };
    match result.await {
        Ok(()) => true,
        Err(error) if matches!(code(&error), 404) => true,
        Err(error) if matches!(code(&error), 409) => false,
        Err(error) => {
            tracing::warn!(object = %origin, reason = explain(&error), "the status can not be written; trying again");
            false
        }
    }
}
