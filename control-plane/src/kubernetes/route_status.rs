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
use weir_config::model::{Name, Origin, RouteSet, ServicePort, Target};

use super::{
    MANAGER,
    backoff::Backoff,
    code, explain,
    kinds::{self, CONTROLLER, RouteBook, RouteFacts},
};
use crate::{catalog::Catalog, world::World};

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
        let conditions =
            [("Accepted", accepted(facts, set, world, service, *port)), ("ResolvedRefs", resolved(set, world))];
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

/// What a condition says.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes(reason: &'static str, message: &str) -> Self {
        Self { holds: true, reason, message: message.into() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }
}

fn accepted(facts: &RouteFacts, set: Option<&RouteSet>, world: &World, name: &Name, port: Option<i64>) -> Verdict {
    if !facts.refused.is_empty() {
        let lines: Vec<String> = facts.refused.iter().map(|(field, message)| format!("{field}: {message}")).collect();
        return Verdict::no("UnsupportedValue", lines.join("; "));
    }
    let Some(service) = world.service(name) else {
        return Verdict::no("NoMatchingParent", format!("there is no Service {name}"));
    };
    let number = port.and_then(|port| u16::try_from(port).ok());
    let ports: Vec<&ServicePort> =
        service.ports.iter().filter(|known| port.is_none() || Some(known.number) == number).collect();
    let asked = port.map_or_else(|| "TCP port".into(), |port| format!("TCP port {port}"));
    if ports.is_empty() {
        return Verdict::no("NoMatchingParent", format!("Service {name} has no {asked}"));
    }
    let Some(set) = set else { return Verdict::yes("Accepted", "the rules are in force") };
    let level = set.rules.level();
    let suiting = |port: &&&ServicePort| level.suits(world.service_protocol(service, port));
    if ports.iter().filter(suiting).count() == 0 {
        let speaks = if level.is_of_requests() { "speaks HTTP" } else { "speaks something else than HTTP" };
        let message =
            format!("no {asked} of Service {name} {speaks} by its name or appProtocol: the rules have no effect on it");
        return Verdict::no("UnsupportedProtocol", message);
    }
    let caller = set.audience(name).map(|namespace| &**namespace);
    let mut preferred = None;
    for port in ports.iter().filter(suiting) {
        match world.routes_of(service, port, caller).first().copied() {
            Some(first) if first.rules.level() != level => preferred = Some((first, port.number)),
            _ => return Verdict::yes("Accepted", "the rules are in force"),
        }
    }
    match preferred {
        Some((other, port)) => Verdict::no(
            "Conflicted",
            format!(
                "port {port} of Service {name} has rules of {}, which goes before {}",
                other.origin, set.origin.kind
            ),
        ),
        None => Verdict::yes("Accepted", "the rules are in force"),
    }
}

fn resolved(set: Option<&RouteSet>, world: &World) -> Verdict {
    let Some(set) = set else {
        return Verdict::yes("ResolvedRefs", "the rules are not accepted, so nothing that they name is looked for");
    };
    let effect = |field| match (field, set.rules.level().is_of_requests()) {
        ("filters", _) => "nobody gets the copy",
        (_, true) => "its share is answered with 500",
        (_, false) => "its share is refused",
    };
    for (_, field, target) in set.rules.targets() {
        if let Some(foreign) = &target.foreign {
            return Verdict::no("InvalidKind", format!("{foreign} is no Service: {}", effect(field)));
        }
        let Target { service, port, .. } = target;
        if !world.is_permitted(set, target) {
            let message = format!("no ReferenceGrant of its namespace allows Service {service}: {}", effect(field));
            return Verdict::no("RefNotPermitted", message);
        }
        if world.target(set, target).is_none() {
            let message = format!("there is no Service {service} with TCP port {port}: {}", effect(field));
            return Verdict::no("BackendNotFound", message);
        }
    }
    Verdict::yes("ResolvedRefs", "everything that the rules name is there")
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
