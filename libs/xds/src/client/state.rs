//! The client's side of delta xDS without I/O: what was asked for, what was told, and what to answer.

use std::collections::HashMap;

use super::{
    NameRef, Rejection,
    subscriptions::{Changes, Wanted},
};
use crate::{
    Kind, MAX_NAME_BYTES, Resource,
    wire::{DeltaRequest, DeltaResponse, Status},
};

/// Bytes of names and versions in one request; more go into further requests. Far below every server's limit.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// Rejections that are told to the control plane in one answer.
const MAX_TOLD_REJECTIONS: usize = 16;
/// gRPC's code for a refused resource.
const INVALID_ARGUMENT: i32 = 3;

/// What the control plane said of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// Nothing yet.
    Nothing,
    /// It does not exist.
    Absent,
    /// It exists, in this version.
    Version(String),
}

/// What is known of a name since this wish for it.
#[derive(Debug)]
struct Entry {
    wish: u64,
    told: Told,
}

#[derive(Debug, Default)]
pub(super) struct State {
    names: [HashMap<NameRef, Entry>; 4],
}

impl State {
    /// The first requests of a new stream: everything that is wanted, with the versions that are here. What is known to be
    /// absent is asked for again, since a server has no way to know that it was told.
    pub(super) fn reconnect(&mut self, wanted: Wanted) -> Vec<DeltaRequest> {
        let mut old = std::mem::take(&mut self.names);
        for ((kind, name), wish) in wanted {
            let old = old.get_mut(kind.index()).and_then(|names| names.remove(&name));
            let told = old.filter(|entry| entry.wish == wish).map_or(Told::Nothing, |entry| entry.told);
            self.of(kind).insert(name, Entry { wish, told });
        }
        let mut requests = Vec::new();
        for kind in Kind::ALL {
            let mut builder = Builder::new(kind, &mut requests);
            for (name, entry) in self.of(kind).iter() {
                let version = match &entry.told {
                    Told::Version(version) => Some(version.as_str()),
                    Told::Nothing | Told::Absent => None,
                };
                builder.subscribe(name, version);
            }
            builder.finish();
        }
        requests
    }

    /// Requests for changed wishes.
    pub(super) fn change(&mut self, changes: Changes) -> Vec<DeltaRequest> {
        let mut requests = Vec::new();
        for kind in Kind::ALL {
            let mut builder = Builder::new(kind, &mut requests);
            for (_, name, wish) in changes.iter().filter(|change| change.0 == kind) {
                let names = self.of(kind);
                match *wish {
                    None if names.remove(name).is_some() => builder.unsubscribe(name),
                    None => {}
                    Some(wish) if names.get(name).is_some_and(|entry| entry.wish == wish) => {}
                    Some(wish) => {
                        // Also for a name that the server believes to be asked for: it has to answer again.
                        names.insert(name.clone(), Entry { wish, told: Told::Nothing });
                        builder.subscribe(name, None);
                    }
                }
            }
            builder.finish();
        }
        requests
    }

    /// Takes a response and gives its answer. `apply` gets what is new.
    pub(super) fn response(
        &mut self,
        response: DeltaResponse,
        mut apply: impl FnMut(Kind, Vec<Resource>, Vec<String>) -> Vec<Rejection>,
    ) -> Option<DeltaRequest> {
        let DeltaResponse { resources, type_url, nonce, removed } = response;
        let Some(kind) = Kind::from_type_url(&type_url) else {
            tracing::warn!(%type_url, "the control plane sent a type that was not asked for");
            return Some(DeltaRequest {
                error: Some(Status { code: INVALID_ARGUMENT, message: "this type was not asked for".into() }),
                type_url,
                nonce,
                ..Default::default()
            });
        };
        let names = self.of(kind);
        let mut rejections = Vec::new();
        let mut added: Vec<Resource> = Vec::new();
        for resource in resources {
            let Some(entry) = names.get(resource.name.as_str()) else { continue }; // no longer wanted
            if entry.told == Told::Version(resource.version.clone()) && !resource.version.is_empty() {
                continue;
            }
            match resource.resource {
                Some(any) if any.type_url == type_url => {
                    added.push(Resource { name: resource.name, version: resource.version, body: any.value });
                }
                _ => rejections.push(Rejection { name: resource.name, reason: "has no content of its type".into() }),
            }
        }
        let mut gone = Vec::new();
        for name in removed {
            if let Some(entry) = names.get_mut(name.as_str())
                && entry.told != Told::Absent
            {
                entry.told = Told::Absent;
                gone.push(name);
            }
        }
        if !added.is_empty() || !gone.is_empty() {
            let versions: Vec<(String, String)> =
                added.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
            rejections.extend(apply(kind, added, gone));
            let names = self.of(kind);
            for (name, version) in versions {
                if !rejections.iter().any(|rejection| rejection.name == name)
                    && let Some(entry) = names.get_mut(name.as_str())
                {
                    entry.told = Told::Version(version);
                }
            }
        }
        let error = (!rejections.is_empty()).then(|| Status { code: INVALID_ARGUMENT, message: say(&rejections) });
        Some(DeltaRequest { type_url, nonce, error, ..Default::default() })
    }

