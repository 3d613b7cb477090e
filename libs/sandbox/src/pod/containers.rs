//! One container of a pod: from its manifest to a process, started again as its policy says.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1 as core;
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::{Node, Pod, env, probes, state::ContainerState};
use crate::{
    images::ImageError,
    runtime::{
        caps,
        container::Container,
        logs::Log,
        spec::{ContainerSpec, Mount, ProcessSpec},
    },
};

/// First pause before a container is started again; doubled each time. Shorter than the kubelet's 10 s: who tries something
/// out on the own machine does not want to wait.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A container that ran this long starts without a pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// Most of a termination message that is kept, in bytes, as the kubelet does.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Why a container can not be started as it is written.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// Its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its environment.
    #[error(transparent)]
    Env(#[from] env::EnvError),
    /// Anything else in its manifest.
    #[error("{0}")]
    Invalid(String),
    /// The file system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An init container: runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: a native sidecar.
    Sidecar,
    /// An ordinary container.
    Main,
}

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// However it ended.
    Always,
    /// Where it ended badly.
    OnFailure,
    /// Never.
    Never,
}

/// A container and the task that keeps it.
pub struct Kept {
    /// Its manifest.
    pub manifest: core::Container,
    /// What it is.
    pub role: Role,
    restart: Restart,
    running: Mutex<Option<(Container, ProcessSpec)>>,
    stop: watch::Sender<bool>,
    ended: watch::Sender<Option<i32>>,
}

