//! One pod in, one patch out.

use json_patch::Patch;
use serde_json::Value;
use weir_mesh::{PodSettings, names};

use crate::{
    appcalls,
    edit::{Editor, get},
    nameservers,
    parts::{self, ForPod},
    prestop, qos,
    refusal::{Reason, Refusal},
    resources, scrape,
    settings::{Redirect, Settings},
    user::{Container, List, UserPod, Wish},
};

/// Namespaces of the cluster itself, never injected: a webhook that is down must not keep the cluster from starting.
const CLUSTER_NAMESPACES: [&str; 2] = ["kube-system", "kube-node-lease"];
/// Containers of other meshes.
const OTHER_MESHES: [&str; 4] = ["istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane"];
/// Where every container finds its service account's token; the API server mounts it into ours as well.
const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why a pod is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// The pod's label says so.
    #[error("its label weir.dev/inject is false")]
    Label,
    /// In the node's network, in a labelled namespace.
    #[error("it uses the node's network (hostNetwork)")]
    HostNetwork,
    /// A Windows pod, in a labelled namespace.
    #[error("it is a Windows pod")]
    Windows,
    /// The mirror of a static pod.
    #[error("it mirrors a static pod, which the API can not change")]
    Mirror,
    /// A namespace of the cluster or of Weir itself.
    #[error("its namespace is one of the cluster's or the mesh's own")]
    Namespace,
}

/// What became of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The proxy was added.
    Injected,
    /// The proxy was there, and something of it was missing or wrong.
    Repaired,
    /// The proxy was there, and all is as it should be.
    Unchanged,
    /// Left as it is.
    Skipped(Skip),
}

/// The answer for a pod that is not refused.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What to change; empty where nothing is.
    pub patch: Patch,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What became of the pod.
    pub verdict: Verdict,
}

impl Outcome {
    fn skipped(skip: Skip, warn: bool) -> Self {
        let warnings = if warn { vec![format!("the pod is not in the mesh: {skip}")] } else { Vec::new() };
        Self { patch: Patch::default(), warnings, verdict: Verdict::Skipped(skip) }
    }
}

/// Says what to change in a pod, or a pod template, that the API server's selectors have chosen.
///
/// `namespace` is where the pod will be (its own `metadata.namespace` may be empty); an empty one is not known.
///
/// # Errors
/// All reasons why the pod can not be in the mesh as it is.
pub fn inject_pod(settings: &Settings, pod: &Value, namespace: &str) -> Result<Outcome, Refusal> {
    let user = UserPod::read(pod)?;
    let wish = user.wish()?;
    if let Some(outcome) = skip(settings, &user, wish, namespace)? {
        return Ok(outcome);
    }

    let mut reasons = Vec::new();
    let mut warnings = other_meshes(&user);
    let own = own_containers(settings, &user, &mut reasons);
    let own_names: Vec<&str> = own.iter().map(|container| container.name).collect();
    reasons.extend(reserved_volumes(&user));
    // What has taken the place of ours is said to, and not what else is wrong with it.
    let replaced = !reasons.is_empty();
    reasons.extend(user.clashes(&[names::PROXY_CONTAINER, names::INIT_CONTAINER]));
    let of_user = user.annotations().filter(|(name, _)| *name != parts::ROOTS_ANNOTATION);
    let mut pod_settings = PodSettings::from_annotations(of_user).unwrap_or_else(|errors| {
        reasons.extend(errors.into_iter().map(Reason::Annotation));
        PodSettings::default()
    });
    if pod_settings.capture.block_udp {
        pod_settings.capture.name_servers = nameservers::of_pod(pod, &settings.cluster_dns);
    }

    let mut editor = Editor::new(pod.clone());
    let proxy_now = own.iter().find(|container| container.name == names::PROXY_CONTAINER);
    let known = proxy_now.map(|proxy| appcalls::known(proxy.raw)).unwrap_or_default();
    let excluded = &pod_settings.capture.exclude_inbound_ports;
    let calls = appcalls::rewrite(&user, &mut editor, &own_names, excluded, &known, &mut warnings, &mut reasons)?;

    if replaced {
        reasons.retain(|reason| !matches!(reason, Reason::LostCall(_)));
    }

    let class =
        qos::class(pod, user.containers.iter().filter(|c| c.list != List::Ephemeral && !own_names.contains(&c.name)));
    let proxy_resources = resources::proxy(class, &pod_settings, &mut warnings, &mut reasons);
    Refusal::unless_empty(reasons)?;

    prestop::pause(settings.pre_stop_seconds, &user, &mut editor)?;
    let proxy_raw = proxy_now.map(|proxy| proxy.raw);
    let app_metrics = scrape::rewrite(&user, &mut editor, proxy_raw, excluded, &mut warnings)?;
    let of = ForPod {
        settings,
        pod: &pod_settings,
        calls: &calls,
        drain_seconds: drain_seconds(settings, &pod_settings, &user, &mut warnings),
        app_metrics,
    };
    warnings.extend(proxy_now.and_then(damage));
    let wanted = parts::init_containers(settings.redirect);
    for (index, name) in wanted.iter().enumerate() {
        let mut container = match *name {
            names::INIT_CONTAINER => parts::init_container(&of, resources::init(class)),
            _ => parts::proxy_container(&of, proxy_resources.clone()),
        };
        if let Some(now) = own.iter().find(|now| now.name == *name) {
            let resources_said = *name == names::PROXY_CONTAINER && resources::said(&pod_settings);
            tolerate(&mut container, now.raw, resources_said);
        }
        place(&mut editor, index, name, container)?;
    }
    if settings.redirect == Redirect::Cni && own_names.contains(&names::INIT_CONTAINER) {
        remove_container(&mut editor, names::INIT_CONTAINER)?;
    }
    let volumes = [parts::token_volume(), parts::root_volume(settings.roots.as_deref())];
    for (name, volume) in [names::TOKEN_VOLUME, names::ROOT_VOLUME].into_iter().zip(volumes) {
        match user.volume(name) {
            Some((index, _)) => editor.set(&["spec", "volumes", &index.to_string()], volume)?,
            None => editor.append(&["spec", "volumes"], volume)?,
        }
    }
    let annotate =
        |editor: &mut Editor, name, text: String| editor.set(&["metadata", "annotations", name], text.into());
    annotate(&mut editor, names::CAPTURE_ANNOTATION, pod_settings.capture.to_json())?;
    annotate(&mut editor, names::STATUS_ANNOTATION, parts::status(&of, wanted))?;
    match &settings.roots {
        Some(roots) => annotate(&mut editor, parts::ROOTS_ANNOTATION, roots.clone())?,
        None => editor.remove(&["metadata", "annotations", parts::ROOTS_ANNOTATION])?,
    }

    let verdict = match (proxy_now, editor.is_changed()) {
        (None, _) => Verdict::Injected,
        (Some(_), true) => Verdict::Repaired,
        (Some(_), false) => Verdict::Unchanged,
    };
    Ok(Outcome { patch: editor.finish(), warnings, verdict })
}

