//! The server's side of delta xDS for one stream, without I/O.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::Limits;
use crate::{
    Kind, MAX_NAME_BYTES, Resource,
    wire::{Any, DeltaRequest, DeltaResponse, WireResource},
};

/// What the client has of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    /// Nothing: it waits for an answer.
    Nothing,
    /// It knows that there is none.
    Absent,
    /// This version.
    Version(String),
}

#[derive(Debug)]
pub(super) struct Session {
    limits: Limits,
    names: [HashMap<Arc<str>, Sent>; 4],
    /// Names to look at, by kind.
    pending: [HashSet<Arc<str>>; 4],
    pending_since: Option<Instant>,
    unanswered: VecDeque<(u64, Instant)>,
    nonce: u64,
}

/// What a request asks of the catalog.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) subscribe: Vec<Arc<str>>,
    pub(super) unsubscribe: Vec<Arc<str>>,
    /// Names that are not taken.
    pub(super) refused: usize,
    /// Age of the response that is answered, if one is.
    pub(super) answered: Option<Duration>,
    /// Why it was refused, if it was.
    pub(super) error: Option<String>,
}

/// A response and how long its oldest change waited.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) kind: Kind,
    pub(super) response: DeltaResponse,
    pub(super) waited: Duration,
}

impl Session {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            names: Default::default(),
            pending: Default::default(),
            pending_since: None,
            unanswered: VecDeque::new(),
            nonce: 0,
        }
    }

    /// Takes a request of a known kind.
    pub(super) fn request(&mut self, kind: Kind, request: DeltaRequest) -> Wishes {
        let mut wishes = Wishes::default();
        if !request.nonce.is_empty() {
            let position = request
                .nonce
                .parse::<u64>()
                .ok()
                .and_then(|nonce| self.unanswered.iter().position(|(sent, _)| *sent == nonce));
            if let Some((_, at)) = position.and_then(|position| self.unanswered.remove(position)) {
                wishes.answered = Some(at.elapsed());
                wishes.error = request.error.map(|error| error.message);
            }
        }
        for name in request.unsubscribe {
            if let Some(names) = self.names.get_mut(kind.index())
                && let Some((name, _)) = names.remove_entry(name.as_str())
            {
                self.pending_of(kind).remove(&name);
                wishes.unsubscribe.push(name);
            }
        }
        let mut versions = request.initial_versions;
        for name in request.subscribe {
            // "*" is the wildcard, which is not served to streams that ask by name.
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name == "*" {
                wishes.refused += 1;
                continue;
            }
            let known = self.names_of(kind).contains_key(name.as_str());
            if !known && self.len() >= self.limits.names {
                wishes.refused += 1;
                continue;
            }
            let sent =
                versions.remove(&name).filter(|version| !version.is_empty()).map_or(Sent::Nothing, Sent::Version);
            let name: Arc<str> = name.into();
            self.names_of(kind).insert(name.clone(), sent);
            self.pending_of(kind).insert(name.clone());
            self.pending_since.get_or_insert_with(Instant::now);
            if !known {
                wishes.subscribe.push(name);
            }
        }
        wishes
    }

    /// Resources of these names may have changed.
    pub(super) fn changed(&mut self, names: HashSet<(Kind, Arc<str>)>, since: Option<Instant>) {
        for (kind, name) in names {
            if self.names_of(kind).contains_key(&name) {
                self.pending_of(kind).insert(name);
            }
        }
        self.pending_since = match (self.pending_since, since) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// True where there is something to look at and the client keeps up.
    pub(super) fn may_send(&self) -> bool {
        self.unanswered.len() < self.limits.unanswered && self.pending.iter().any(|names| !names.is_empty())
    }

    /// The next response, if what is pending has really changed.
    pub(super) fn next(&mut self, mut lookup: impl FnMut(Kind, &str) -> Option<Arc<Resource>>) -> Option<Outgoing> {
        for kind in Kind::ALL {
            let mut response = DeltaResponse { type_url: kind.type_url().to_owned(), ..Default::default() };
            let mut bytes = 0_usize;
            while response.resources.len() + response.removed.len() < self.limits.resources && bytes < self.limits.bytes
            {
                let Some(name) = self.pending_of(kind).iter().next().cloned() else { break };
                self.pending_of(kind).remove(&name);
                let Some(sent) = self.names_of(kind).get_mut(&name) else { continue };
                match lookup(kind, &name) {
                    Some(resource) => {
                        if *sent == Sent::Version(resource.version.clone()) {
                            continue;
                        }
                        *sent = Sent::Version(resource.version.clone());
                        bytes = bytes.saturating_add(resource.body.len()).saturating_add(name.len());
                        response.resources.push(wire(kind, &name, &resource));
                    }
                    None => {
                        if *sent == Sent::Absent {
                            continue;
                        }
                        *sent = Sent::Absent;
                        bytes = bytes.saturating_add(name.len());
                        response.removed.push(name.as_ref().to_owned());
                    }
                }
            }
            if response.resources.is_empty() && response.removed.is_empty() {
                continue;
            }
            self.nonce += 1;
            response.nonce = self.nonce.to_string();
            self.unanswered.push_back((self.nonce, Instant::now()));
            let waited = self.pending_since.map(|since| since.elapsed()).unwrap_or_default();
            self.settle();
            return Some(Outgoing { kind, response, waited });
        }
        self.settle();
        None
    }

    /// All names, at the end of the stream.
    pub(super) fn into_names(self) -> Vec<(Kind, Arc<str>)> {
        let kinds = Kind::ALL.into_iter().zip(self.names);
        kinds.flat_map(|(kind, names)| names.into_keys().map(move |name| (kind, name))).collect()
    }

    fn settle(&mut self) {
        if self.pending.iter().all(HashSet::is_empty) {
            self.pending_since = None;
        }
    }

    fn len(&self) -> usize {
        self.names.iter().map(HashMap::len).sum()
    }

    fn names_of(&mut self, kind: Kind) -> &mut HashMap<Arc<str>, Sent> {
        pick(&mut self.names, kind)
    }

    fn pending_of(&mut self, kind: Kind) -> &mut HashSet<Arc<str>> {
        pick(&mut self.pending, kind)
    }
}

