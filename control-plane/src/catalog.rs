//! What is asked for, who asks for it, and what it is now.
//!
//! Only resources that somebody asks for exist. Each is encoded once and shared by all who asked; a change of the world
//! rebuilds the keys of the subjects that it touched, and wakes only the streams whose resource has really changed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};
use tonic::{Status, metadata::MetadataMap};
use weir_config::{Problem, model::Name};
use weir_xds::{
    Kind, Resource,
    server::{Event, Inbox},
    wire::Node,
};

use crate::{
    auth::{Caller, Callers, Refused},
    describe,
    metrics::Metrics,
    policy,
    source::{Batch, Change},
    translate::{self, Key, Mesh, Of, View, Views},
    world::{Subject, World},
};

/// How long a caller waits for the first reading of the source.
const SYNC_PATIENCE: Duration = Duration::from_secs(5);
/// How long a certificate waits for its pod to become known: a new pod's proxy may be faster than the news of the pod.
const POD_PATIENCE: Duration = Duration::from_secs(2);
/// Problems that are kept for people to look at.
const MAX_KEPT_PROBLEMS: usize = 1000;

/// How far the first reading of the source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Under way.
    Reading,
    /// Not done before these are mended or removed, one line each.
    Held(Vec<String>),
    /// Done: what is not known is not there.
    Done,
}

/// What is known of a caller's pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is there.
    Known,
    /// Another one of its name is there.
    Another,
    /// It is not there.
    Unknown,
}

/// Everything that is served.
#[derive(Debug)]
pub struct Catalog {
    mesh: Mesh,
    callers: Arc<Callers>,
    metrics: Arc<Metrics>,
    start: watch::Sender<Start>,
    /// Number of batches that were taken.
    batches: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    world: World,
    entries: HashMap<Key, Entry>,
    /// Keys by what they are about.
    about: HashMap<Subject, HashSet<Key>>,
    /// By place, such as a file.
    problems: HashMap<String, Vec<Problem>>,
    /// Rules that send to what is not there, with what they send to.
    dangling: HashMap<String, Vec<String>>,
    /// Access rules that are not accepted.
    refused: Vec<policy::Refused>,
}

/// A resource that somebody asks for, by what of its callers it depends on.
#[derive(Debug, Default)]
struct Entry {
    current: HashMap<View, Option<Arc<Resource>>>,
    watchers: HashMap<usize, Watcher>,
    /// Views of callers' pods that are not the common one.
    apart: HashMap<Name, View>,
}

#[derive(Debug)]
struct Watcher {
    inbox: Arc<Inbox>,
    pod: Name,
}

impl Entry {
    /// What a pod's callers get.
    fn seen_by(&self, pod: &Name) -> Option<&Arc<Resource>> {
        let common = View::default();
        self.current.get(self.apart.get(pod).unwrap_or(&common))?.as_ref()
    }
}

/// An inbox's identity.
fn id(inbox: &Arc<Inbox>) -> usize {
    Arc::as_ptr(inbox).addr()
}

impl Catalog {
    /// An empty catalog that answers nobody until the source is read.
    pub fn new(mesh: Mesh, callers: Arc<Callers>, metrics: Arc<Metrics>) -> Self {
        Self {
            mesh,
            callers,
            metrics,
            start: watch::Sender::new(Start::Reading),
            batches: watch::Sender::new(0),
            state: Mutex::default(),
        }
    }