/// Checks containers that are added to a running pod of the mesh (`kubectl debug`): they are captured like all others, unless
/// they run as the proxy's user.
///
/// # Errors
/// All reasons why the pod can not have these containers.
pub(crate) fn check_ephemeral(pod: &Value) -> Result<(), Refusal> {
    let user = UserPod::read(pod)?;
    let ours = |c: &Container<'_>| c.list == List::Init && c.name == names::PROXY_CONTAINER;
    if !user.containers.iter().any(ours) {
        return Ok(());
    }
    Refusal::unless_empty(user.clashes(&[names::PROXY_CONTAINER, names::INIT_CONTAINER]))
}

fn skip(settings: &Settings, user: &UserPod<'_>, wish: Wish, namespace: &str) -> Result<Option<Outcome>, Reason> {
    let explicit = wish == Wish::Yes;
    let skipped = |skip, warn| Ok(Some(Outcome::skipped(skip, warn)));
    if wish == Wish::No {
        skipped(Skip::Label, false)
    } else if CLUSTER_NAMESPACES.contains(&namespace) || namespace == settings.system_namespace {
        skipped(Skip::Namespace, explicit)
    } else if user.mirror() {
        skipped(Skip::Mirror, explicit)
    } else if user.windows() {
        if explicit { Err(Reason::Windows) } else { skipped(Skip::Windows, false) }
    } else if user.host_network() {
        if explicit { Err(Reason::HostNetwork) } else { skipped(Skip::HostNetwork, true) }
    } else {
        Ok(None)
    }
}

fn other_meshes(user: &UserPod<'_>) -> Vec<String> {
    let found = user.containers.iter().filter(|container| OTHER_MESHES.contains(&container.name));
    found
        .map(|c| format!("container {} looks like the proxy of another mesh: a pod can be in one mesh only", c.name))
        .collect()
}

/// The containers with our names. Those that are not ours are reasons to refuse.
fn own_containers<'a>(settings: &Settings, user: &UserPod<'a>, reasons: &mut Vec<Reason>) -> Vec<Container<'a>> {
    let mut own: Vec<Container<'a>> = Vec::new();
    for container in &user.containers {
        let ours = match container.name {
            names::PROXY_CONTAINER => container.is_ours(&settings.proxy_image, parts::PROXY_BINARY),
            names::INIT_CONTAINER => container.is_ours(&settings.init_image, parts::INIT_BINARY),
            _ => continue,
        };
        if ours && !own.iter().any(|other| other.name == container.name) {
            own.push(*container);
        } else {
            let name = format!("{} (name of {})", container.name, container.path());
            reasons.push(Reason::ReservedName(name));
        }
    }
    own
}

