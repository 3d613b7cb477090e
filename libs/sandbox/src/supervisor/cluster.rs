//! The objects of the cluster and the one loop that makes the machine follow them.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use super::{
    ServeError, failed,
    protocol::{PodView, ServiceView, Status},
    system,
};
use crate::{
    api::{
        admission::Admission,
        defaults,
        deployments::{self, Have},
        families::{self, Family},
        load::{self, Key, Objects},
        selector::Labels,
        services::{self, Addresses, Backend, Candidate},
        tokens::TokenIssuer,
    },
    cni::Chain,
    dns::{Table, Zone, service_name},
    events::Events,
    images::Images,
    layout::{Layout, write_atomic},
    net,
    pod::{Node, Owner, Pod, lifecycle, state::Phase},
};

/// Changes that come within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(2);
/// How often all is looked at when nothing seems to change.
const AT_LEAST: Duration = Duration::from_secs(1);
/// How often the control plane's root certificates are looked for.
const ROOTS: Duration = Duration::from_millis(50);

/// What a cluster is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folders.
    pub layout: Layout,
    /// Weir's programs.
    pub bin_dir: PathBuf,
    /// Whether the mesh itself runs.
    pub mesh: bool,
    /// Whether there is IPv6.
    pub ipv6: bool,
}

/// The cluster.
pub struct Cluster {
    /// What pods need.
    pub node: Arc<Node>,
    /// The DNS zone.
    pub zone: Zone,
    settings: Settings,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    user: BTreeMap<Key, Value>,
    system: BTreeMap<Key, Value>,
    addresses: Addresses,
    pods: BTreeMap<String, Arc<Pod>>,
    /// Content of the files of the cluster folder.
    written: HashMap<PathBuf, Vec<u8>>,
    /// The translation rules in force.
    rules: String,
    roots: Option<String>,
    stopping: bool,
    status: Status,
}