    /// Access rules of this namespace are for the whole mesh; to be said before the first batch.
    pub fn set_root_namespace(&self, namespace: &str) {
        self.lock().world.policies_mut().set_root(namespace);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a translation would leave one entry old; everything else is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch of changes; they take effect at once.
    pub fn apply(&self, batch: Batch) {
        let begin = std::time::Instant::now();
        let mut started = None;
        let mut touched = HashSet::new();
        let mut state = self.lock();
        let changes = batch.len();
        for change in batch {
            match change {
                Change::Apply(item) => state.world.apply(item, &mut touched),
                Change::Delete(item) => state.world.delete(item, &mut touched),
                Change::Synced => {
                    started = Some(Start::Done);
                }
                Change::Held(places) => started = Some(Start::Held(places)),
                Change::Problems(place, problems) if problems.is_empty() => {
                    state.problems.remove(&place);
                }
                Change::Problems(place, problems) => {
                    if state.problems.len() < MAX_KEPT_PROBLEMS || state.problems.contains_key(&place) {
                        state.problems.insert(place, problems);
                    }
                }
            }
        }
        let (rebuilt, changed) = state.rebuild(&self.mesh, &touched);
        state.report(&touched);
        let refused = state.world.policies().refused();
        policy::report(&state.refused, &refused);
        self.metrics.refused_policies.set(refused.len());
        state.refused = refused;
        for (kind, count) in state.world.policies().counts() {
            self.metrics.objects.set(kind, count);
        }
        self.metrics.config_errors.set(state.problems.len() + state.dangling.len());
        for (kind, count) in state.world.counts() {
            self.metrics.objects.set(kind, count);
        }
        drop(state);
        // Told last: who waits for it finds everything in place.
        if let Some(start) = started {
            self.metrics.unread_files.set(if let Start::Held(places) = &start { places.len() } else { 0 });
            self.start.send_replace(start);
        }
        self.batches.send_modify(|batches| *batches = batches.wrapping_add(1));
        let elapsed = begin.elapsed();
        self.metrics.apply_seconds.observe(elapsed);
        if changes > 0 {
            tracing::debug!(changes, rebuilt, changed, elapsed_us = elapsed.as_micros(), "changes taken");
        }
    }

    /// How far the first reading of the source is.
    pub fn start(&self) -> Start {
        self.start.borrow().clone()
    }

    /// Waits until the source is read: "not known" must be true, so nobody is answered before.
    ///
    /// # Errors
    /// `UNAVAILABLE`, upon which callers keep what they have and come back: at once where a file holds it up.
    pub async fn ready(&self) -> Result<(), Status> {
        let mut start = self.start.subscribe();
        timeout(SYNC_PATIENCE, start.wait_for(|start| *start != Start::Reading)).await.map(|_| ()).ok();
        match self.start() {
            Start::Done => Ok(()),
            Start::Held(places) => Err(Status::unavailable(format!(
                "the control plane's source is not read whole since it started ({} files or kinds, such as a file that has \
                 not parsed): its log and /healthz name them",
                places.len()
            ))),
            Start::Reading => Err(Status::unavailable("the control plane still reads its source")),
        }
    }

    /// Says who calls, by its token and by what is known of its pod.
    ///
    /// # Errors
    /// The status for the caller.
    pub async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.verify(metadata).await?;
        match self.standing(&caller) {
            Standing::Another => Err(self.of_an_earlier_pod(&caller)),
            Standing::Known | Standing::Unknown => Ok(caller),
        }
    }