    fn of(&mut self, kind: Kind) -> &mut HashMap<NameRef, Entry> {
        let [cluster, endpoints, listener, route] = &mut self.names;
        match kind {
            Kind::Cluster => cluster,
            Kind::Endpoints => endpoints,
            Kind::Listener => listener,
            Kind::Route => route,
        }
    }
}

fn say(rejections: &[Rejection]) -> String {
    let told: Vec<String> = rejections
        .iter()
        .take(MAX_TOLD_REJECTIONS)
        .map(|rejection| {
            let name: String = rejection.name.chars().take(MAX_NAME_BYTES).collect();
            format!("{name}: {}", rejection.reason)
        })
        .collect();
    let more = rejections.len().saturating_sub(told.len());
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{tail}", told.join("; "))
}

/// Puts names into as few requests as their size allows.
struct Builder<'a> {
    requests: &'a mut Vec<DeltaRequest>,
    request: DeltaRequest,
    bytes: usize,
}

impl<'a> Builder<'a> {
    fn new(kind: Kind, requests: &'a mut Vec<DeltaRequest>) -> Self {
        let request = DeltaRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        Self { requests, request, bytes: 0 }
    }

    fn subscribe(&mut self, name: &str, version: Option<&str>) {
        self.room(name.len() * 2 + version.map_or(0, str::len));
        self.request.subscribe.push(name.to_owned());
        if let Some(version) = version {
            self.request.initial_versions.insert(name.to_owned(), version.to_owned());
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        self.room(name.len());
        self.request.unsubscribe.push(name.to_owned());
    }

    fn room(&mut self, bytes: usize) {
        if self.bytes > 0 && self.bytes.saturating_add(bytes) > MAX_REQUEST_BYTES {
            let type_url = self.request.type_url.clone();
            let full = std::mem::replace(&mut self.request, DeltaRequest { type_url, ..Default::default() });
            self.requests.push(full);
            self.bytes = 0;
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// A request without names would be a wildcard subscription: it is never sent.
    fn finish(self) {
        if self.bytes > 0 {
            self.requests.push(self.request);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::{Any, WireResource};

    fn wanted(names: &[&str]) -> Wanted {
        names.iter().map(|&name| ((Kind::Cluster, name.into()), 1)).collect()
    }

    fn response(resources: &[(&str, &str)], removed: &[&str]) -> DeltaResponse {
        let type_url = Kind::Cluster.type_url();
        DeltaResponse {
            resources: resources
                .iter()
                .map(|(name, version)| WireResource {
                    version: (*version).into(),
                    resource: Some(Any { type_url: type_url.into(), value: Bytes::from_static(b"x") }),
                    name: (*name).into(),
                })
                .collect(),
            type_url: type_url.into(),
            nonce: "7".into(),
            removed: removed.iter().map(|&name| name.into()).collect(),
        }
    }

    #[test]
    fn nothing_wanted_sends_nothing() {
        assert!(State::default().reconnect(HashMap::new()).is_empty(), "an empty request asks for everything");
        assert!(State::default().change(vec![(Kind::Route, "a".into(), None)]).is_empty());
    }

    #[test]
    fn only_what_was_taken_is_told_on_reconnect() {
        let mut state = State::default();
        state.reconnect(wanted(&["a", "b", "c", "d"]));
        let answer = state
            .response(response(&[("a", "1"), ("b", "1"), ("zz", "1")], &["c", "zz"]), |_, added, removed| {
                let names: Vec<&str> = added.iter().map(|resource| resource.name.as_str()).collect();
                assert_eq!((names, removed), (vec!["a", "b"], vec!["c".to_owned()]), "what nobody wanted is left out");
                vec![Rejection { name: "b".into(), reason: "bad".into() }]
            })
            .unwrap();
        assert_eq!((answer.nonce.as_str(), answer.error.unwrap().message.as_str()), ("7", "b: bad"));

        let requests = state.reconnect(wanted(&["a", "b", "c", "d"]));
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].subscribe.len(), 4);
        assert_eq!(requests[0].initial_versions, HashMap::from([("a".into(), "1".into())]));
    }

    #[test]
    fn the_same_again_is_not_applied_again() {
        let mut state = State::default();
        state.reconnect(wanted(&["a", "c"]));
        let mut calls = 0;
        for _ in 0..3 {
            state.response(response(&[("a", "1")], &["c"]), |_, _, _| {
                calls += 1;
                vec![]
            });
        }
        assert_eq!(calls, 1);
        state.response(response(&[("a", "2")], &[]), |_, added, removed| {
            assert_eq!((added.len(), removed.len()), (1, 0));
            vec![]
        });
        state.response(response(&[("c", "1")], &[]), |_, added, _| {
            assert_eq!(added[0].name, "c", "unknown, then known");
            vec![]
        });
    }

    #[test]
    fn given_up_and_asked_for_again_is_answered_again() {
        let mut state = State::default();
        state.reconnect(wanted(&["a"]));
        let mut calls = 0;
        let mut answer = |state: &mut State| {
            state.response(response(&[("a", "1")], &[]), |_, _, _| {
                calls += 1;
                vec![]
            });
            calls
        };
        assert_eq!(answer(&mut state), 1);
        let requests = state.change(vec![(Kind::Cluster, "a".into(), Some(2))]);
        assert_eq!(requests[0].subscribe, ["a"]);
        assert_eq!(answer(&mut state), 2);
        let requests = state.reconnect(HashMap::from([((Kind::Cluster, "a".into()), 3)]));
        assert!(requests[0].initial_versions.is_empty(), "given up and asked for again while there was no stream");
        assert_eq!(answer(&mut state), 3);
    }

    #[test]
    fn content_of_another_type_and_other_types_are_refused() {
        let mut state = State::default();
        state.reconnect(wanted(&["a"]));
        let mut wrong = response(&[("a", "1")], &[]);
        wrong.resources[0].resource = Some(Any { type_url: "x".into(), value: Bytes::new() });
        let answer = state.response(wrong, |_, _, _| panic!("nothing to apply")).unwrap();
        assert!(answer.error.is_some());
        let answer = state.response(
            DeltaResponse { type_url: "x".into(), nonce: "1".into(), ..Default::default() },
            |_, _, _| panic!(),
        );
        assert!(answer.unwrap().error.is_some());
    }

    #[test]
    fn many_names_are_spread_over_requests() {
        let mut state = State::default();
        let names: Vec<String> = (0..20_000).map(|i| format!("{i}-{}", "n".repeat(120))).collect();
        let requests = state.reconnect(names.iter().map(|name| ((Kind::Cluster, name.as_str().into()), 1)).collect());
        assert!(requests.len() > 2);
        assert_eq!(requests.iter().map(|request| request.subscribe.len()).sum::<usize>(), 20_000);
        let changes = names.iter().map(|name| (Kind::Cluster, name.as_str().into(), None)).collect();
        let requests = state.change(changes);
        assert_eq!(requests.iter().map(|request| request.unsubscribe.len()).sum::<usize>(), 20_000);
    }
}