impl Cluster {
    /// A cluster without the user's objects.
    ///
    /// # Errors
    /// Where keys or files can not be made.
    pub fn new(settings: Settings) -> Result<Arc<Self>, ServeError> {
        let layout = &settings.layout;
        let tokens = TokenIssuer::new().map_err(|error| ServeError::Pki(error.to_string()))?;
        let admission = Admission::default();
        let mut inner = Inner::default();
        if settings.mesh {
            let installed = system::install(layout, &tokens, &mut inner.addresses, settings.ipv6)?;
            inner.system = installed.objects;
            admission.set_webhooks(installed.webhooks);
        }
        let weir = std::env::current_exe().map_err(failed("own executable"))?;
        let node = Node {
            layout: layout.clone(),
            weir,
            images: Images::new(&settings.bin_dir),
            ipv6: settings.ipv6,
            chain: Chain::new(layout, &settings.bin_dir, settings.mesh, settings.ipv6),
            tokens,
            admission,
            events: Events::new(&layout.events()),
            changed: Notify::new(),
            config_maps: Mutex::default(),
            published: watch::Sender::new(0),
        };
        Ok(Arc::new(Self { node: Arc::new(node), zone: Zone::default(), settings, inner: Mutex::new(inner) }))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the user's objects. True where something differs.
    pub fn replace_user_objects(&self, objects: Objects) -> bool {
        let raw: BTreeMap<Key, Value> =
            objects.into_iter().map(|(key, manifest)| (key, load::raw(&manifest))).collect();
        let mut inner = self.inner();
        let differs = inner.user != raw;
        inner.user = raw;
        drop(inner);
        self.node.changed.notify_one();
        differs
    }

    /// Makes the machine follow the objects, for as long as it is polled.
    pub async fn reconcile_forever(self: Arc<Self>) {
        let roots = tokio::spawn(self.clone().follow_roots());
        loop {
            let _ = tokio::time::timeout(AT_LEAST, self.node.changed.notified()).await;
            tokio::time::sleep(TOGETHER).await;
            let cluster = self.clone();
            let done = tokio::task::spawn_blocking(move || cluster.reconcile()).await;
            match done {
                Ok(Ok(())) => {
                    self.node.published.send_modify(|count| *count = count.saturating_add(1));
                }
                Ok(Err(error)) => self.node.events.warning("Node weir-sandbox", "Failed", error.to_string()),
                Err(_) => break,
            }
        }
        roots.abort();
    }

    /// Hands the control plane's root certificates to every namespace as soon as they are there, and when they change.
    async fn follow_roots(self: Arc<Self>) {
        let path = self.settings.layout.ca().join(weir_mesh::names::ROOT_FILE);
        loop {
            let now = tokio::fs::read_to_string(&path).await.ok().filter(|text| !text.is_empty());
            if now.is_some() && self.take_roots(now) {
                self.node.changed.notify_one();
            }
            tokio::time::sleep(ROOTS).await;
        }
    }

    fn take_roots(&self, now: Option<String>) -> bool {
        let mut inner = self.inner();
        let differs = inner.roots != now;
        inner.roots = now;
        differs
    }

    fn reconcile(self: &Arc<Self>) -> io::Result<()> {
        let mut inner = self.inner();
        let objects = all_objects(&inner, self.settings.ipv6);
        self.tell_node(&objects);
        inner.pods.retain(|_, pod| pod.status().phase != Phase::Gone);
        if !inner.stopping {
            self.pods_follow(&mut inner, &objects);
        }
        let network = network(&mut inner, &objects, self.settings.ipv6);
        if network.script != inner.rules {
            net::services::apply(&network.script)?;
            inner.rules.clone_from(&network.script);
        }
        self.zone.replace(network.names);
        inner.status = status(&inner, &objects, &network.views);
        let mut files = network.objects;
        files.extend(objects.into_iter().filter(|(key, _)| !matches!(key.0.as_str(), "Service" | "Pod")));
        for pod in inner.pods.values() {
            if pod.status().phase != Phase::Admission {
                files.insert(("Pod".into(), pod.namespace.clone(), pod.name.clone()), pod.full_object());
            }
        }
        self.write(&mut inner, files)
    }

    fn tell_node(&self, objects: &BTreeMap<Key, Value>) {
        let mut maps = HashMap::new();
        let mut namespaces = HashMap::new();
        for ((kind, namespace, name), object) in objects {
            match kind.as_str() {
                "ConfigMap" => {
                    if let Ok(map) = serde_json::from_value::<ConfigMap>(object.clone()) {
                        maps.insert((namespace.clone(), name.clone()), map);
                    }
                }
                "Namespace" => {
                    namespaces.insert(name.clone(), labels(object));
                }
                _ => {}
            }
        }
        *self.node.config_maps.lock().unwrap_or_else(PoisonError::into_inner) = maps;
        self.node.admission.set_namespaces(namespaces);
    }

    fn pods_follow(self: &Arc<Self>, inner: &mut Inner, objects: &BTreeMap<Key, Value>) {
        let mut owners = Vec::new();
        for ((kind, namespace, name), object) in objects {
            if kind == "Deployment" {
                let wanted = deployments::wanted(namespace, name, object);
                let mine: Vec<Arc<Pod>> = inner
                    .pods
                    .values()
                    .filter(|pod| {
                        pod.namespace == *namespace && pod.owner.deployment.as_ref() == Some(name) && !pod.is_deleted()
                    })
                    .cloned()
                    .collect();
                let have: Vec<Have> = mine
                    .iter()
                    .map(|pod| {
                        let status = pod.status();
                        Have { current: pod.owner.hash == wanted.hash, ready: status.ready, created: status.created }
                    })
                    .collect();
                let step = deployments::step(&wanted, &have);
                for index in step.end {
                    if let Some(pod) = mine.get(index) {
                        self.node.events.normal(&pod.reference(), "Deleted", "no longer wanted by its Deployment");
                        pod.delete(None);
                    }
                }
                for _ in 0..step.create {
                    let (pod_name, object) = deployments::pod(&wanted);
                    let owner = Owner { deployment: Some(name.clone()), hash: wanted.hash.clone() };
                    self.start(inner, namespace, &pod_name, owner, object);
                }
                owners.push((namespace.clone(), name.clone()));
            }
            if kind == "Pod" {
                let hash: String = Sha256::digest(object.to_string()).iter().map(|b| format!("{b:02x}")).collect();
                let existing = inner.pods.values().find(|pod| pod.namespace == *namespace && pod.name == *name);
                match existing {
                    Some(pod) if pod.owner.hash != hash => pod.delete(None),
                    Some(_) => {}
                    None => {
                        let mut object = object.clone();
                        defaults::pod(&mut object);
                        self.start(inner, namespace, name, Owner { deployment: None, hash }, object);
                    }
                }
            }
        }
        for pod in inner.pods.values().filter(|pod| !pod.is_deleted()) {
            let wanted = match &pod.owner.deployment {
                Some(deployment) => owners.contains(&(pod.namespace.clone(), deployment.clone())),
                None => objects.contains_key(&("Pod".to_owned(), pod.namespace.clone(), pod.name.clone())),
            };
            if !wanted {
                pod.delete(None);
            }
        }
    }

    fn start(&self, inner: &mut Inner, namespace: &str, name: &str, owner: Owner, object: Value) {
        let pod = Arc::new(Pod::new(namespace, name, owner, object));
        inner.pods.insert(pod.uid.clone(), pod.clone());
        tokio::spawn(lifecycle::run(self.node.clone(), pod));
    }

    /// Writes every object that changed, one file each, and removes files of objects that are gone.
    fn write(&self, inner: &mut Inner, objects: BTreeMap<Key, Value>) -> io::Result<()> {
        let folder = self.settings.layout.cluster();
        let mut stale: Vec<PathBuf> = inner.written.keys().cloned().collect();
        for ((kind, namespace, name), object) in objects {
            let space = if namespace.is_empty() { String::new() } else { format!("{namespace}.") };
            let path = folder.join(format!("{}.{space}{name}.yaml", kind.to_lowercase()));
            stale.retain(|old| *old != path);
            // JSON is YAML, and the one form in which no text needs care.
            let mut text = serde_json::to_vec_pretty(&object)?;
            text.push(b'\n');
            if inner.written.get(&path) != Some(&text) {
                write_atomic(&path, &text)?;
                inner.written.insert(path, text);
            }
        }
        for path in stale {
            inner.written.remove(&path);
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    /// Everything there is.
    pub fn status(&self) -> Status {
        let inner = self.inner();
        let mut status = inner.status.clone();
        status.pods = pod_views(&inner);
        drop(inner);
        status.name = self.settings.layout.name().to_owned();
        status.events = self.node.events.all();
        status
    }

    /// A pod by `NAME`, `NAMESPACE/NAME`, or `deploy/NAME` and `NAMESPACE/deploy/NAME` (any running pod of the Deployment).
    ///
    /// # Errors
    /// A sentence that lists what there is.
    pub fn find(&self, wanted: &str) -> Result<Arc<Pod>, String> {
        let parts: Vec<&str> = wanted.split('/').collect();
        let (namespace, deployment, name) = match parts.as_slice() {
            [name] => (None, false, *name),
            ["deploy" | "deployment", name] => (None, true, *name),
            [namespace, name] => (Some(*namespace), false, *name),
            [namespace, "deploy" | "deployment", name] => (Some(*namespace), true, *name),
            _ => return Err(format!("{wanted:?} is not POD, NAMESPACE/POD, deploy/NAME or NAMESPACE/deploy/NAME")),
        };
        let inner = self.inner();
        let live = |pod: &&Arc<Pod>| !matches!(pod.status().phase, Phase::Gone | Phase::Admission);
        let mut found: Vec<&Arc<Pod>> = inner
            .pods
            .values()
            .filter(live)
            .filter(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace))
            .filter(|pod| match deployment {
                true => pod.owner.deployment.as_deref() == Some(name),
                false => pod.name == name,
            })
            .collect();
        found.sort_by_key(|pod| {
            let status = pod.status();
            (pod.is_deleted(), !status.ready, status.created, pod.name.clone())
        });
        let spaces: std::collections::BTreeSet<&str> = found.iter().map(|pod| pod.namespace.as_str()).collect();
        if spaces.len() > 1 {
            let spaces: Vec<&str> = spaces.into_iter().collect();
            return Err(format!("{name} is in several namespaces ({}): say NAMESPACE/…", spaces.join(", ")));
        }
        if let Some(pod) = found.first() {
            return Ok((*pod).clone());
        }
        let mut names: Vec<String> =
            inner.pods.values().filter(live).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
        names.sort();
        Err(format!("there is no pod {wanted}; there are {}", names.join(", ")))
    }

    /// Ends all pods, the mesh's own last.
    pub async fn shut_down(&self, limit: Duration) {
        let pods: Vec<Arc<Pod>> = {
            let mut inner = self.inner();
            inner.stopping = true;
            inner.pods.values().cloned().collect()
        };
        let half = limit / 2;
        for system in [false, true] {
            let group: Vec<&Arc<Pod>> =
                pods.iter().filter(|pod| (pod.namespace == weir_mesh::names::SYSTEM_NAMESPACE) == system).collect();
            for pod in &group {
                pod.delete(Some(half));
            }
            let all = async {
                for pod in &group {
                    pod.gone().await;
                }
            };
            let _ = tokio::time::timeout(limit, all).await;
        }
    }
}

fn labels(object: &Value) -> Labels {
    object
        .pointer("/metadata/labels")
        .and_then(|labels| serde_json::from_value(labels.clone()).ok())
        .unwrap_or_default()
}

/// The user's objects, the mesh's own, and what every cluster has.
fn all_objects(inner: &Inner, ipv6: bool) -> BTreeMap<Key, Value> {
    let key = |kind: &str, namespace: &str, name: &str| (kind.to_owned(), namespace.to_owned(), name.to_owned());
    let mut objects = inner.system.clone();
    objects.extend(inner.user.clone());
    for name in ["default", "kube-system"] {
        objects
            .entry(key("Namespace", "", name))
            .or_insert_with(|| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    objects.insert(key("Service", "kube-system", "kube-dns"), system::dns_service(ipv6));
    let namespaces: Vec<String> =
        objects.keys().filter(|(kind, ..)| kind == "Namespace").map(|(.., name)| name.clone()).collect();
    for name in namespaces {
        if let Some(metadata) = objects
            .get_mut(&key("Namespace", "", &name))
            .and_then(|object| object.get_mut("metadata"))
            .and_then(Value::as_object_mut)
        {
            let labels = metadata.entry("labels").or_insert_with(|| json!({}));
            if let Some(labels) = labels.as_object_mut() {
                labels.insert("kubernetes.io/metadata.name".into(), json!(name));
            }
        }
        objects.entry(key("ServiceAccount", &name, "default")).or_insert_with(|| {
            let metadata = json!({"name": "default", "namespace": name});
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        });
        if let Some(roots) = &inner.roots {
            let map = weir_mesh::names::ROOT_CONFIG_MAP;
            objects.insert(
                key("ConfigMap", &name, map),
                json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": map, "namespace": name},
                    "data": {weir_mesh::names::ROOT_FILE: roots},
                }),
            );
        }
    }
    objects
}

/// What follows from Services and pods.
#[derive(Default)]
struct Network {
    script: String,
    names: Table,
    objects: BTreeMap<Key, Value>,
    views: BTreeMap<String, ServiceView>,
}

fn network(inner: &mut Inner, objects: &BTreeMap<Key, Value>, ipv6: bool) -> Network {
    let candidates: Vec<Candidate> = inner.pods.values().filter_map(|pod| Candidate::of(pod, &pod.status())).collect();
    let mut network = Network::default();
    let mut rules = Vec::new();
    for ((kind, namespace, name), object) in objects {
        if kind != "Service" {
            continue;
        }
        // Manifests were read strictly before; only our own could fail here.
        let Ok(service) = serde_json::from_value::<Service>(object.clone()) else { continue };
        let spec = service.spec.clone().unwrap_or_default();
        let headless = spec.cluster_ip.as_deref() == Some("None");
        for named in spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip) {
            if let Ok(address) = named.parse() {
                inner.addresses.keep(namespace, name, address);
            }
        }
        let families = families::of(&spec, ipv6).unwrap_or_else(|_| vec![Family::V4]);
        let mut backends = services::backends(namespace, &service, &candidates);
        let dns = (namespace.as_str(), name.as_str()) == ("kube-system", "kube-dns");
        if dns {
            backends.push(system::dns_backend(ipv6));
        }
        let ready = backends.iter().filter(|backend| backend.ready);
        let own: Vec<IpAddr> = match headless {
            true => Vec::new(),
            false => families.iter().map(|family| inner.addresses.of(namespace, name, *family)).collect(),
        };
        let addresses = match headless {
            false => own.clone(),
            true => {
                let of_pod =
                    |backend: &Backend| families.iter().filter_map(|family| backend.address(*family)).collect();
                ready.clone().flat_map(|backend| -> Vec<IpAddr> { of_pod(backend) }).collect()
            }
        };
        network.names.insert(service_name(namespace, name), addresses);
        for address in &own {
            rules.extend(services::rules(&service, *address, &backends));
        }
        let texts = match headless {
            true => vec!["None".to_owned()],
            false => own.iter().map(ToString::to_string).collect(),
        };
        let ports = spec.ports.iter().flatten();
        network.views.insert(
            format!("{namespace}/{name}"),
            ServiceView {
                address: texts.join(","),
                ports: ports
                    .map(|port| match &port.name {
                        Some(name) => format!("{name}:{}", port.port),
                        None => port.port.to_string(),
                    })
                    .collect(),
                ready: ready.count(),
                all: backends.len(),
            },
        );
        let mut object = object.clone();
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("clusterIP".into(), json!(texts.first()));
            spec.insert("clusterIPs".into(), json!(texts));
            spec.insert("ipFamilies".into(), json!(families));
            let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
            spec.entry("ipFamilyPolicy").or_insert_with(|| json!(policy));
            spec.entry("type").or_insert_with(|| json!("ClusterIP"));
        }
        network.objects.insert(("Service".into(), namespace.clone(), name.clone()), object);
        let of_family = |family: &Family| services::slices(namespace, name, &service, &backends, *family);
        for slice in families.iter().flat_map(of_family) {
            let slice_name = slice.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            network.objects.insert(("EndpointSlice".into(), namespace.clone(), slice_name), slice);
        }
    }
    rules.sort();
    network.script = net::services::script(&rules, ipv6);
    network
}