    /// The same where the pod must be known: for certificates, which outlive their request, and wherever all pods are known.
    /// The token of a pod that is gone is good until it expires. The news of a new pod may be slower than its proxy, so they
    /// are waited for.
    ///
    /// # Errors
    /// The status for the caller; `UNAVAILABLE` where it may ask again, as the source is not read or the pod not known yet.
    pub async fn known_caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        self.ready().await?;
        let caller = self.verify(metadata).await?;
        let mut batches = self.batches.subscribe();
        let known = async { while self.standing(&caller) != Standing::Known && batches.changed().await.is_ok() {} };
        timeout(POD_PATIENCE, known).await.ok();
        match self.standing(&caller) {
            Standing::Known => Ok(caller),
            Standing::Another => Err(self.of_an_earlier_pod(&caller)),
            Standing::Unknown => {
                self.metrics.refused_callers.add(1);
                tracing::warn!(pod = %caller.pod, uid = caller.uid, "a caller was refused: its token's pod is not known");
                Err(Status::unavailable(
                    "the token's pod is not known here: it is gone, or the news of it has not come yet",
                ))
            }
        }
    }

    async fn verify(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.callers.verify(metadata).await.inspect_err(|refused: &Refused| {
            self.metrics.refused_callers.add(1);
            tracing::warn!(%refused, "a caller was refused");
        })?;
        Ok(caller)
    }

    /// What is known of a caller's pod. A token outlives its pod; an address or name may belong to another by then.
    fn standing(&self, caller: &Caller) -> Standing {
        match self.lock().world.workload(&caller.pod) {
            None => Standing::Unknown,
            Some(pod) if !pod.uid.is_empty() && pod.uid != caller.uid => Standing::Another,
            Some(_) => Standing::Known,
        }
    }

    fn of_an_earlier_pod(&self, caller: &Caller) -> Status {
        self.metrics.refused_callers.add(1);
        tracing::warn!(pod = %caller.pod, token_uid = caller.uid, "a caller was refused: its token is of an earlier pod of this name");
        Status::unauthenticated(format!(
            "the token is of an earlier pod named {}, or the new pod is not known here yet",
            caller.pod
        ))
    }

    /// Looks at everything that is there.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&World) -> T) -> T {
        at(&self.lock().world)
    }

    /// Looks at everything that is there, and at what is refused and so is not.
    pub(crate) fn inspect<T>(&self, at: impl FnOnce(&Mesh, &World, &[describe::Refused]) -> T) -> T {
        let state = self.lock();
        let refused: Vec<describe::Refused> =
            state.problems.values().flatten().filter_map(describe::Refused::of).collect();
        at(&self.mesh, &state.world, &refused)
    }

    /// Tells when something may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.batches.subscribe()
    }

    /// What is wrong now, one line each.
    pub fn problems(&self) -> Vec<String> {
        let state = self.lock();
        let files = state.problems.values().flatten().map(ToString::to_string);
        let dangling =
            state.dangling.iter().flat_map(|(object, lines)| lines.iter().map(move |line| format!("{object}: {line}")));
        let refused = state.refused.iter().flat_map(|refused| {
            refused.reasons.iter().map(|reason| format!("{}: {reason}: {}", refused.object, refused.effect))
        });
        let mut lines: Vec<String> = files.chain(dangling).chain(refused).collect();
        lines.sort();
        lines
    }

    /// Names that are asked for now, with version and number of streams.
    pub fn asked(&self) -> Vec<(String, String, usize)> {
        let state = self.lock();
        let mut list: Vec<(String, String, usize)> = state
            .entries
            .iter()
            .map(|(key, entry)| {
                let whose = key.pod.as_ref().map(|pod| format!(" of {pod}")).unwrap_or_default();
                let mut versions: Vec<&str> =
                    entry.current.values().flatten().map(|resource| resource.version.as_str()).collect();
                versions.sort_unstable();
                let version = if versions.is_empty() { "unknown".to_owned() } else { versions.join("+") };
                (format!("{} {}{whose}", key.kind.as_str(), key.name), version, entry.watchers.len())
            })
            .collect();
        list.sort();
        list
    }
}

impl State {
    /// Rebuilds what is asked for and was touched; gives the numbers of keys rebuilt and changed.
    fn rebuild(&mut self, mesh: &Mesh, touched: &HashSet<Subject>) -> (usize, usize) {
        let (mut rebuilt, mut changed) = (0, 0);
        for key in touched.iter().filter_map(|subject| self.about.get(subject)).flatten() {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            rebuilt += 1;
            let Some(of) = Of::parse(mesh, key) else { continue };
            let views = Views::of(&self.world, key.kind, &of);
            let mut new: HashMap<View, Option<Arc<Resource>>> = HashMap::new();
            let mut apart = HashMap::new();
            let mut told = Vec::new();
            for watcher in entry.watchers.values() {
                let view = views.by(&watcher.pod);
                let build = || translate::resource(mesh, &self.world, key, &view).map(Arc::new);
                let resource = new.entry(view.clone()).or_insert_with(build);
                let version = |resource: Option<&Arc<Resource>>| resource.map(|resource| resource.version.clone());
                if version(resource.as_ref()) != version(entry.seen_by(&watcher.pod)) {
                    told.push(&watcher.inbox);
                }
                if view != View::default() {
                    apart.insert(watcher.pod.clone(), view);
                }
            }
            changed += usize::from(!told.is_empty());
            for inbox in told {
                inbox.changed([(key.kind, key.name.clone())]);
            }
            entry.current = new;
            entry.apart = apart;
        }
        (rebuilt, changed)
    }