fn pick<T>(all: &mut [T; 4], kind: Kind) -> &mut T {
    let [a, b, c, d] = all;
    match kind.index() {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    }
}

fn wire(kind: Kind, name: &str, resource: &Resource) -> WireResource {
    WireResource {
        version: resource.version.clone(),
        resource: Some(Any { type_url: kind.type_url().to_owned(), value: resource.body.clone() }),
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn ask(names: &[&str]) -> DeltaRequest {
        DeltaRequest { subscribe: names.iter().map(|&name| name.into()).collect(), ..Default::default() }
    }

    fn resource(version: &str) -> Option<Arc<Resource>> {
        Some(Arc::new(Resource { name: "a".into(), version: version.into(), body: Bytes::from_static(b"x") }))
    }

    #[test]
    fn answers_once_and_then_only_changes() {
        let mut session = Session::new(Limits::default());
        assert_eq!(session.request(Kind::Cluster, ask(&["a", "b"])).subscribe.len(), 2);
        let out = session.next(|_, name| if name == "a" { resource("1") } else { None }).unwrap();
        assert_eq!((out.response.resources.len(), out.response.removed.len()), (1, 1));
        assert!(!session.may_send());

        session.changed(HashSet::from([(Kind::Cluster, "a".into()), (Kind::Cluster, "b".into())]), None);
        assert!(
            session.next(|_, name| if name == "a" { resource("1") } else { None }).is_none(),
            "nothing has changed"
        );
        session.changed(HashSet::from([(Kind::Cluster, "b".into()), (Kind::Cluster, "other".into())]), None);
        let out = session.next(|_, _| resource("2")).unwrap();
        assert_eq!(out.response.resources.len(), 1, "unknown, then known; never what was not asked for");

        assert!(session.request(Kind::Cluster, ask(&["a"])).subscribe.is_empty());
        assert!(session.next(|_, _| resource("2")).is_some(), "asked for again is answered again");
    }

    #[test]
    fn a_version_that_the_client_has_is_not_sent() {
        let mut session = Session::new(Limits::default());
        let mut request = ask(&["a", "b"]);
        request.initial_versions = HashMap::from([("a".into(), "1".into()), ("b".into(), "1".into())]);
        session.request(Kind::Cluster, request);
        let out = session.next(|_, name| if name == "a" { resource("1") } else { None }).unwrap();
        assert_eq!(out.response.resources.len(), 0);
        assert_eq!(out.response.removed, ["b"], "removed while there was no stream");
    }

    #[test]
    fn a_client_that_does_not_answer_gets_no_more() {
        let mut session = Session::new(Limits { unanswered: 2, resources: 1, ..Limits::default() });
        session.request(Kind::Cluster, ask(&["a", "b", "c"]));
        assert!(session.next(|_, _| resource("1")).is_some());
        assert!(session.next(|_, _| resource("1")).is_some());
        assert!(!session.may_send());
        let wishes = session.request(Kind::Cluster, DeltaRequest { nonce: "1".into(), ..Default::default() });
        assert!(wishes.answered.is_some() && wishes.error.is_none());
        assert!(session.may_send());
        let wishes = session.request(Kind::Cluster, DeltaRequest { nonce: "1".into(), ..Default::default() });
        assert!(wishes.answered.is_none(), "a nonce is answered once");
    }

    #[test]
    fn names_are_bounded() {
        let mut session = Session::new(Limits { names: 2, ..Limits::default() });
        let long = "n".repeat(MAX_NAME_BYTES + 1);
        let wishes = session.request(Kind::Cluster, ask(&["", "*", &long, "a", "b", "c"]));
        assert_eq!((wishes.subscribe.len(), wishes.refused), (2, 4));
        let mut request = ask(&["c"]);
        request.unsubscribe = vec!["a".into()];
        assert_eq!(session.request(Kind::Cluster, request).subscribe.len(), 1);
        assert_eq!(session.into_names().len(), 2);
    }

    #[test]
    fn what_others_refer_to_is_sent_first() {
        let mut session = Session::new(Limits::default());
        for kind in [Kind::Route, Kind::Listener, Kind::Endpoints, Kind::Cluster] {
            session.request(kind, ask(&["a"]));
        }
        let order: Vec<Kind> = (0..4).filter_map(|_| session.next(|_, _| resource("1"))).map(|out| out.kind).collect();
        assert_eq!(order, Kind::ALL);
    }
}
