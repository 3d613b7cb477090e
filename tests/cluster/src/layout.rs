//! Where a cluster keeps its files, and how one can tell that it is still there.
//!
//! ```text
//! TMP/weir-cluster/ID/
//!     alive         locked (shared) by whoever starts or runs the cluster: nobody's lock means that only traces are left
//!     control       socket of the supervisor
//!     guard         process id of the guard
//!     attached      there if the cluster ends with the process that started it
//!     cluster.json  what the supervisor said when the cluster was ready
//!     kubeconfig    for the machine itself, through the supervisor's forwarder
//!     pki/ images/ logs/
//!     private/      a tmpfs that exists only inside the cluster: etcd's data, the nodes' writes
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// The folder of one cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// Held while a cluster is in use.
pub(crate) type Hold = Flock<File>;

impl Layout {
    /// The one in this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn all_in() -> PathBuf {
        std::env::temp_dir().join("weir-cluster")
    }

    /// Removes all files of a cluster that is gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Fails as long as there are others.
        let _ = fs::remove_dir(Self::all_in());
        Ok(())
    }

    /// Every cluster of this machine, also those of which only traces are left.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(Self::all_in()).into_iter().flatten().flatten();
        let named = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
        named.filter(|entry| entry.path().is_dir()).map(|entry| Self::at(entry.path())).collect()
    }

    /// A new folder, in use by the caller.
    pub(crate) fn create() -> io::Result<(Self, Hold)> {
        for attempt in 0..1000 {
            // It goes with the last cluster in it.
            fs::create_dir_all(Self::all_in())?;
            let name = format!("{}-{attempt}", std::process::id());
            let (unseen, root) = (Self::all_in().join(format!(".{name}")), Self::all_in().join(name));
            if root.exists() || DirBuilder::new().mode(0o700).create(&unseen).is_err() {
                continue;
            }
            // Under its name it is only ever seen with the lock held.
            let hold = Self::at(&unseen).hold()?;
            fs::rename(&unseen, &root)?;
            let layout = Self::at(root);
            for folder in [layout.pki(), layout.images(), layout.logs(), layout.private()] {
                fs::create_dir(folder)?;
            }
            return Ok((layout, hold));
        }
        Err(io::Error::other(format!("no folder can be made in {}", Self::all_in().display())))
    }

    /// Says that the cluster is in use for as long as the result lives.
    pub(crate) fn hold(&self) -> io::Result<Hold> {
        let file = OpenOptions::new().create(true).append(true).open(self.root.join("alive"))?;
        Flock::lock(file, FlockArg::LockShared).map_err(|(_, error)| error.into())
    }

    /// True if someone starts or runs it.
    pub fn is_alive(&self) -> bool {
        match File::open(self.root.join("alive")) {
            Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err(),
            Err(_) => false,
        }
    }

    /// True if it ends with the test that started it.
    pub fn is_attached(&self) -> bool {
        self.attached().exists()
    }

    pub(crate) fn set_attached(&self) -> io::Result<()> {
        fs::write(self.attached(), "")
    }

    pub(crate) fn attached(&self) -> PathBuf {
        self.root.join("attached")
    }

    /// What its control groups are called by, unique on the machine.
    pub(crate) fn id(&self) -> String {
        let name = self.root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!("weir-cluster-{name}")
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// For clients on the machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// What every program of the cluster wrote.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.root.join("control")
    }

    /// The guard's process id.
    pub(crate) fn guard(&self) -> PathBuf {
        self.root.join("guard")
    }

    pub(crate) fn ready(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn private(&self) -> PathBuf {
        self.root.join("private")
    }
}
