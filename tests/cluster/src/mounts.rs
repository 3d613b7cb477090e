//! The files that the cluster's programs see: the machine's, with every write kept in a tmpfs that nobody outside ever sees.
//!
//! A node's /etc, /opt, /var/lib and /var/log are overlays and its /run is its own, so volumes of type hostPath, CNI plugins and
//! their configuration are the node's, and the machine keeps nothing of them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

/// Folders that a node writes to.
const OVERLAID: [&str; 4] = ["/etc", "/opt", "/var/lib", "/var/log"];
/// Folders of a node that must be no overlays: containers' own overlays lie in them.
const PLAIN: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];
/// Debian's CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Settings of the whole machine that a kubelet changes if they are not so. It is shown files that say they are.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Prepares the supervisor's mount namespace, which all others are copies of.
pub(crate) fn machine(private: &Path) -> Result<()> {
    // A view of the cluster's processes alone.
    attach(Some("proc"), Path::new("/proc"), Some("proc"), MsFlags::empty(), None)?;
    attach(Some("tmpfs"), private, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    let folder = private.join("sysctl");
    fs::create_dir(&folder)?;
    for (name, value) in SYSCTLS {
        let shown = folder.join(name.replace('/', "."));
        let real = Path::new("/proc/sys").join(name);
        if real.exists() {
            fs::write(&shown, format!("{value}\n"))?;
            bind(&shown, &real)?;
        }
    }
    Ok(())
}

/// Prepares the mount namespace of this thread for a node that keeps its files in `folder`.
pub(crate) fn node(folder: &Path) -> Result<()> {
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    for shown in OVERLAID {
        let name = shown.trim_start_matches('/').replace('/', "-");
        let (upper, work) = (folder.join(&name), folder.join(format!("{name}.work")));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={shown},upperdir={},workdir={}", upper.display(), work.display());
        attach(Some("overlay"), Path::new(shown), Some("overlay"), MsFlags::empty(), Some(&options))?;
    }
    attach(Some("tmpfs"), Path::new("/run"), Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    for shown in PLAIN {
        let own = folder.join(shown.rsplit('/').next().unwrap_or_default());
        fs::create_dir_all(&own)?;
        fs::create_dir_all(shown)?;
        bind(&own, Path::new(shown))?;
    }
    for folder in ["/run/netns", "/run/lock", "/opt/cni/bin", "/etc/cni/net.d"] {
        fs::create_dir_all(folder)?;
    }
    for plugin in fs::read_dir(PLUGINS).context(PLUGINS)? {
        let plugin = plugin?;
        fs::copy(plugin.path(), Path::new("/opt/cni/bin").join(plugin.file_name()))?;
    }
    // What the kubelet mounts must reach the containers that have a part of this tree, and the other way round.
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED, None)
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let from = from.to_string_lossy();
    attach(Some(&from), to, None, MsFlags::MS_BIND, None)
}

fn attach(from: Option<&str>, to: &Path, kind: Option<&str>, flags: MsFlags, options: Option<&str>) -> Result<()> {
    mount(from, to, kind, flags, options).with_context(|| format!("mount {} on {}", from.unwrap_or("-"), to.display()))
}
