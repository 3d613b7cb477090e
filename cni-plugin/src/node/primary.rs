//! The primary network's configuration: the file that the runtime would take if we had none, which is the first by name.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    io::ErrorKind,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use super::{conflist, files};

/// Names of our own configuration, the usual one first. The second sorts before names that sort before the first.
pub(super) const OURS: [&str; 2] = ["00-weir.conflist", "!00-weir.conflist"];
/// Largest configuration that is read, in bytes; real ones have a few hundred to a few thousand.
const MAX_SIZE: u64 = 1024 * 1024;
/// What no configuration of ours allows others, whatever the primary's does.
const MODE: u32 = 0o644;

/// What our configuration should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The primary's file name.
    pub(super) primary: String,
    /// Our file name: one that sorts before the primary's.
    pub(super) name: &'static str,
    /// Our file's permissions: those of the primary, and never more than others need.
    pub(super) mode: u32,
    /// Our file's content.
    pub(super) bytes: Vec<u8>,
}

/// What the folder holds beside ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No configuration.
    Nothing,
    /// One that can be used.
    Good(Wanted),
    /// One that can not.
    Bad { primary: String, reason: String },
}

/// Looks for the primary's configuration.
pub(super) fn find(conf_dir: &Path, state_dir: &Path) -> io::Result<Found> {
    let Some(first) = configurations(conf_dir)?.into_iter().find(|name| !is_ours(name)) else {
        return Ok(Found::Nothing);
    };
    let primary = first.to_string_lossy().into_owned();
    let bad = |reason: String| Ok(Found::Bad { primary: primary.clone(), reason });
    let Some(name) = OURS.into_iter().find(|ours| ours.as_bytes() < first.as_bytes()) else {
        return bad(format!("no configuration of Weir would sort before it: rename it, behind {}", OURS[0]));
    };
    let path = conf_dir.join(&first);
    let (file, data) = match files::open(&path, true) {
        Ok(opened) => opened,
        Err(error) => {
            let link = fs::read_link(&path).ok();
            return match link {
                Some(target) if error.kind() == ErrorKind::NotFound => bad(format!(
                    "it is a link to {}, which is not there: where the agent runs in a container, mount that folder too",
                    target.display()
                )),
                _ => bad(format!("it can not be read: {error}")),
            };
        }
    };
    let bytes = match files::read(&file, MAX_SIZE) {
        Ok(bytes) => bytes,
        Err(error) => return bad(format!("it can not be read: {error}")),
    };
    match conflist::render(&bytes, extension(&first) == Some(b"conflist"), state_dir) {
        Ok(bytes) => Ok(Found::Good(Wanted { primary, name, mode: data.mode() & MODE | 0o600, bytes })),
        Err(reason) => bad(reason.to_string()),
    }
}

/// Names of all files that runtimes take for a configuration, in their order.
pub(super) fn configurations(conf_dir: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(conf_dir)? {
        let entry = entry?;
        let known = matches!(extension(&entry.file_name()), Some(b"conf" | b"conflist" | b"json"));
        if known && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

pub(super) fn is_ours(name: &OsStr) -> bool {
    OURS.iter().any(|ours| name == *ours)
}

/// What follows the last dot, even of a name that begins with it: as runtimes see it.
fn extension(name: &OsStr) -> Option<&[u8]> {
    let bytes = name.as_bytes();
    bytes.iter().rposition(|byte| *byte == b'.').and_then(|dot| bytes.get(dot.saturating_add(1)..))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_first_by_name_of_what_runtimes_take() {
        let folder = std::env::temp_dir().join(format!("weir-cni-primary-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("01-folder.conf")).unwrap();
        let find = || find(&folder, Path::new("/s")).unwrap();
        let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let good = |name: &str| match find() {
            Found::Good(wanted) => assert_eq!((wanted.primary.as_str(), wanted.mode), (name, 0o644)),
            other => panic!("{other:?}"),
        };
        put(OURS[0], "ours");
        put("00-old.conflist.cilium_bak", "x");
        assert_eq!(find(), Found::Nothing);
        put("90-b.conf", r#"{"name":"n","type":"b"}"#);
        good("90-b.conf");
        put("10-a.conflist", r#"{"name":"n","plugins":[{"type":"a"}]}"#);
        good("10-a.conflist");
        put(".conf", "");
        assert!(matches!(find(), Found::Bad { primary, reason } if primary == ".conf" && reason == "it is empty"));
        put(".conf", r#"{"name":"n","type":"b"}"#);
        assert!(matches!(find(), Found::Good(wanted) if wanted.name == OURS[1]));
        put("!!.conf", "{}");
        assert!(matches!(find(), Found::Bad { reason, .. } if reason.contains("would sort before it")));
        fs::remove_file(folder.join("!!.conf")).unwrap();
        fs::remove_file(folder.join(".conf")).unwrap();
        symlink("/nowhere/at/all", folder.join("05-x.conf")).unwrap();
        assert!(matches!(find(), Found::Bad { reason, .. } if reason.contains("mount that folder too")));
        nix::unistd::mkfifo(&folder.join("04-x.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(find(), Found::Bad { reason, .. } if reason.contains("not a regular file")));
        put("03-x.conf", &" ".repeat(1024 * 1024 + 1));
        assert!(matches!(find(), Found::Bad { reason, .. } if reason.contains("larger than")));
        fs::remove_dir_all(&folder).unwrap();
    }
}
