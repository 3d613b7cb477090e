//! An ordinary user that only a test has: the machine's files are not changed, a copy of /etc lies over them in a mount namespace.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// Its user and group id.
pub(crate) const UID: u32 = 61_234;
/// The ids that /etc/subuid and /etc/subgid give it.
pub(crate) const FIRST_SUB_ID: u32 = 700_000;
pub(crate) const SUB_IDS: u32 = 65_536;
const NAME: &str = "weir-test";

/// Becomes the user and runs the rest of the command line.
const BECOME: &str = r#"
mount --bind "$D/etc" /etc && mount --bind "$BIN" "$D/bin" || exit 99
eval "$BEFORE" || exit 98
exec setpriv --reuid "$ID" --regid "$ID" --clear-groups $OPTIONS -- "$@"
"#;

pub(crate) struct User {
    /// Everything of it, for all to read but for what /etc hides.
    folder: PathBuf,
    /// Shell commands that root runs in the mount namespace before.
    pub(crate) before: String,
    /// Further options of setpriv(1).
    pub(crate) options: Vec<&'static str>,
}

impl User {
    pub(crate) fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-user-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        for part in ["bin", "programs", "run"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        chown(folder.join("run"), Some(UID), Some(UID)).unwrap();
        let copied = Command::new("cp").args(["-a", "/etc"]).arg(&folder).status().unwrap();
        assert!(copied.success());
        let user = Self { folder, before: "true".into(), options: Vec::new() };
        for (file, line) in [
            ("passwd", format!("{NAME}:x:{UID}:{UID}::/nonexistent:/bin/sh\n")),
            ("group", format!("{NAME}:x:{UID}:\n")),
        ] {
            let text = fs::read_to_string(user.folder.join("etc").join(file)).unwrap();
            user.set(file, &(text + &line));
        }
        let ids = format!("{NAME}:{FIRST_SUB_ID}:{SUB_IDS}\n");
        user.set("subuid", &ids);
        user.set("subgid", &ids);
        user
    }

    /// Writes a file of its /etc.
    pub(crate) fn set(&self, file: &str, text: &str) {
        fs::write(self.folder.join("etc").join(file), text).unwrap();
    }

    /// A program that it has in place of the machine's.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let path = self.folder.join("programs").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Where its sandboxes are.
    pub(crate) fn base(&self) -> PathBuf {
        self.folder.join("run/weir/sandbox")
    }

    /// A command line of `weir`, run by it.
    pub(crate) fn command(&self, weir: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", BECOME, "sh"]).arg(self.folder.join("bin/weir"));
        let mut path = OsString::from(self.folder.join("programs"));
        // As Debian gives it to ordinary users.
        path.push(":/usr/local/bin:/usr/bin:/bin");
        command.env("D", &self.folder).env("BIN", weir.parent().unwrap()).env("BEFORE", &self.before);
        command.env("ID", UID.to_string()).env("OPTIONS", self.options.join(" "));
        command.env("PATH", path).env("XDG_RUNTIME_DIR", self.folder.join("run")).env("HOME", "/nonexistent");
        command
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
