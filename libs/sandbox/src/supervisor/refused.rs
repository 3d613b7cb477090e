//! Why the machine refuses a namespace or a mount, in words that help.

use std::{fs, io};

use nix::unistd::Uid;

use super::ServeError;

/// Settings of the kernel that switch user namespaces off: file, value, and what it means.
const SETTINGS: [(&str, &str, &str); 3] = [
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "user namespaces are switched off (user.max_user_namespaces=0): as root run `sysctl user.max_user_namespaces=15000`",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "user namespaces are root's alone (kernel.unprivileged_userns_clone=0): as root run `sysctl kernel.unprivileged_userns_clone=1`",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor keeps user namespaces from programs without a profile (kernel.apparmor_restrict_unprivileged_userns=1): as root run \
         `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give weir a profile that allows `userns`",
    ),
];

/// The error of a namespace that the kernel refused.
pub(crate) fn refused(what: &str, error: io::Error) -> ServeError {
    let read = |path: &str| fs::read_to_string(path).ok();
    if let Some(setting) = setting(read).filter(|_| !is_root_of_all()) {
        return ServeError::Missing(format!(
            "without root the sandbox needs user namespaces: {setting}, or run it as root"
        ));
    }
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    if !denied {
        return ServeError::Io { what: what.to_owned(), source: error };
    }
    ServeError::Missing(format!(
        "this machine refuses {what} ({error}): inside of a container the sandbox needs one that may make namespaces and mounts \
         (`docker run --privileged`)"
    ))
}

/// The error of a new view of /proc.
pub(super) fn proc(error: io::Error) -> ServeError {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return ServeError::Io { what: "mount of /proc".into(), source: error };
    }
    ServeError::Missing(format!(
        "this machine refuses a new view of /proc ({error}), as a container does that hides parts of its own: run the sandbox outside \
         of it, or in one with a whole /proc (`docker run --privileged`)"
    ))
}

/// Whether this process is root outside of any user namespace, for whom the settings are not.
fn is_root_of_all() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    Uid::effective().is_root() && map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// What switches user namespaces off, if anything.
fn setting(read: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    let off = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    SETTINGS.iter().find(|(path, value, _)| off(path, value)).map(|(_, _, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_is_the_cause() {
        let with = |name: &'static str, value: &'static str| {
            setting(move |path: &str| path.ends_with(name).then(|| format!("{value}\n")))
        };
        assert!(with("max_user_namespaces", "0").unwrap().contains("sysctl user.max_user_namespaces="));
        assert!(with("unprivileged_userns_clone", "0").unwrap().contains("unprivileged_userns_clone=1"));
        assert!(with("apparmor_restrict_unprivileged_userns", "1").unwrap().contains("profile"));
        assert_eq!(with("max_user_namespaces", "96364"), None);
        assert_eq!(setting(|_| None), None);
    }
}
