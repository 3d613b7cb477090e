//! The status of routes, written by the leader: for each Service that a route names, whether the rules are accepted there and
//! whether what they name exists (Gateway API, "RouteParentStatus"). Other controllers' entries are left as they are.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value as Json, json};
use tokio::{
    sync::watch as state,
    time::{Instant, sleep, sleep_until},
};
use weir_config::model::{Name, Origin};

use super::{
    MANAGER,
    backoff::Backoff,
    code, explain,
    kinds::{self, CONTROLLER, RouteBook, RouteFacts},
};
use crate::{
    catalog::Catalog,
    verdict::{Verdict, accepted, resolved},
    world::World,
};

/// What changes together is written together.
const QUIET: Duration = Duration::from_millis(100);
/// Everything is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(300);
/// Longest message of a condition (the API allows 32 KiB; nobody reads so much).
const MAX_MESSAGE: usize = 1024;

/// Writes what differs, while this replica leads.
pub(super) async fn keep(
    client: Client,
    mut leads: state::Receiver<bool>,
    book: Arc<RouteBook>,
    catalog: Arc<Catalog>,
) {
    let mut routes = book.changes();
    let mut world = catalog.changes();
    let mut backoff = Backoff::default();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        routes.mark_unchanged();
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
            _ = routes.changed() => {}
            changed = world.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = sleep_until(again) => {}
        }
        sleep(QUIET).await;
    }
}

/// Routes whose status is not what it should be, with our entries as they should be.
fn wanted(book: &RouteBook, world: &World) -> Vec<(Origin, Vec<Json>)> {
    let routes = book.lock();
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    routes
        .iter()
        .filter_map(|(name, facts)| {
            let entries = entries(name, facts, world, &now)?;
            (!same(&entries, &facts.ours)).then(|| (name.clone(), entries))
        })
        .collect()
}

/// Our entries for a route; `None` where the world does not have it yet.
fn entries(name: &Origin, facts: &RouteFacts, world: &World, now: &str) -> Option<Vec<Json>> {
    let set = world.route(name);
    if facts.refused.is_empty() && !facts.parents.is_empty() && set.is_none() {
        return None;
    }
    let entry = |(reference, service, port): &(Json, Name, Option<i64>)| {
        let conditions = [
            ("Accepted", accepted(&facts.refused, set, world, service, *port)),
            ("ResolvedRefs", resolved(set, world)),
        ];
        let old = facts.ours.iter().find(|entry| entry.get("parentRef") == Some(reference));
        let conditions = conditions.into_iter().map(|(kind, Verdict { holds, reason, mut message })| {
            let status = if holds { "True" } else { "False" };
            let mut end = MAX_MESSAGE.min(message.len());
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            let before =
                old.and_then(|entry| entry.get("conditions")?.as_array()?.iter().find(|old| text(old, "type") == kind));
            let since = before
                .filter(|before| text(before, "status") == status)
                .map(|before| text(before, "lastTransitionTime"));
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "observedGeneration": facts.generation, "lastTransitionTime": since.unwrap_or(now),
            })
        });
        json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions.collect::<Vec<_>>()})
    };
    Some(facts.parents.iter().map(entry).collect())
}

fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value.get(key).and_then(Json::as_str).unwrap_or_default()
}

/// True where nothing but times differs.
fn same(wanted: &[Json], there: &[Json]) -> bool {
    let timeless = |entries: &[Json]| {
        let mut entries = entries.to_vec();
        for condition in entries.iter_mut().filter_map(|entry| entry.get_mut("conditions")?.as_array_mut()).flatten() {
            if let Some(fields) = condition.as_object_mut() {
                fields.remove("lastTransitionTime");
            }
        }
        entries
    };
    timeless(wanted) == timeless(there)
}

/// Writes our entries over the version that is there now; `false` where it should be tried again.
async fn write(client: &Client, origin: &Origin, book: &RouteBook, entries: Vec<Json>) -> bool {
    let Origin { kind, name } = origin;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, &kinds::gateway_api(kind));
    let result = async {
        let Some(current) = api.get_opt(&name.name).await? else { return Ok(()) };
        let generation = book.lock().get(origin).map(|facts| facts.generation);
        if current.metadata.generation != generation {
            return Ok(()); // the news of another generation is on its way
        }
        let parents = current.data.pointer("/status/parents").and_then(Json::as_array).cloned().unwrap_or_default();
        let others = parents.into_iter().filter(|entry| text(entry, "controllerName") != CONTROLLER);
        let parents: Vec<Json> = others.chain(entries).collect();
        let patch = json!({
            "metadata": {"resourceVersion": current.metadata.resource_version},
            "status": {"parents": parents},
        });
        let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        api.patch_status(&name.name, &parameters, &Patch::Merge(&patch)).await.map(|_| ())
    };
    match result.await {
        Ok(()) => true,
        Err(error) if matches!(code(&error), 404) => true,
        Err(error) if matches!(code(&error), 409) => false,
        Err(error) => {
            tracing::warn!(route = %origin, reason = explain(&error), "the status of a route can not be written; trying again");
            false
        }
    }
}