    /// Says which rules send to what is not there, once when it begins and once when it ends.
    fn report(&mut self, touched: &HashSet<Subject>) {
        if !touched.iter().any(|subject| matches!(subject, Subject::Routes(_) | Subject::Service(_))) {
            return;
        }
        let mut dangling = HashMap::new();
        for set in self.world.routes() {
            let requests = set.rules.level().is_of_requests();
            let mut lines: Vec<String> = Vec::new();
            for parent in &set.parents {
                let service = self.world.service(&parent.service);
                if service.is_none_or(|service| parent.port.is_some_and(|port| service.port(port).is_none())) {
                    let port = parent.port.map(|port| format!(" with port {port}")).unwrap_or_default();
                    lines.push(format!(
                        "spec.parentRefs: there is no Service {}{port}: the rules have no effect",
                        parent.service
                    ));
                }
            }
            for (i, field, target) in set.rules.targets() {
                if self.world.target(set, target).is_none() {
                    let what = match (&target.foreign, self.world.is_permitted(set, target)) {
                        (Some(foreign), _) => format!("{foreign} is no Service"),
                        (None, false) => format!("no ReferenceGrant allows Service {}", target.service),
                        (None, true) => format!("there is no Service {} with port {}", target.service, target.port),
                    };
                    let effect = match (field, requests) {
                        ("filters", _) => "nobody gets the copy",
                        (_, true) => "its share is answered with 500",
                        (_, false) => "its share is refused",
                    };
                    lines.push(format!("spec.rules[{i}].{field}: {what}: {effect}"));
                }
            }
            if !lines.is_empty() {
                lines.dedup();
                dangling.insert(format!("{} {}", set.origin.kind, set.origin.name), lines);
            }
        }
        for (origin, line) in self.world.policies_of_nothing() {
            let lines: &mut Vec<String> = dangling.entry(format!("{} {}", origin.kind, origin.name)).or_default();
            lines.push(format!("spec: {line}"));
        }
        for (object, lines) in &dangling {
            if self.dangling.get(object) != Some(lines) {
                for line in lines {
                    tracing::error!(object, "{line}");
                }
            }
        }
        for object in self.dangling.keys().filter(|object| !dangling.contains_key(*object)) {
            tracing::info!(object, "everything that it names is there now");
        }
        self.dangling = dangling;
    }

    fn watch(&mut self, mesh: &Mesh, key: Key, inbox: &Arc<Inbox>, pod: &Name) {
        let Self { world, entries, about, .. } = self;
        let of = Of::parse(mesh, &key);
        let entry = entries.entry(key.clone()).or_insert_with(|| {
            if let Some(of) = &of {
                about.entry(of.subject(key.kind)).or_default().insert(key.clone());
            }
            Entry::default()
        });
        let view = of.map(|of| Views::of(world, key.kind, &of).by(pod)).unwrap_or_default();
        if view == View::default() {
            entry.apart.remove(pod);
        } else {
            entry.apart.insert(pod.clone(), view.clone());
        }
        let build = || translate::resource(mesh, world, &key, &view).map(Arc::new);
        entry.current.entry(view.clone()).or_insert_with(build);
        entry.watchers.insert(id(inbox), Watcher { inbox: inbox.clone(), pod: pod.clone() });
    }

