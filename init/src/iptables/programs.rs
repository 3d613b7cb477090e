//! The programs of one variant: where they are, and running them.

use std::{
    env,
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    Variant,
    child::{Said, run},
};
use crate::{error::Error, rules::Family};

/// Where administrators' programs are, beside PATH: the environment of a CNI plugin may have none.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Longest message of a program that is passed on, in bytes.
const MAX_MESSAGE: usize = 400;

/// `…-restore` and `…-save` of both families.
pub(super) struct Programs {
    v4: Pair,
    v6: Pair,
}

struct Pair {
    restore: PathBuf,
    save: PathBuf,
}

/// The programs of the variant: by their full names (`iptables-nft-restore`), or by the plain one where that says to be of it.
pub(super) fn find(variant: Variant) -> Option<Programs> {
    find_in(variant, &folders(env::var_os("PATH")))
}

fn folders(path: Option<OsString>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        path.iter().flat_map(env::split_paths).filter(|folder| folder.is_absolute()).collect();
    folders.extend(FOLDERS.map(PathBuf::from));
    folders
}

fn find_in(variant: Variant, folders: &[PathBuf]) -> Option<Programs> {
    let pair = |family: &str| {
        let full = pair(&format!("{family}-{variant}"), folders);
        full.or_else(|| pair(family, folders).filter(|pair| speaks(&pair.restore) == Some(variant)))
    };
    Some(Programs { v4: pair("iptables")?, v6: pair("ip6tables")? })
}

fn pair(name: &str, folders: &[PathBuf]) -> Option<Pair> {
    let find =
        |kind: &str| folders.iter().map(|folder| folder.join(format!("{name}-{kind}"))).find(|path| is_program(path));
    Some(Pair { restore: find("restore")?, save: find("save")? })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// `iptables-restore v1.8.9 (nf_tables)`; before 1.8 there was only the older interface, and no word in brackets.
fn speaks(program: &Path) -> Option<Variant> {
    let said = run(program, &["--version"], "").ok()?.output;
    if !said.contains("tables") {
        return None;
    }
    Some(if said.contains("(nf_tables)") { Variant::Nft } else { Variant::Legacy })
}

impl Programs {
    fn pair(&self, family: Family) -> &Pair {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// All tables of the family that exist.
    pub(super) fn save(&self, family: Family) -> Result<String, Error> {
        let program = &self.pair(family).save;
        let said = checked(program, run(program, &[""; 0], ""))?;
        Ok(said.output)
    }

    /// Gives the program its input; what it does not speak of stays.
    pub(super) fn restore(&self, family: Family, input: &str) -> Result<(), Error> {
        let program = &self.pair(family).restore;
        checked(program, run(program, &["--noflush", "--wait=5"], input)).map(|_| ())
    }
}

fn checked(program: &Path, said: std::io::Result<Said>) -> Result<Said, Error> {
    let program = || program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match said {
        Err(error) => Err(Error::Iptables { program: program(), text: error.to_string() }),
        Ok(said) if said.success => Ok(said),
        Ok(said) if denied(&said.errors) => Err(Error::Permission),
        Ok(said) => Err(Error::Iptables { program: program(), text: message(&said.errors) }),
    }
}

fn denied(errors: &str) -> bool {
    errors.contains("you must be root") || errors.contains("Operation not permitted")
}

/// In one line, without the advice to read the manual.
fn message(errors: &str) -> String {
    let lines = errors.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    let mut text = lines.collect::<Vec<_>>().join("; ");
    while text.len() > MAX_MESSAGE {
        text.pop();
    }
    if text.is_empty() { "it failed without a word".into() } else { text }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with programs that say who they are.
    fn folder(tag: &str, programs: &[(&str, &str)]) -> PathBuf {
        let folder = env::temp_dir().join(format!("weir-iptables-{}-{tag}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, version) in programs {
            for kind in ["restore", "save"] {
                let path = folder.join(format!("{name}-{kind}"));
                fs::write(&path, format!("#!/bin/sh\necho '{name}-{kind} v{version}'\n")).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        folder
    }

    #[test]
    fn programs_are_known_by_name_or_by_what_they_say() {
        let plain = folder("plain", &[("iptables", "1.8.9 (nf_tables)"), ("ip6tables", "1.8.9 (nf_tables)")]);
        let old = folder("old", &[("iptables", "1.6.1"), ("ip6tables", "1.6.1")]);
        let full = folder("full", &[("iptables-legacy", ""), ("ip6tables-legacy", ""), ("iptables-nft", "")]);
        let found = |variant, folder: &PathBuf| find_in(variant, std::slice::from_ref(folder)).is_some();
        assert!(found(Variant::Nft, &plain) && !found(Variant::Legacy, &plain));
        assert!(found(Variant::Legacy, &old) && !found(Variant::Nft, &old));
        assert!(found(Variant::Legacy, &full));
        assert!(!found(Variant::Nft, &full), "without ip6tables IPv6 would be left open");
        assert!(find_in(Variant::Nft, &[full.clone(), plain.clone()]).is_some());
        [plain, old, full].iter().for_each(|folder| fs::remove_dir_all(folder).unwrap());
    }

    #[test]
    fn relative_folders_are_not_searched() {
        let folders = folders(Some("bin:/opt/x::.".into()));
        assert_eq!(folders.first(), Some(&PathBuf::from("/opt/x")));
        assert!(folders.iter().all(|folder| folder.is_absolute()));
    }

    #[test]
    fn messages_are_one_line() {
        let said =
            "iptables-restore v1.8.9 (legacy): no command\n\nError occurred at line: 2\nTry `iptables-restore -h'\n";
        assert_eq!(message(said), "iptables-restore v1.8.9 (legacy): no command; Error occurred at line: 2");
        assert_eq!(message(""), "it failed without a word");
        assert!(message(&"x".repeat(1000)).len() <= MAX_MESSAGE);
    }
}
