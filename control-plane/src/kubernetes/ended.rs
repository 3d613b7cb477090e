//! Says in a pod's events why its proxy has ended: `kubectl get events` shows no termination message, and the kubelet's own event says
//! only that a container is started again.
//!
//! Every replica says it, under a name that follows from what happened, so that it stands there once.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{ContainerStateTerminated, Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::mpsc;
use weir_mesh::names::PROXY_CONTAINER;

use super::{MANAGER, code, explain};

/// What waits to be said. More is not: the termination message has it all the same.
const QUEUE: usize = 256;
/// What is older was said by who was there.
const NEWS: Duration = Duration::from_secs(600);
/// The API's limit for a message, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Of a pod's name in an event's, in bytes: with the rest of it below the API's limit of 253.
const MAX_NAME: usize = 200;

/// Begins to say what is heard, until the sender is gone.
pub(super) fn teller(client: Client) -> (mpsc::Sender<Event>, impl Future<Output = ()>) {
    let (sender, mut events) = mpsc::channel::<Event>(QUEUE);
    let tell = async move {
        while let Some(event) = events.recv().await {
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => {}
                // It was said; or its namespace ends.
                Err(error) if matches!(code(&error), 404 | 409) => {}
                Err(error) => {
                    tracing::warn!(namespace, reason = explain(&error), "an event can not be written");
                }
            }
        }
    };
    (sender, tell)
}

/// The event for a pod whose proxy has ended a moment ago and has said why.
pub(super) fn event(pod: &Pod, now: Timestamp) -> Option<Event> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let statuses = pod.status.as_ref()?.init_container_statuses.as_deref().unwrap_or_default();
    let proxy = statuses.iter().find(|status| status.name == PROXY_CONTAINER)?;
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| state.as_ref()?.terminated.clone();
    let ended: ContainerStateTerminated = ended(&proxy.state).or_else(|| ended(&proxy.last_state))?;
    let why = ended.message.as_deref().map(str::trim).filter(|why| !why.is_empty())?;
    let at = ended.finished_at.as_ref()?;
    if now.as_second().saturating_sub(at.0.as_second()) > i64::try_from(NEWS.as_secs()).unwrap_or(i64::MAX) {
        return None;
    }
    let meta = &pod.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let uid = meta.uid.as_deref().unwrap_or_default();
    let own = format!("{}.{}.{:x}", cut(name, MAX_NAME), cut(uid, 8), at.0.as_second());
    let mut message = format!("the proxy has ended (exit code {}): {why}", ended.exit_code);
    message.truncate(cut(&message, MAX_MESSAGE).len());
    Some(Event {
        metadata: ObjectMeta { name: Some(own), namespace: meta.namespace.clone(), ..ObjectMeta::default() },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: Some(format!("spec.initContainers{{{PROXY_CONTAINER}}}")),
        },
        type_: Some("Warning".into()),
        reason: Some("ProxyEnded".into()),
        message: Some(message),
        source: Some(EventSource { component: Some(MANAGER.into()), host: None }),
        reporting_component: Some(MANAGER.into()),
        first_timestamp: Some(Time(at.0)),
        last_timestamp: Some(Time(at.0)),
        count: Some(1),
        ..Event::default()
    })
}

/// The beginning of a text, no longer than so many bytes.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ENDED: i64 = 1_700_000_000;

    fn said(statuses: Value, later: i64) -> Option<Event> {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "0123456789ab"},
            "status": {"initContainerStatuses": statuses},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        event(&pod, Timestamp::from_second(ENDED + later).unwrap())
    }

    fn ended(name: &str, message: &str) -> Value {
        let terminated = json!({"exitCode": 1, "message": message, "finishedAt": "2023-11-14T22:13:20Z"});
        json!([{"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"running": {}}, "lastState": {"terminated": terminated}}])
    }

    #[test]
    fn the_reason_of_a_proxy_that_has_ended_is_an_event_of_its_pod() {
        let event = said(ended("weir-proxy", "no redirect\n"), 5).unwrap();
        assert_eq!(event.metadata.name.as_deref(), Some("web.01234567.6553f100"), "the same whoever says it");
        assert_eq!(event.message.as_deref(), Some("the proxy has ended (exit code 1): no redirect"));
        assert_eq!((event.type_.as_deref(), event.involved_object.name.as_deref()), (Some("Warning"), Some("web")));
        let long = said(ended("weir-proxy", &"ö".repeat(4000)), 5).unwrap().message.unwrap();
        assert!(long.len() <= MAX_MESSAGE && long.ends_with('ö'));
    }

    #[test]
    fn what_is_old_or_says_nothing_or_is_of_others_is_no_event() {
        for (statuses, later) in [
            (ended("weir-proxy", ""), 5),
            (ended("app", "mine"), 5),
            (ended("weir-proxy", "long ago"), 3600),
            (json!([]), 5),
            (Value::Null, 5),
        ] {
            assert_eq!(said(statuses.clone(), later), None, "{statuses}");
        }
    }
}