impl Kept {
    /// A container that is not started yet.
    pub fn new(manifest: core::Container, role: Role, restart: Restart) -> Arc<Self> {
        Arc::new(Self {
            manifest,
            role,
            restart,
            running: Mutex::new(None),
            stop: watch::Sender::new(false),
            ended: watch::Sender::new(None),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Whether it is in the list of init containers.
    pub fn is_init(&self) -> bool {
        self.role != Role::Main
    }

    /// The running container and how its program was started.
    pub fn running(&self) -> Option<(Container, ProcessSpec)> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        running.filter(|(container, _)| container.exited().is_none())
    }

    /// From now on it is not started again.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until it has ended for good; its exit code.
    pub async fn ended(&self) -> i32 {
        let mut ended = self.ended.subscribe();
        ended.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or_default()
    }

    /// Whether it has ended for good.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Starts the task that keeps it.
    pub fn keep(self: &Arc<Self>, node: &Arc<Node>, pod: &Arc<Pod>, volumes: &BTreeMap<String, PathBuf>) {
        let (kept, node, pod, volumes) = (self.clone(), node.clone(), pod.clone(), volumes.clone());
        tokio::spawn(async move {
            let code = run(&kept, &node, &pod, &volumes).await;
            pod.change_container(kept.name(), |status| {
                status.state = ContainerState::Ended(code);
                status.ready = false;
                status.started = false;
            });
            kept.ended.send_replace(Some(code));
        });
    }
}

async fn run(kept: &Arc<Kept>, node: &Arc<Node>, pod: &Arc<Pod>, volumes: &BTreeMap<String, PathBuf>) -> i32 {
    let mut stop = kept.stop.subscribe();
    let mut pause = FIRST_PAUSE;
    let about = format!("{} container {}", pod.reference(), kept.name());
    loop {
        if *stop.borrow() {
            return 0;
        }
        let started = Instant::now();
        let code = match start(kept, node, pod, volumes).await {
            Ok(container) => {
                let code = attend(kept, node, pod, &container).await;
                let message = termination_message(kept, node, pod, code);
                pod.change_container(kept.name(), |status| {
                    status.last_end = Some((code, message.clone()));
                    status.ready = false;
                    status.started = false;
                });
                let over = match kept.restart {
                    Restart::Always => false,
                    Restart::OnFailure => code == 0,
                    Restart::Never => true,
                };
                if over || *stop.borrow() {
                    return code;
                }
                let said = if message.is_empty() { String::new() } else { format!(": {message}") };
                node.events.warning(&about, "BackOff", format!("ended with exit code {code}{said}"));
                code
            }
            Err(error) => {
                let hopeless = !matches!(error, DescribeError::Env(_));
                node.events.warning(&about, "Failed", error.to_string());
                pod.change(|status| {
                    status.message = Some(format!("container {}: {error}", kept.name()));
                    status.hopeless |= hopeless;
                });
                1
            }
        };
        if started.elapsed() >= HEALTHY_AFTER {
            pause = FIRST_PAUSE;
        }
        let reason = format!("CrashLoopBackOff: ended with exit code {code}, starts again in {} s", pause.as_secs());
        pod.change_container(kept.name(), |status| status.state = ContainerState::Waiting(reason));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return code,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        pod.change_container(kept.name(), |status| status.restarts = status.restarts.saturating_add(1));
    }
}

async fn start(
    kept: &Kept,
    node: &Node,
    pod: &Pod,
    volumes: &BTreeMap<String, PathBuf>,
) -> Result<Container, DescribeError> {
    let spec = describe(kept, node, pod, volumes)?;
    let log = Log::open(node.layout.log(&pod.namespace, &pod.name, kept.name()))?;
    let netns = node.layout.netns().join(&pod.uid);
    let container = Container::start(&spec, &netns, log).await?;
    *kept.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((container.clone(), spec.process));
    pod.change_container(kept.name(), |status| status.state = ContainerState::Running);
    Ok(container)
}

/// Looks after a running container until it ends: hook, then probes.
async fn attend(kept: &Arc<Kept>, node: &Arc<Node>, pod: &Arc<Pod>, container: &Container) -> i32 {
    let about = format!("{} container {}", pod.reference(), kept.name());
    let care = async {
        let hook = kept.manifest.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        if let Some(hook) = hook
            && let Err(reason) = probes::hook(hook, kept, pod).await
        {
            node.events.warning(&about, "FailedPostStartHook", reason);
            kill(container, Duration::from_secs(2)).await;
            return;
        }
        if let Err(failed) = probes::watch(kept, node, pod).await {
            node.events.warning(&about, "Unhealthy", failed);
            kill(container, grace(pod)).await;
        }
    };
    tokio::select! {
        code = container.wait() => code,
        () = care => container.wait().await,
    }
}

/// The pod's grace period.
pub fn grace(pod: &Pod) -> Duration {
    let seconds = pod.object().pointer("/spec/terminationGracePeriodSeconds").and_then(serde_json::Value::as_u64);
    Duration::from_secs(seconds.unwrap_or(30))
}

/// Asks a container to end, and makes it end after `grace`.
pub async fn kill(container: &Container, grace: Duration) {
    container.signal(Signal::SIGTERM);
    if tokio::time::timeout(grace, container.wait()).await.is_err() {
        container.signal(Signal::SIGKILL);
        container.wait().await;
    }
}

fn termination_path(node: &Node, pod: &Pod, container: &str) -> PathBuf {
    node.layout.pod(&pod.uid).join(format!("termination-{container}"))
}

fn termination_message(kept: &Kept, node: &Node, pod: &Pod, code: i32) -> String {
    let bytes = fs::read(termination_path(node, pod, kept.name())).unwrap_or_default();
    let bytes = bytes.get(..MAX_TERMINATION_MESSAGE).unwrap_or(&bytes);
    let message = String::from_utf8_lossy(bytes).trim().to_owned();
    if message.is_empty() && code != 0 {
        let log = node.layout.log(&pod.namespace, &pod.name, kept.name());
        return crate::runtime::logs::tail(&log, 1);
    }
    message
}

/// What a container is on this machine.
fn describe(
    kept: &Kept,
    node: &Node,
    pod: &Pod,
    volumes: &BTreeMap<String, PathBuf>,
) -> Result<ContainerSpec, DescribeError> {
    let manifest = &kept.manifest;
    let typed = pod.typed().map_err(|error| DescribeError::Invalid(error.to_string()))?;
    let pod_spec = typed.spec.clone().unwrap_or_default();
    let image = node.images.resolve(manifest.image.as_deref().unwrap_or_default(), manifest.command.is_some())?;
    let pod_context = pod_spec.security_context.unwrap_or_default();
    let context = manifest.security_context.clone().unwrap_or_default();
    let id = |what: &str, id: Option<i64>| {
        u32::try_from(id.unwrap_or(0)).map_err(|_| DescribeError::Invalid(format!("{what} is out of range")))
    };
    let uid = id("runAsUser", context.run_as_user.or(pod_context.run_as_user))?;
    let gid = id("runAsGroup", context.run_as_group.or(pod_context.run_as_group))?;
    if uid == 0 && context.run_as_non_root.or(pod_context.run_as_non_root) == Some(true) {
        return Err(DescribeError::Invalid("runAsNonRoot is set, but no runAsUser other than 0".into()));
    }
    if context.privileged == Some(true) {
        return Err(DescribeError::Invalid("privileged containers are not run by the sandbox".into()));
    }
    let capabilities = context.capabilities.unwrap_or_default();
    let capabilities = caps::resolve(&capabilities.add.unwrap_or_default(), &capabilities.drop.unwrap_or_default())
        .map_err(|name| DescribeError::Invalid(format!("capability {name:?} is not known")))?;
    let namespace = pod.namespace.clone();
    let env = env::build(&typed, manifest, uid, &|name| node.config_map(&namespace, name))?;
    let expand = |list: &[String]| -> Vec<String> { list.iter().map(|text| env::expand(text, &env)).collect() };
    let mut argv = manifest.command.as_deref().map_or_else(|| image.entrypoint.clone(), expand);
    argv.extend(manifest.args.as_deref().map(expand).unwrap_or_default());
    let mut groups = Vec::new();
    for group in pod_context.supplemental_groups.iter().flatten().copied().chain(pod_context.fs_group) {
        groups.push(id("supplementalGroups", Some(group))?);
    }
    let folder = node.layout.pod(&pod.uid);
    let own = |name: &str, target: &str, read_only| Mount {
        source: folder.join(name),
        target: PathBuf::from(target),
        read_only,
    };
    let mut mounts = vec![
        own("hosts", "/etc/hosts", true),
        own("resolv.conf", "/etc/resolv.conf", true),
        own("hostname", "/etc/hostname", true),
    ];
    mounts.extend(image.mounts());
    let message = termination_path(node, pod, kept.name());
    fs::write(&message, "")?;
    fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    mounts.push(Mount {
        source: message,
        target: manifest.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into()).into(),
        read_only: false,
    });
    let writable = |name: &str| {
        pod_spec
            .volumes
            .iter()
            .flatten()
            .any(|volume| volume.name == name && (volume.empty_dir.is_some() || volume.host_path.is_some()))
    };
    for mount in manifest.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(mount, volumes, writable(&mount.name))?);
    }
    Ok(ContainerSpec {
        hostname: pod.name.chars().take(63).collect(),
        root: node.layout.rootfs(),
        weir: node.weir.clone(),
        mounts,
        read_only_root: context.read_only_root_filesystem == Some(true),
        process: ProcessSpec {
            argv,
            env,
            cwd: manifest.working_dir.clone().unwrap_or_else(|| "/".into()).into(),
            uid,
            gid,
            groups,
            capabilities,
            no_new_privileges: context.allow_privilege_escalation == Some(false),
        },
    })
}

