//! Pods' network namespaces by the names that the runtime notes. Such a note is not believed: the file must be a namespace, in
//! the folder of the pods' namespaces, and not the node's own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// A thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Which namespace it is: device and inode. A number is used again once its namespace is gone.
pub(super) type Id = (u64, u64);

/// A pod's namespace, held so that it can not become another while it is worked on.
#[derive(Debug)]
pub(super) struct Held {
    file: File,
    pub(super) id: Id,
}

impl Held {
    /// A name by which this process can open what it holds.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Why a noted namespace is not entered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It ended, or never was.
    #[error("it is not there")]
    Gone,
    #[error("it is in none of the folders of pods' namespaces ({0}); see --host-netns-dir")]
    Elsewhere(String),
    #[error(
        "it is not mounted here: where the agent runs in a container, the mount of the namespaces' folder needs the \
         propagation HostToContainer; on the node itself, restart the pod"
    )]
    NotMounted,
    #[error("it is no network namespace")]
    NoNamespace,
    #[error("it is the node's own")]
    Own,
    #[error("it can not be looked at: {0}")]
    Io(#[from] io::Error),
}

/// Opens the namespace that the runtime calls `noted`, as this process sees it.
pub(super) fn open(noted: &str, host_dirs: &[PathBuf], dir: &Path) -> Result<Held, Refused> {
    let name = host_dirs
        .iter()
        .find_map(|folder| Path::new(noted).strip_prefix(folder).ok())
        .and_then(|rest| {
            let mut parts = rest.components();
            match (parts.next(), parts.next()) {
                (Some(Component::Normal(name)), None) => Some(name),
                _ => None,
            }
        })
        .ok_or_else(|| {
            let all: Vec<_> = host_dirs.iter().map(|folder| folder.display().to_string()).collect();
            Refused::Elsewhere(all.join(", "))
        })?;
    // O_PATH opens nothing yet: neither a device nor a FIFO nor a link's target is touched by looking at it.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(dir.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Refused::Gone),
        Err(error) => return Err(error.into()),
    };
    if fstatfs(&file).map_err(io::Error::from)?.filesystem_type() != NSFS_MAGIC {
        // A name on which its namespace is to be mounted is an empty file.
        let bare = file.metadata().is_ok_and(|data| data.is_file() && data.len() == 0);
        return Err(if bare { Refused::NotMounted } else { Refused::NoNamespace });
    }
    let id = |data: fs::Metadata| (data.dev(), data.ino());
    let found = id(file.metadata()?);
    if found == id(fs::metadata(OWN)?) {
        return Err(Refused::Own);
    }
    Ok(Held { file, id: found })
}
