//! The agent's command line.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

pub(super) const HELP: &str = "\
weir-cni            the CNI plugin: called by a container runtime, with CNI_COMMAND in the environment
weir-cni node       the node agent: installs the plugin, keeps it, repairs pods that started without it

  --cni-bin-dir DIR     where the runtime looks for plugins         (/host/opt/cni/bin)
  --cni-conf-dir DIR    where the runtime looks for configurations  (/host/etc/cni/net.d)
  --cache-dir DIR       where the runtime notes its pods            (/host/var/lib/cni)
  --netns-dir DIR       the pods' network namespaces                (/host/run/netns)
  --host-cache-dir DIR  the cache folder as the node itself names it               (/var/lib/cni)
  --host-netns-dir DIR  the namespaces' folder as the runtime names it; repeatable (/var/run/netns, /run/netns)

  --check               exit 0 if plugin and configuration are in place and current, else say why and exit 1
  --uninstall           take configuration and plugin away; the agent must not run
  --stay                with --uninstall: then wait for SIGTERM, so that a DaemonSet counts as ready
  --check --uninstall   exit 0 if nothing is left
";

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Run,
    Check,
    Uninstall { stay: bool },
    CheckUninstalled,
}

/// Folders as this process sees them, and as the runtime does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) command: Command,
    pub(super) bin_dir: PathBuf,
    pub(super) conf_dir: PathBuf,
    pub(super) cache_dir: PathBuf,
    pub(super) netns_dir: PathBuf,
    pub(super) host_cache_dir: PathBuf,
    pub(super) host_netns_dirs: Vec<PathBuf>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Node(Options),
    Help,
    Version,
}

/// Reads the command line: `command` and what follows it.
pub(super) fn parse(command: &OsStr, arguments: impl Iterator<Item = OsString>) -> Result<Parsed, String> {
    match command.to_str() {
        Some("node") => {}
        Some("--help" | "-h" | "help") => return Ok(Parsed::Help),
        Some("--version" | "-V") => return Ok(Parsed::Version),
        _ => return Err(format!("{} is no command", command.display())),
    }
    let mut options = Options {
        command: Command::Run,
        bin_dir: "/host/opt/cni/bin".into(),
        conf_dir: "/host/etc/cni/net.d".into(),
        cache_dir: "/host/var/lib/cni".into(),
        netns_dir: "/host/run/netns".into(),
        host_cache_dir: "/var/lib/cni".into(),
        host_netns_dirs: Vec::new(),
    };
    let (mut check, mut uninstall, mut stay) = (false, false, false);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        // `--flag VALUE` and `--flag=VALUE`
        let text = argument.to_string_lossy().into_owned();
        let (flag, joined) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (text.as_str(), None),
        };
        let mut folder = || -> Result<PathBuf, String> {
            let value = joined.clone().map(OsString::from).or_else(|| arguments.next());
            let path = PathBuf::from(value.ok_or_else(|| format!("{flag} needs a folder"))?);
            if path.is_absolute() { Ok(path) } else { Err(format!("{flag} needs an absolute path")) }
        };
        match flag {
            "--cni-bin-dir" => options.bin_dir = folder()?,
            "--cni-conf-dir" => options.conf_dir = folder()?,
            "--cache-dir" => options.cache_dir = folder()?,
            "--netns-dir" => options.netns_dir = folder()?,
            "--host-cache-dir" => options.host_cache_dir = folder()?,
            "--host-netns-dir" => options.host_netns_dirs.push(folder()?),
            "--check" if joined.is_none() => check = true,
            "--uninstall" if joined.is_none() => uninstall = true,
            "--stay" if joined.is_none() => stay = true,
            "--help" | "-h" => return Ok(Parsed::Help),
            _ => return Err(format!("{text} is not known")),
        }
    }
    if options.host_netns_dirs.is_empty() {
        options.host_netns_dirs = vec!["/var/run/netns".into(), "/run/netns".into()];
    }
    options.command = match (check, uninstall, stay) {
        (false, false, false) => Command::Run,
        (true, false, false) => Command::Check,
        (false, true, stay) => Command::Uninstall { stay },
        (true, true, false) => Command::CheckUninstalled,
        (_, _, true) => return Err("--stay goes with --uninstall alone".into()),
    };
    Ok(Parsed::Node(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(arguments: &[&str]) -> Result<Parsed, String> {
        parse(OsStr::new("node"), arguments.iter().map(OsString::from))
    }

    #[test]
    fn commands_and_folders() {
        let Ok(Parsed::Node(options)) = node(&["--cni-bin-dir", "/a", "--netns-dir=/b=c"]) else { panic!() };
        assert_eq!((options.command, options.bin_dir, options.netns_dir), (Command::Run, "/a".into(), "/b=c".into()));
        assert_eq!(options.host_netns_dirs.len(), 2);
        let command = |arguments: &[&str]| match node(arguments) {
            Ok(Parsed::Node(options)) => Ok(options.command),
            other => Err(format!("{other:?}")),
        };
        assert_eq!(command(&["--check"]), Ok(Command::Check));
        assert_eq!(command(&["--uninstall"]), Ok(Command::Uninstall { stay: false }));
        assert_eq!(command(&["--uninstall", "--stay"]), Ok(Command::Uninstall { stay: true }));
        assert_eq!(command(&["--uninstall", "--check"]), Ok(Command::CheckUninstalled));
        assert_eq!(node(&["--help"]), Ok(Parsed::Help));
        for bad in [&["--stay"][..], &["--check=1"], &["--cni-bin-dir"], &["--cni-bin-dir", "opt"], &["x"], &["--x"]] {
            assert!(node(bad).is_err(), "{bad:?}");
        }
        assert!(parse(OsStr::new("nodes"), std::iter::empty()).is_err());
    }
}