fn volume_mount(
    mount: &core::VolumeMount,
    volumes: &BTreeMap<String, PathBuf>,
    writable: bool,
) -> Result<Mount, DescribeError> {
    let invalid = |reason: String| DescribeError::Invalid(format!("volumeMount {}: {reason}", mount.mount_path));
    let source = volumes.get(&mount.name).ok_or_else(|| invalid(format!("there is no volume {}", mount.name)))?;
    if mount.sub_path_expr.is_some() {
        return Err(invalid("subPathExpr is not offered".into()));
    }
    let mut source = source.clone();
    if let Some(sub) = mount.sub_path.as_deref().filter(|sub| !sub.is_empty()) {
        let sub = Path::new(sub);
        if sub.is_absolute() || sub.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(invalid(format!("subPath {} leaves the volume", sub.display())));
        }
        source.push(sub);
        if !source.exists() && writable {
            fs::create_dir_all(&source)?;
        }
        source = fs::canonicalize(&source).map_err(|error| invalid(format!("subPath {}: {error}", sub.display())))?;
    }
    let target = PathBuf::from(&mount.mount_path);
    if !target.is_absolute() {
        return Err(invalid("is not an absolute path".into()));
    }
    Ok(Mount { source, target, read_only: mount.read_only == Some(true) || !writable })
}
