//! The one background process that owns a sandbox: first process of a process namespace, in a network and a mount namespace of
//! its own. Whatever ends it ends all that it started, and the kernel takes network, rules and mounts back with it.

pub mod cluster;
pub mod control;
pub mod protocol;
mod refused;
pub mod system;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    api::load,
    layout::{Layout, node_addresses},
    net::{self, node},
};
use cluster::{Cluster, Settings};
pub(crate) use refused::refused;

/// Longest time that pods get when the whole sandbox ends.
const DOWN: Duration = Duration::from_secs(5);
/// Quiet time after a change in the folder before it is read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(30);

/// Why a supervisor could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The machine said no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// The machine does not offer what the sandbox needs.
    #[error("{0}")]
    Missing(String),
    /// The manifests are wrong.
    #[error(transparent)]
    Load(#[from] load::LoadError),
    /// A key or certificate could not be made.
    #[error("{0}")]
    Pki(String),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::Io { what, source }
}

/// What the supervisor is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folders.
    pub layout: Layout,
    /// The user's manifests.
    pub manifests: PathBuf,
    /// Weir's programs.
    pub bin_dir: PathBuf,
    /// Whether the mesh itself runs.
    pub mesh: bool,
    /// Whether there is IPv6.
    pub ipv6: bool,
}

/// Prepares this process, which is the first of its process namespace, before any thread exists.
///
/// # Errors
/// What the kernel said.
pub fn prepare(ipv6: bool) -> Result<(), ServeError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| refused("a mount namespace", error.into()))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|error| failed("private mounts")(error.into()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(|error| refused::proc(error.into()))?;
    node::set_up(ipv6).map_err(failed("network of the node"))?;
    net::services::try_out(ipv6).map_err(|error| {
        ServeError::Missing(format!(
            "nf_tables do not work here ({error}): the kernel needs CONFIG_NF_TABLES with NAT, or its modules loaded \
             (`modprobe -a nf_tables nft_chain_nat nft_redir nft_masq nft_numgen nft_reject_inet`)"
        ))
    })
}

/// Runs the sandbox until it is asked to end.
///
/// # Errors
/// Why it could not start.
pub async fn serve(options: Options) -> Result<(), ServeError> {
    let objects = load::load(&options.manifests, options.ipv6)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("signals"))?;
    let cluster = Cluster::new(Settings {
        layout: options.layout.clone(),
        bin_dir: options.bin_dir.clone(),
        mesh: options.mesh,
        ipv6: options.ipv6,
    })?;
    cluster.replace_user_objects(objects);
    for address in node_addresses(options.ipv6) {
        let zone = cluster.zone.clone();
        tokio::spawn(async move {
            if let Err(error) = zone.serve((address, 53).into()).await {
                tracing::error!(%error, %address, "cluster DNS");
            }
        });
    }
    let reconciler = tokio::spawn(cluster.clone().reconcile_forever());
    let listener = control::listen(&options.layout.socket()).map_err(failed("control socket"))?;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    control::serve(listener, cluster.clone(), stop);
    tokio::spawn(follow(options.manifests.clone(), options.ipv6, cluster.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    cluster.shut_down(DOWN).await;
    reconciler.abort();
    Ok(())
}

/// Follows edits of the user's folder.
async fn follow(path: PathBuf, ipv6: bool, cluster: Arc<Cluster>) {
    let about = format!("Folder {}", path.display());
    let folder = if path.is_dir() { path.clone() } else { path.parent().unwrap_or(Path::new("/")).to_path_buf() };
    let mut changes = match changes(&folder) {
        Ok(changes) => changes,
        Err(error) => {
            cluster.node.events.warning(&about, "NotFollowed", format!("edits are not seen: {error}"));
            return;
        }
    };
    while changes.recv().await.is_some() {
        while tokio::time::timeout(QUIET, changes.recv()).await.is_ok_and(|change| change.is_some()) {}
        match load::load(&path, ipv6) {
            Ok(objects) => {
                if cluster.replace_user_objects(objects) {
                    cluster.node.events.normal(&about, "Applied", "an edit was taken");
                }
            }
            Err(error) => {
                let said = format!("the edit is not taken, what was there goes on: {error}");
                cluster.node.events.warning(&about, "NotApplied", said);
            }
        }
    }
}

/// A message for every change in a folder.
fn changes(folder: &Path) -> io::Result<tokio::sync::mpsc::Receiver<()>> {
    use inotify::{Inotify, WatchMask};
    let mut inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(folder, mask)?;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    std::thread::Builder::new().name("edits".into()).spawn(move || {
        let mut buffer = [0; 4096];
        while inotify.read_events_blocking(&mut buffer).is_ok() {
            // One message that waits stands for all changes until it is taken.
            if let Err(tokio::sync::mpsc::error::TrySendError::Closed(())) = send.try_send(()) {
                return;
            }
        }
    })?;
    Ok(receive)
}