fn pod_views(inner: &Inner) -> BTreeMap<String, PodView> {
    inner
        .pods
        .values()
        .map(|pod| {
            let annotations = pod
                .object()
                .pointer("/metadata/annotations")
                .and_then(|annotations| serde_json::from_value(annotations.clone()).ok())
                .unwrap_or_default();
            let view = PodView {
                status: pod.status(),
                labels: pod.labels(),
                annotations,
                deployment: pod.owner.deployment.clone(),
            };
            (format!("{}/{}", pod.namespace, pod.name), view)
        })
        .collect()
}

fn status(inner: &Inner, objects: &BTreeMap<Key, Value>, services: &BTreeMap<String, ServiceView>) -> Status {
    let mut status = Status { services: services.clone(), ready: !inner.user.is_empty(), ..Status::default() };
    for ((kind, namespace, name), object) in objects {
        if kind == "Deployment" {
            let wanted = deployments::wanted(namespace, name, object);
            let mine: Vec<&Arc<Pod>> = inner
                .pods
                .values()
                .filter(|pod| pod.namespace == *namespace && pod.owner.deployment.as_ref() == Some(name))
                .collect();
            let current: Vec<&&Arc<Pod>> =
                mine.iter().filter(|pod| pod.owner.hash == wanted.hash && !pod.is_deleted()).collect();
            let ready = current.iter().filter(|pod| pod.status().ready).count();
            status.ready &= mine.len() == wanted.replicas && ready == wanted.replicas;
            status.deployments.insert(format!("{namespace}/{name}"), (wanted.replicas, current.len(), ready));
        }
        if kind == "Pod" {
            let pod = inner.pods.values().find(|pod| pod.namespace == *namespace && pod.name == *name);
            let done = pod.is_some_and(|pod| {
                let status = pod.status();
                status.ready || status.phase == Phase::Succeeded
            });
            status.ready &= done;
        }
    }
    status
}
