//! Where a sandbox keeps its files: one folder of its own, that `down` removes.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

/// Variable that moves the folder of all sandboxes.
pub const BASE_VARIABLE: &str = "WEIR_SANDBOX_DIR";
/// Folder of all sandboxes of root: gone at a reboot, as the sandboxes are.
pub const DEFAULT_BASE: &str = "/run/weir/sandbox";
/// Variable with the folder that a session keeps for an ordinary user, who has it alone.
const RUNTIME_VARIABLE: &str = "XDG_RUNTIME_DIR";
/// Longest name of a sandbox, in bytes: its control socket must fit into a socket address.
const MAX_NAME: usize = 32;

/// Pod addresses.
pub const POD_CIDR: &str = "198.18.0.0/16";
/// Service addresses.
pub const SERVICE_CIDR: &str = "198.19.0.0/16";
/// The node's own address: every pod's gateway.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Service address of the cluster DNS.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// Pod addresses of IPv6.
pub const POD_CIDR_V6: &str = "fd00:198:18::/112";
/// Service addresses of IPv6.
pub const SERVICE_CIDR_V6: &str = "fd00:198:19::/112";
/// The node's own address of IPv6.
pub const NODE_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, 1);
/// Service address of IPv6 of the cluster DNS.
pub const DNS_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x198, 0x19, 0, 0, 0, 0, 10);
/// Domain of the cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The node's addresses.
pub fn node_addresses(ipv6: bool) -> Vec<IpAddr> {
    let mut addresses = vec![NODE_ADDRESS.into()];
    addresses.extend(ipv6.then_some(IpAddr::from(NODE_ADDRESS_V6)));
    addresses
}

/// Why a name is not a sandbox's.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a name for a sandbox: use up to {MAX_NAME} lower-case letters, digits and '-'")]
pub struct NameError(String);

/// The folder of one sandbox.
#[derive(Debug, Clone)]
pub struct Layout {
    name: String,
    base: PathBuf,
}

impl Layout {
    /// The folder of the sandbox with this name.
    ///
    /// # Errors
    /// [`NameError`] for a name that could not be part of a path or an interface.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let ok = !name.is_empty()
            && name.len() <= MAX_NAME
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !ok {
            return Err(NameError(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), base: base() })
    }

    /// Names of the sandboxes that have a folder.
    pub fn all() -> Vec<String> {
        let Ok(entries) = fs::read_dir(base()) else { return Vec::new() };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Name of the sandbox.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of all sandboxes of this user.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Whether the folder is this user's: only then what its files say is to be believed. Root believes everybody.
    pub fn is_ours(&self) -> bool {
        let user = Uid::effective();
        user.is_root() || fs::symlink_metadata(self.root()).is_ok_and(|found| found.uid() == user.as_raw())
    }

    /// The folder itself.
    pub fn root(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    /// Who runs the sandbox: JSON of [`crate::launch::Owner`].
    pub fn owner(&self) -> PathBuf {
        self.root().join("supervisor.json")
    }

    /// Control socket of the supervisor.
    pub fn socket(&self) -> PathBuf {
        self.root().join("control.sock")
    }

    /// The supervisor's own log.
    pub fn supervisor_log(&self) -> PathBuf {
        self.root().join("supervisor.log")
    }

    /// What happened, one JSON object a line.
    pub fn events(&self) -> PathBuf {
        self.root().join("events.jsonl")
    }

    /// The copy of the user's manifests, of a sandbox that has one.
    pub fn manifests(&self) -> PathBuf {
        self.root().join("manifests")
    }

    /// Every object as an API server would hold it: the control plane's configuration folder.
    pub fn cluster(&self) -> PathBuf {
        self.root().join("cluster")
    }

    /// Network namespaces of the pods, mounted in the supervisor's mount namespace only.
    pub fn netns(&self) -> PathBuf {
        self.root().join("netns")
    }

    /// State of the CNI plugins and cached results.
    pub fn cni(&self) -> PathBuf {
        self.root().join("cni")
    }

    /// Keys and certificates that an installer would make.
    pub fn pki(&self) -> PathBuf {
        self.root().join("pki")
    }

    /// The control plane's certificate authority.
    pub fn ca(&self) -> PathBuf {
        self.root().join("ca")
    }

    /// Mount point under which each container builds its root, in a mount namespace of its own.
    pub fn rootfs(&self) -> PathBuf {
        self.root().join("rootfs")
    }

    /// Folder of one pod: volumes and the files that are mounted into its containers.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.root().join("pods").join(uid)
    }

    /// Folder of the logs of one pod.
    pub fn logs(&self, namespace: &str, pod: &str) -> PathBuf {
        self.root().join("logs").join(format!("{namespace}_{pod}"))
    }

    /// Log of one container.
    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.logs(namespace, pod).join(format!("{container}.log"))
    }

    /// Makes the folder, which must not exist: whoever makes it owns the name.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken. Any other leaves nothing.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.base)?;
        if let Some(parent) = self.base.parent().filter(|parent| **parent == in_temporary()) {
            keep_others_out(parent)?;
        }
        fs::create_dir(self.root())?;
        self.fill().inspect_err(|_| {
            let _ = self.remove();
        })
    }

    fn fill(&self) -> io::Result<()> {
        fs::set_permissions(self.root(), fs::Permissions::from_mode(0o700))?;
        for folder in [self.cluster(), self.netns(), self.cni(), self.pki(), self.ca(), self.rootfs()] {
            fs::create_dir(folder)?;
        }
        fs::create_dir(self.root().join("pods"))?;
        fs::create_dir(self.root().join("logs"))
    }

    /// Removes the folder, and nothing above it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn remove_folder(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.root()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the folder and, where they are empty then, the folders above it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_folder()?;
        // An empty parent is ours to remove; one that is not empty stays, and that is no error.
        if fs::remove_dir(&self.base).is_ok()
            && let Some(parent) = self.base.parent().filter(|_| self.base == default_base())
        {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Folder of all sandboxes of this user.
fn base() -> PathBuf {
    std::env::var_os(BASE_VARIABLE).map_or_else(default_base, PathBuf::from)
}

fn default_base() -> PathBuf {
    if Uid::effective().is_root() {
        return PathBuf::from(DEFAULT_BASE);
    }
    let session = std::env::var_os(RUNTIME_VARIABLE).map(PathBuf::from).filter(|folder| folder.is_absolute());
    session.map_or_else(in_temporary, |folder| folder.join("weir")).join("sandbox")
}

/// Where an ordinary user without a session keeps files that are gone at a reboot.
fn in_temporary() -> PathBuf {
    std::env::temp_dir().join(format!("weir-{}", Uid::effective()))
}

/// Anybody could have made a folder among the temporary files before us.
fn keep_others_out(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != Uid::effective().as_raw() {
        return Err(io::Error::other(format!("{} is another user's: set {RUNTIME_VARIABLE}", folder.display())));
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Writes a file so that no reader ever sees half of it.
///
/// # Errors
/// Whatever the file system says.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for bad in ["", "..", "a/b", "A", "-x", "a b", &"x".repeat(33)] {
            assert!(Layout::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Layout::new("demo-1").unwrap().name(), "demo-1");
    }
}