    fn unwatch(&mut self, mesh: &Mesh, key: &Key, inbox: &Arc<Inbox>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.watchers.remove(&id(inbox));
        if !entry.watchers.is_empty() {
            return;
        }
        self.entries.remove(key);
        if let Some(subject) = Of::parse(mesh, key).map(|of| of.subject(key.kind))
            && let Some(keys) = self.about.get_mut(&subject)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.about.remove(&subject);
            }
        }
    }
}

impl weir_xds::server::Catalog for Catalog {
    type Caller = Caller;

    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = if self.callers.are_known() {
            self.known_caller(metadata).await?
        } else {
            self.ready().await?;
            self.caller(metadata).await?
        };
        self.metrics.streams.add(1);
        tracing::info!(pod = %caller.pod, identity = caller.identity.uri(), "proxy connected");
        Ok(caller)
    }

    fn admit(&self, caller: &Caller, node: &Node) -> Result<(), Status> {
        let own = crate::node_id(&caller.pod);
        if node.id == own {
            return Ok(());
        }
        self.metrics.refused_callers.add(1);
        let claimed: String = node.id.chars().take(256).collect();
        tracing::warn!(pod = %caller.pod, ?claimed, "a caller was refused: its token is of another pod than its node id");
        Err(Status::permission_denied(format!("the token is of pod {}: node.id must be {own}", caller.pod)))
    }

    fn valid_for(&self, caller: &Caller) -> Duration {
        caller.expires.duration_since(SystemTime::now()).unwrap_or_default()
    }

    fn subscribe(&self, caller: &Caller, inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]) {
        let mut state = self.lock();
        for name in names {
            state.watch(&self.mesh, Key::new(kind, name.clone(), &caller.pod), inbox, &caller.pod);
        }
        self.metrics.resources.set(state.entries.len());
    }

    fn unsubscribe(&self, caller: &Caller, inbox: &Arc<Inbox>, kind: Kind, names: &[Arc<str>]) {
        let mut state = self.lock();
        for name in names {
            state.unwatch(&self.mesh, &Key::new(kind, name.clone(), &caller.pod), inbox);
        }
        self.metrics.resources.set(state.entries.len());
    }

    fn lookup(&self, caller: &Caller, kind: Kind, name: &str) -> Option<Arc<Resource>> {
        self.lock().entries.get(&Key::new(kind, name.into(), &caller.pod))?.seen_by(&caller.pod).cloned()
    }

    fn close(&self, caller: &Caller, inbox: &Arc<Inbox>, names: Vec<(Kind, Arc<str>)>) {
        let mut state = self.lock();
        for (kind, name) in names {
            state.unwatch(&self.mesh, &Key::new(kind, name, &caller.pod), inbox);
        }
        self.metrics.resources.set(state.entries.len());
        drop(state);
        self.metrics.streams.subtract(1);
        tracing::info!(pod = %caller.pod, "proxy disconnected");
    }

    fn event(&self, caller: &Caller, event: Event<'_>) {
        match event {
            Event::Sent { kind, resources, removed, waited } => {
                self.metrics.pushes.add(kind.as_str(), 1);
                self.metrics.pushed_resources.add(kind.as_str(), resources + removed);
                self.metrics.push_seconds.observe(waited);
            }
            Event::Acked { after, .. } => self.metrics.ack_seconds.observe(after),
            Event::Nacked { kind, reason } => {
                self.metrics.nacks.add(kind.as_str(), 1);
                let reason: String = reason.chars().take(1024).collect();
                tracing::error!(pod = %caller.pod, kind = kind.as_str(), reason, "a proxy refused configuration and keeps what it had");
            }
            Event::Refused { kind, names } => {
                self.metrics.refused_names.add(names);
                tracing::warn!(pod = %caller.pod, kind = kind.as_str(), names, "a proxy asked for more names than are served to one");
            }
        }
    }
}