fn reserved_volumes(user: &UserPod<'_>) -> Vec<Reason> {
    let reserved = |name: &'static str, ours: fn(&Value) -> bool| {
        let (index, volume) = user.volume(name)?;
        (!ours(volume)).then(|| Reason::ReservedName(format!("{name} (name of spec.volumes[{index}])")))
    };
    let token = |volume: &Value| {
        get(volume, &["projected", "sources", "0", "serviceAccountToken", "audience"]).and_then(Value::as_str)
            == Some(names::TOKEN_AUDIENCE)
    };
    let root = |volume: &Value| {
        [&["configMap", "name"][..], &["projected", "sources", "1", "configMap", "name"]]
            .iter()
            .any(|path| get(volume, path).and_then(Value::as_str) == Some(names::ROOT_CONFIG_MAP))
    };
    [reserved(names::TOKEN_VOLUME, token), reserved(names::ROOT_VOLUME, root)].into_iter().flatten().collect()
}

/// What others may have added to our container, and keep: environment that is not ours (some webhooks add it everywhere; the
/// proxy reads none of it), the service account's token, which the API server mounts into every container, and resources,
/// which a LimitRange or an autoscaler sets, unless the pod's annotations say what they are.
fn tolerate(container: &mut Value, now: &Value, resources_said: bool) {
    let resources = now.get("resources").filter(|now| now.is_object() && !resources_said);
    if let (Some(object), Some(resources)) = (container.as_object_mut(), resources) {
        object.insert("resources".into(), resources.clone());
    }
    let list = |key: &str| now.get(key).and_then(Value::as_array).into_iter().flatten();
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let env: Vec<Value> = list("env").filter(|entry| !text(entry, "name").starts_with("WEIR_")).cloned().collect();
    let mounts: Vec<Value> =
        list("volumeMounts").filter(|mount| text(mount, "mountPath") == ACCOUNT_DIR).cloned().collect();
    for (key, kept) in [("env", env), ("volumeMounts", mounts)] {
        if kept.is_empty() {
            continue;
        }
        if let Some(object) = container.as_object_mut()
            && let Value::Array(ours) = object.entry(key).or_insert_with(|| Value::Array(Vec::new()))
        {
            ours.extend(kept);
        }
    }
}

/// Damage that another webhook does, named, because the pod would hang without a hint if it happened after us.
fn damage(proxy: &Container<'_>) -> Option<String> {
    if proxy.keeps_running() {
        return None;
    }
    Some(
        "container weir-proxy had lost restartPolicy: Always, which is repaired; a webhook built for Kubernetes before 1.29 \
         drops it: upgrade that webhook"
            .into(),
    )
}

/// Makes the init container at `index` be this one, wherever one of its name is now.
fn place(editor: &mut Editor, index: usize, name: &str, container: Value) -> Result<(), Refusal> {
    const LIST: [&str; 2] = ["spec", "initContainers"];
    let at = index.to_string();
    match position(editor, name) {
        Some(now) if now == index => editor.set(&[&LIST[..], &[at.as_str()]].concat(), container),
        Some(_) => {
            remove_container(editor, name)?;
            editor.insert(&LIST, index, container)
        }
        None => editor.insert(&LIST, index, container),
    }
}

fn remove_container(editor: &mut Editor, name: &str) -> Result<(), Refusal> {
    match position(editor, name) {
        Some(now) => editor.remove(&["spec", "initContainers", &now.to_string()]),
        None => Ok(()),
    }
}

fn position(editor: &Editor, name: &str) -> Option<usize> {
    let list = editor.get(&["spec", "initContainers"])?.as_array()?;
    list.iter().position(|container| container.get("name").and_then(Value::as_str) == Some(name))
}

/// How long open connections get: never longer than the pod itself.
fn drain_seconds(settings: &Settings, pod: &PodSettings, user: &UserPod<'_>, warnings: &mut Vec<String>) -> u32 {
    let grace = user.grace_seconds();
    match pod.drain_seconds {
        Some(drain) if drain > grace => {
            warnings.push(format!(
                "weir.dev/drain-seconds is {drain}, but the pod is killed after terminationGracePeriodSeconds, {grace}"
            ));
            drain
        }
        Some(drain) => drain,
        None => settings.drain_seconds.min(grace),
    }
}
