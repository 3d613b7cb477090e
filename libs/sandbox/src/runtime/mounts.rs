//! A container's file system: an empty root in memory, the machine's system folders read-only, the pod's volumes.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStringExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::pivot_root,
};

use super::spec::{ContainerSpec, Mount, OWN_PATH};

/// Folders of the machine that every container sees, read-only.
const SYSTEM: [&str; 9] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "srv"];
/// Folders that are empty and private, with their modes.
const PRIVATE: [(&str, u32); 14] = [
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("etc", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("root", 0o700),
    ("home", 0o755),
    ("mnt", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/cache", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files of /etc that each pod has for itself.
const PODS_OWN: [&str; 3] = ["hosts", "resolv.conf", "hostname"];
/// Most memory that files in a container's own root may take.
const ROOT_SIZE: &str = "mode=0755,size=256m";
/// What a container could harm or spy on the machine with, hidden like container runtimes hide it.
const HIDDEN: [&str; 4] = ["kcore", "keys", "timer_list", "sysrq-trigger"];
/// Most symbolic links on the way to a mount point.
const MAX_LINKS: usize = 16;

/// Builds the root of `spec` and makes it this process's. The caller has a mount namespace of its own.
///
/// # Errors
/// Which mount was refused.
pub fn build(spec: &ContainerSpec) -> io::Result<()> {
    let root = spec.root.as_path();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::MS_NOSUID, Some(ROOT_SIZE))?;
    for (folder, mode) in PRIVATE {
        make_folder(&root.join(folder), mode)?;
    }
    symlink("/run", root.join("var/run"))?;
    for name in SYSTEM {
        system_folder(Path::new("/").join(name).as_path(), &root.join(name))?;
    }
    etc(root)
        .map_err(|error| named("private changes of /etc, by an overlay (without root it wants Linux 5.11)", &error))?;
    devices(root).map_err(|error| named("/dev", &error))?;
    kernel_views(root).map_err(|error| named("/proc and /sys", &error))?;
    bind(&spec.weir, &root.join(OWN_PATH.trim_start_matches('/')), true)?;
    for one in &spec.mounts {
        volume(root, one).map_err(|error| {
            io::Error::other(format!("mount of {} at {}: {error}", one.source.display(), one.target.display()))
        })?;
    }
    enter(root)?;
    if spec.read_only_root {
        remount_read_only(Path::new("/"))?;
        match remount_read_only(Path::new("/etc")) {
            // It is part of the root.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            done => done?,
        }
    }
    Ok(())
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn system_folder(source: &Path, target: &Path) -> io::Result<()> {
    match fs::symlink_metadata(source) {
        Ok(found) if found.is_symlink() => symlink(fs::read_link(source)?, target),
        Ok(found) if found.is_dir() => bind(source, target, true),
        _ => Ok(()),
    }
}

/// `/etc` is the machine's with private changes on top: mount points for `hosts` and `resolv.conf` can be made in it even where
/// the machine has links there.
fn etc(root: &Path) -> io::Result<()> {
    let (upper, work) = (root.join(".weir/etc"), root.join(".weir/etc-work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    let overlay =
        |options: &str| mount(Some("overlay"), &root.join("etc"), Some("overlay"), MsFlags::MS_NOSUID, Some(options));
    // In a user namespace the overlay's own marks can not be kept under `trusted.`; kernels before 5.11 know no other way.
    match overlay(&format!("{options},userxattr")).or_else(|_| overlay(&options)) {
        // In a user namespace a folder in which the machine has mounted something can not be the ground of an overlay.
        Err(Errno::EINVAL) => return etc_of_links(root),
        done => done?,
    }
    for name in PODS_OWN {
        let path = root.join("etc").join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// `/etc` as private folder, whose entries point at the machine's.
fn etc_of_links(root: &Path) -> io::Result<()> {
    // Directly below the root, like /etc, so that relative links in it lead where they should.
    const MACHINE: &str = ".etc";
    bind(Path::new("/etc"), &root.join(MACHINE), true)?;
    for entry in fs::read_dir("/etc")? {
        let name = entry?.file_name();
        if PODS_OWN.iter().any(|own| name == *own) {
            continue;
        }
        let source = Path::new("/etc").join(&name);
        // A link is made anew: what it leads to may exist in the container only.
        let target = fs::read_link(&source).unwrap_or_else(|_| Path::new("/").join(MACHINE).join(&name));
        symlink(target, root.join("etc").join(&name))?;
    }
    Ok(())
}

fn devices(root: &Path) -> io::Result<()> {
    let dev = root.join("dev");
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            bind(&source, &dev.join(name), false)?;
        }
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(target, dev.join(name))?;
    }
    fs::create_dir(dev.join("shm"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &dev.join("shm"), Some("tmpfs"), flags, Some("mode=1777,size=64m"))?;
    Ok(())
}

fn kernel_views(root: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let proc = root.join("proc");
    mount(Some("proc"), &proc, Some("proc"), flags, None::<&str>)?;
    for name in HIDDEN {
        let path = proc.join(name);
        if path.exists() {
            mount(Some("/dev/null"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
    }
    let settings = proc.join("sys");
    mount(Some(&settings), &settings, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    remount_read_only(&settings)?;
    match mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), flags | MsFlags::MS_RDONLY, None::<&str>) {
        // Where the machine itself hides parts of /sys, a user namespace gets none of it: programs do without.
        Err(Errno::EPERM) => Ok(()),
        done => Ok(done?),
    }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    make_mount_point(source, target)?;
    match mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        // In a user namespace a folder can not be shown without what the machine has mounted below it.
        Err(Errno::EINVAL) => {
            mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            if read_only {
                for below in mounts_below(target)? {
                    remount_read_only(&below)?;
                }
            }
        }
        done => done?,
    }
    if read_only { remount_read_only(target) } else { Ok(()) }
}

/// Mount points below a folder, as this process sees them.
fn mounts_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    Ok(points.filter(|point| point.starts_with(folder) && point != folder).collect())
}

/// A path of /proc/self/mountinfo, which writes blanks and the like as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn make_mount_point(source: &Path, target: &Path) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(source)?.is_dir() { fs::create_dir(target) } else { fs::File::create(target).map(|_| ()) }
}

fn remount_read_only(path: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    // A mount keeps flags that were set when it was made (such as nosuid); the kernel refuses to drop them in a user namespace
    // and a bind remount would drop them elsewhere, so they are set again.
    let kept = nix::sys::statvfs::statvfs(path)?.flags();
    let mut again = MsFlags::empty();
    for (have, flag) in [
        (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (nix::sys::statvfs::FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if kept.contains(have) {
            again |= flag;
        }
    }
    mount(None::<&str>, path, None::<&str>, flags | again, None::<&str>)?;
    Ok(())
}

fn volume(root: &Path, one: &Mount) -> io::Result<()> {
    let target = resolve_in(root, &one.target)?;
    make_mount_point(&one.source, &target).map_err(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => io::Error::other(
            "the mount point does not exist on this machine, whose system folders are shared read-only; mount it below /etc, /var, /run, /tmp or a new folder of the root",
        ),
        _ => error,
    })?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&one.source), &target, None::<&str>, flags, None::<&str>)?;
    if one.read_only { remount_read_only(&target) } else { Ok(()) }
}

/// The path on the machine of a path in the container; links on the way are followed inside the container's root only.
fn resolve_in(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut done = PathBuf::new();
    let mut rest: Vec<_> = parts(path);
    rest.reverse();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match fs::read_link(root.join(&next)) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many symbolic links"));
                }
                if target.is_absolute() {
                    done.clear();
                }
                rest.extend(parts(&target).into_iter().rev());
            }
            Err(_) => done = next,
        }
    }
    Ok(root.join(done))
}

fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn enter(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks() {
        assert_eq!(unescaped("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescaped("/a\\9"), Path::new("/a\\9"));
    }

    #[test]
    fn a_link_never_leads_out_of_the_root() {
        let root = std::env::temp_dir().join(format!("weir-mounts-{}", std::process::id()));
        fs::create_dir_all(root.join("a")).unwrap();
        symlink("/", root.join("a/up")).unwrap();
        symlink("../../..", root.join("a/out")).unwrap();
        symlink("loop", root.join("a/loop")).unwrap();
        let got = |path: &str| resolve_in(&root, Path::new(path));
        let (up, out, dots) = (got("/a/up/etc").unwrap(), got("/a/out/x").unwrap(), got("/../../x").unwrap());
        let endless = got("/a/loop/x");
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(up, root.join("etc"));
        assert_eq!(out, root.join("x"));
        assert_eq!(dots, root.join("x"));
        assert!(endless.is_err());
    }
}
