//! Files of the node: read with bounds and without following links, replaced in one step.
//!
//! Everything here may be written by somebody else at any moment.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::fcntl::OFlag;

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

impl Stamp {
    pub(super) fn of(data: &Metadata) -> Self {
        Self {
            dev: data.dev(),
            ino: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
            mode: data.mode(),
        }
    }
}

/// Opens a regular file without waiting (a FIFO would block) and, with `follow` off, without following a link at its end.
pub(super) fn open(path: &Path, follow: bool) -> io::Result<(File, Metadata)> {
    let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    if !follow {
        flags |= OFlag::O_NOFOLLOW;
    }
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let data = file.metadata()?;
    if data.is_file() { Ok((file, data)) } else { Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file")) }
}

/// The content of an open file; an error where it has more than `limit` bytes.
pub(super) fn read(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Do both hold the same bytes?
pub(super) fn same(mut one: impl Read, mut other: impl Read) -> io::Result<bool> {
    const PIECE: u64 = 256 * 1024;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        a.clear();
        b.clear();
        one.by_ref().take(PIECE).read_to_end(&mut a)?;
        other.by_ref().take(PIECE).read_to_end(&mut b)?;
        if a != b || a.is_empty() {
            return Ok(a == b);
        }
    }
}

/// Puts a file in place in one step: at no moment is there none, or half of one, under its name, not even after a power cut.
/// `temporary` is a name in the same folder that nobody reads; what lies there is replaced.
pub(super) fn replace(folder: &Path, name: &str, temporary: &str, mode: u32, mut content: impl Read) -> io::Result<()> {
    let path = folder.join(temporary);
    remove(&path)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::copy(&mut content, &mut file)?;
        file.flush()?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&path, folder.join(name))?;
        sync(folder)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&path); // the first error is the one to tell
    }
    written
}

/// Removes a file or a link; true if there was one.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes names in a folder outlive a power cut.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn replaced_in_one_step_and_links_are_not_followed() {
        let folder = std::env::temp_dir().join(format!("weir-cni-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (target, name) = (folder.join("elsewhere"), folder.join("x"));
        fs::write(&target, "theirs").unwrap();
        symlink(&target, &name).unwrap();
        symlink(&target, folder.join("x.new")).unwrap();
        assert!(open(&name, false).is_err());
        assert_eq!(read(&open(&name, true).unwrap().0, 6).unwrap(), b"theirs");
        replace(&folder, "x", "x.new", 0o755, &b"ours"[..]).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        let (file, data) = open(&name, false).unwrap();
        assert_eq!((read(&file, 4).unwrap(), data.mode() & 0o7777), (b"ours".to_vec(), 0o755));
        assert!(read(&open(&name, false).unwrap().0, 3).is_err());
        assert!(open(&folder, false).is_err());
        assert!(same(&b"ab"[..], &b"ab"[..]).unwrap() && !same(&b"ab"[..], &b"abc"[..]).unwrap());
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, ["elsewhere", "x"]);
    }
}
