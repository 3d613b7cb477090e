//! Takes the plugin and our configuration off the node, with everything else that may be of ours.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{conflist::PLUGIN, files, options::Options, primary::OURS};

/// Names of files that are being written; no runtime takes them for a plugin or a configuration.
pub(super) const NEW_PLUGIN: &str = ".weir-cni.new";
pub(super) const NEW_CONFLIST: &str = ".weir-conflist.new";
/// What Cilium, where it wants to be alone, appends to the names of other components' configurations.
pub(super) const CILIUM: &str = ".cilium_bak";

/// Everything that may be of ours, in the order in which it has to go.
fn leftovers(options: &Options) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for name in OURS {
        all.push(options.conf_dir.join(name));
        all.push(options.conf_dir.join(format!("{name}{CILIUM}")));
    }
    all.push(options.conf_dir.join(NEW_CONFLIST));
    all.push(options.bin_dir.join(NEW_PLUGIN));
    all.push(options.bin_dir.join(PLUGIN));
    all
}

/// Is nothing left? Else one line what.
pub(super) fn check_uninstalled(options: &Options) -> Result<(), String> {
    match leftovers(options).into_iter().chain([notes(options)]).find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(format!("{} is still there", path.display())),
        None => Ok(()),
    }
}

/// The plugin's notes as this process sees them.
fn notes(options: &Options) -> PathBuf {
    options.cache_dir.join(PLUGIN)
}

/// Forgets what the plugin said already, so that a new agent lets it say it again.
pub(super) fn forget_notes(options: &Options) -> io::Result<()> {
    match std::fs::remove_dir_all(notes(options)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes everything away: the configuration, then, when every runtime has read the folder again and what it had begun has
/// ended (`settle`), the plugin.
pub(super) fn remove_all(options: &Options, settle: impl FnOnce()) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("{} can not be removed: {error}", path.display());
    let (last, first): (Vec<PathBuf>, Vec<PathBuf>) =
        leftovers(options).into_iter().partition(|path| path.starts_with(&options.bin_dir));
    let mut settle = Some(settle);
    for path in first {
        files::remove(&path).map_err(|error| failed(&path, error))?;
    }
    files::sync(&options.conf_dir).map_err(|error| failed(&options.conf_dir, error))?;
    for path in last {
        if path.symlink_metadata().is_ok()
            && let Some(settle) = settle.take()
        {
            settle();
        }
        files::remove(&path).map_err(|error| failed(&path, error))?;
    }
    files::sync(&options.bin_dir).map_err(|error| failed(&options.bin_dir, error))?;
    forget_notes(options).map_err(|error| failed(&notes(options), error))
}
