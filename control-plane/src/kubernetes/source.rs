//! The API server as the source: a watch for each kind, one stream of batches.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, core::DynamicObject};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use weir_config::{
    gateway::{API_VERSION, REFERENCE_GRANT},
    model::Origin,
};

use super::{
    ended,
    kinds::{self, Kind, Read},
    status::{Books, policy::PolicyFacts},
    watch::{Event, Listener, What, follow},
};
use crate::{
    metrics::Metrics,
    source::{Batch, Change, ItemKind, ItemRef, Source},
};

/// Changes of all kinds that wait to become a batch.
const QUEUE: usize = 2048;
/// A kind that can not be read is said again after this time.
const REMIND: Duration = Duration::from_secs(60);

/// The API server as the source.
pub(crate) struct Kubernetes {
    client: Client,
    books: Books,
    metrics: Arc<Metrics>,
}

/// What a kind's watch says.
enum News {
    Change(Change),
    /// Everything of this kind was told.
    Listed(&'static str),
    /// This kind can not be read, and why.
    Failed(&'static str, String),
}

impl Kubernetes {
    pub(crate) fn new(client: Client, books: Books, metrics: Arc<Metrics>) -> Self {
        Self { client, books, metrics }
    }

    fn every<K>(
        &self,
        tasks: &mut JoinSet<()>,
        kinds: &mut HashSet<&'static str>,
        news: &mpsc::Sender<News>,
        label: &'static str,
    ) where
        K: Kind + Resource<DynamicType = ()>,
    {
        kinds.insert(label);
        let teller = Teller::new(label, K::ITEM, news.clone(), self.metrics.clone());
        tasks.spawn(follow(Api::<K>::all(self.client.clone()), What::default(), Reader { teller, read: K::read }));
    }

    /// Policies of a kind, by its name in the log and in the API.
    fn policies(
        &self,
        tasks: &mut JoinSet<()>,
        kinds: &mut HashSet<&'static str>,
        news: &mpsc::Sender<News>,
        (label, kind, item): (&'static str, &'static str, ItemKind),
        read: impl Fn(&DynamicObject) -> Read + Send + 'static,
    ) {
        kinds.insert(label);
        let (book, gone) = (self.books.policies.clone(), self.books.policies.clone());
        let teller = Teller::new(label, item, news.clone(), self.metrics.clone())
            .on_gone(move |reference| gone.set(&Origin { kind, name: reference.name.clone() }, None));
        let policies = Api::all_with(self.client.clone(), &kinds::policy(kind));
        let read = move |object: DynamicObject| {
            let read = read(&object);
            let facts = PolicyFacts::new(&object, read.problems());
            book.set(&Origin { kind, name: kinds::name(&object.metadata) }, Some(facts));
            read
        };
        tasks.spawn(follow(policies, What { optional: true, ..What::default() }, Reader { teller, read }));
    }
}

impl Source for Kubernetes {
    async fn run(self, batches: mpsc::Sender<Batch>) {
        let (sender, mut news) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let mut unread = HashSet::new();
        self.every::<Namespace>(&mut tasks, &mut unread, &sender, "Namespaces");
        self.every::<Node>(&mut tasks, &mut unread, &sender, "Nodes");
        self.every::<Service>(&mut tasks, &mut unread, &sender, "Services");
        self.every::<EndpointSlice>(&mut tasks, &mut unread, &sender, "EndpointSlices");
        unread.insert("Pods");
        let teller = Teller::new("Pods", ItemKind::Workload, sender.clone(), self.metrics.clone());
        let (events, tell) = ended::teller(self.client.clone());
        tasks.spawn(tell);
        let read = move |pod: Pod| {
            if let Some(event) = ended::event(&pod, Timestamp::now()) {
                let _ = events.try_send(event); // the reason stands in the pod's status as well
            }
            pod.read()
        };
        tasks.spawn(follow(Api::<Pod>::all(self.client.clone()), What::default(), Reader { teller, read }));
        for (label, kind) in kinds::ROUTES {
            unread.insert(label);
            let teller = Teller::new(label, ItemKind::Routes(kind), sender.clone(), self.metrics.clone());
            let routes: Api<DynamicObject> = Api::all_with(self.client.clone(), &kinds::gateway_api(kind));
            let (book, gone) = (self.books.routes.clone(), self.books.routes.clone());
            let teller =
                teller.on_gone(move |reference| gone.set(&Origin { kind, name: reference.name.clone() }, None));
            let read = move |object: DynamicObject| {
                let (facts, read) = kinds::route(kind, &object);
                book.set(&Origin { kind, name: kinds::name(&object.metadata) }, facts);
                read
            };
            tasks.spawn(follow(routes, What { optional: true, ..What::default() }, Reader { teller, read }));
        }
        unread.insert("ReferenceGrants");
        let teller = Teller::new("ReferenceGrants", ItemKind::Grant, sender.clone(), self.metrics.clone());
        let grants = Api::all_with(self.client.clone(), &kinds::gateway_api(REFERENCE_GRANT));
        let read = |object: DynamicObject| kinds::whole(&object, API_VERSION, REFERENCE_GRANT);
        tasks.spawn(follow(grants, What { optional: true, ..What::default() }, Reader { teller, read }));
        for (label, kind, group, version) in kinds::TRAFFIC {
            let api_version = format!("{group}/{version}");
            let read = move |object: &DynamicObject| kinds::whole(object, &api_version, kind);
            self.policies(&mut tasks, &mut unread, &sender, (label, kind, ItemKind::Traffic(kind)), read);
        }
        for (label, kind, item) in kinds::ACCESS_RULES {
            let read = move |object: &DynamicObject| kinds::access_rule(kind, object);
            self.policies(&mut tasks, &mut unread, &sender, (label, kind, item), read);
        }
        drop(sender);

        let mut synced = false;
        let mut held: Vec<(&'static str, String)> = Vec::new();
        let mut waiting = Vec::with_capacity(QUEUE);
        while news.recv_many(&mut waiting, QUEUE).await > 0 {
            let mut batch = Batch::with_capacity(waiting.len());
            let mut told = held.len();
            for news in waiting.drain(..) {
                match news {
                    News::Change(change) => batch.push(change),
                    News::Listed(kind) => {
                        unread.remove(kind);
                        held.retain(|(other, _)| *other != kind);
                    }
                    News::Failed(kind, reason) if unread.contains(kind) => {
                        held.retain(|(other, _)| *other != kind);
                        held.push((kind, reason));
                        told = usize::MAX;
                    }
                    // What is known stays, and is served.
                    News::Failed(..) => {}
                }
            }
            if !synced && unread.is_empty() {
                synced = true;
                tracing::info!("all kinds are read from the API server");
                batch.push(Change::Synced);
            } else if !synced && told != held.len() && !held.is_empty() {
                let lines = held.iter().map(|(kind, reason)| format!("{kind} can not be read: {reason}"));
                batch.push(Change::Held(lines.collect()));
            }
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return;
            }
        }
    }
}

/// Reads what a watch tells, and passes on what differs.
struct Reader<F> {
    teller: Teller,
    read: F,
}

impl<K, F> Listener<K> for Reader<F>
where
    K: Resource + Send,
    F: FnMut(K) -> Read + Send,
{
    async fn hear(&mut self, event: Event<K>) -> bool {
        let teller = &mut self.teller;
        match event {
            Event::Begin => teller.begin(),
            Event::There(object) => {
                let reference = kinds::reference(teller.item, object.meta());
                let read = (self.read)(object);
                teller.there(reference, read).await
            }
            Event::Gone(object) => {
                let reference = kinds::reference(teller.item, object.meta());
                drop(object);
                teller.gone(reference).await
            }
            Event::Complete => teller.complete().await,
            Event::Absent => teller.absent().await,
            Event::Failed(reason) => teller.failed(reason).await,
        }
    }
}

/// What was told of a kind.
struct Teller {
    kind: &'static str,
    item: ItemKind,
    news: mpsc::Sender<News>,
    metrics: Arc<Metrics>,
    /// Objects that the mesh has.
    known: HashSet<ItemRef>,
    /// Objects that are refused.
    refused: HashSet<ItemRef>,
    /// Objects that this reading has told, while it goes on.
    seen: Option<HashSet<ItemRef>>,
    /// Failures since it last went well, and when that was said.
    trouble: Option<Instant>,
    absent: bool,
    on_gone: Box<dyn Fn(&ItemRef) + Send + Sync>,
}

impl Teller {
    fn new(kind: &'static str, item: ItemKind, news: mpsc::Sender<News>, metrics: Arc<Metrics>) -> Self {
        let (known, refused) = (HashSet::new(), HashSet::new());
        let on_gone = Box::new(|_: &ItemRef| {});
        Self { kind, item, news, metrics, known, refused, seen: None, trouble: None, absent: false, on_gone }
    }

    fn on_gone(mut self, tell: impl Fn(&ItemRef) + Send + Sync + 'static) -> Self {
        self.on_gone = Box::new(tell);
        self
    }

    async fn send(&self, news: News) -> bool {
        self.news.send(news).await.is_ok()
    }

    fn begin(&mut self) -> bool {
        self.seen = Some(HashSet::new());
        true
    }

    async fn there(&mut self, reference: ItemRef, read: Read) -> bool {
        self.well();
        if let Some(seen) = &mut self.seen {
            seen.insert(reference.clone());
        }
        let place = || format!("{reference}");
        match read {
            Read::Item(item, problems) => {
                if let Some(problem) = problems.first() {
                    tracing::error!("{problem}: the rule is closed");
                }
                let had = if problems.is_empty() {
                    self.refused.remove(&reference)
                } else {
                    !self.refused.insert(reference.clone())
                };
                let told = !had && problems.is_empty();
                if !told && !self.send(News::Change(Change::Problems(place(), problems))).await {
                    return false;
                }
                self.known.insert(reference);
                self.send(News::Change(Change::Apply(*item))).await
            }
            Read::Nothing => self.forget(reference).await,
            Read::Refused(problems) => {
                if let Some(problem) = problems.first() {
                    tracing::error!("{problem}: it has no effect");
                }
                let place = place();
                self.refused.insert(reference.clone());
                let known = self.known.remove(&reference);
                (!known || self.send(News::Change(Change::Delete(reference))).await)
                    && self.send(News::Change(Change::Problems(place, problems))).await
            }
        }
    }

    async fn gone(&mut self, reference: ItemRef) -> bool {
        (self.on_gone)(&reference);
        self.forget(reference).await
    }

    async fn forget(&mut self, reference: ItemRef) -> bool {
        if self.refused.remove(&reference)
            && !self.send(News::Change(Change::Problems(format!("{reference}"), Vec::new()))).await
        {
            return false;
        }
        !self.known.remove(&reference) || self.send(News::Change(Change::Delete(reference))).await
    }

    async fn complete(&mut self) -> bool {
        self.well();
        if self.absent {
            self.absent = false;
            tracing::info!(kind = self.kind, "the API server has this kind now");
        }
        self.rest().await
    }

    /// What was not told again is gone; the kind is read.
    async fn rest(&mut self) -> bool {
        let seen = self.seen.take().unwrap_or_default();
        let missing: Vec<ItemRef> =
            self.known.iter().chain(&self.refused).filter(|known| !seen.contains(*known)).cloned().collect();
        for reference in missing {
            if !self.gone(reference).await {
                return false;
            }
        }
        self.send(News::Listed(self.kind)).await
    }

    async fn absent(&mut self) -> bool {
        if !self.absent {
            self.absent = true;
            tracing::warn!(
                kind = self.kind,
                "the API server does not have this kind: install its CustomResourceDefinition to use it; going on without"
            );
        }
        // Known ones are gone with their kind.
        self.seen = None;
        self.rest().await
    }

    async fn failed(&mut self, reason: String) -> bool {
        self.metrics.watch_failures.add(self.kind, 1);
        if self.trouble.is_none_or(|said| said.elapsed() >= REMIND) {
            self.trouble = Some(Instant::now());
            tracing::error!(
                kind = self.kind,
                reason,
                "can not be read from the API server; what is known stays, trying again"
            );
        }
        self.send(News::Failed(self.kind, reason)).await
    }

    fn well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(kind = self.kind, "read from the API server again");
        }
    }
}
