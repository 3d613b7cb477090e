//! Keeps the plugin and our configuration in place.
//!
//! The plugin comes first and goes last: a configuration that names a missing plugin would stop every pod of the node.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    conflist::PLUGIN,
    files::{self, Stamp},
    guard::{Guard, RETRY},
    options::Options,
    primary::{self, Found, OURS, Wanted},
    remove::{CILIUM, NEW_CONFLIST, NEW_PLUGIN},
};
use crate::log::Event;

/// How long our configuration outlives the primary's. A network plugin that rewrites its own by deleting it first must not
/// leave a gap in which pods start without us; one that is taken off the node must not live on in our copy.
const GRACE: Duration = Duration::from_secs(3);
/// How long a configuration may be malformed before it is complained about: who writes it may not have ended.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the plugin's bytes are compared though nothing seems to have changed.
const COMPARE: Duration = Duration::from_secs(60);
/// Permissions of the plugin.
const MODE: u32 = 0o755;
/// This program's own bytes, also when its file was replaced or removed.
const OWN_BYTES: &str = "/proc/self/exe";

/// What is known of the node's configuration.
pub(super) struct Installer<'a> {
    options: &'a Options,
    binary: Guard,
    conflist: Guard,
    compared: Option<(Stamp, Instant)>,
    good: Option<Wanted>,
    gone_since: Option<Instant>,
    bad_since: Option<(String, Instant, bool)>,
    said_waiting: bool,
}

impl<'a> Installer<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self {
            options,
            binary: Guard::default(),
            conflist: Guard::default(),
            compared: None,
            good: None,
            gone_since: None,
            bad_since: None,
            said_waiting: false,
        }
    }

    /// Looks, and repairs what is not as it should be. Returns when to look again at the latest.
    pub(super) fn keep(&mut self, now: Instant) -> Duration {
        let next = self.keep_binary(now);
        if !self.binary.placed {
            return next;
        }
        self.notice_cilium();
        next.min(self.keep_conflist(now))
    }

    fn keep_binary(&mut self, now: Instant) -> Duration {
        let path = self.options.bin_dir.join(PLUGIN);
        if let Ok((_, data)) = files::open(&path, false)
            && let Some((stamp, at)) = self.compared
            && stamp == Stamp::of(&data)
            && now.saturating_duration_since(at) < COMPARE
        {
            return Duration::MAX;
        }
        let reason = match compare_binary(&path) {
            Ok(stamp) => {
                self.compared = Some((stamp, now));
                self.binary.placed = true;
                self.binary.failure = None;
                return Duration::MAX;
            }
            Err(reason) => reason,
        };
        if let Err(left) = self.binary.allowed(now, &path) {
            return left;
        }
        let msg = if self.binary.placed { "plugin repaired" } else { "plugin installed" };
        let written =
            File::open(OWN_BYTES).and_then(|own| files::replace(&self.options.bin_dir, PLUGIN, NEW_PLUGIN, MODE, own));
        self.binary.done(&path, written, Event { file: Some(&path), reason: Some(&reason), ..Event::info(msg) })
    }

    fn keep_conflist(&mut self, now: Instant) -> Duration {
        let folder = &self.options.conf_dir;
        let found = match primary::find(folder, &state_dir(self.options)) {
            Ok(found) => found,
            Err(error) => Found::Bad { primary: folder.display().to_string(), reason: error.to_string() },
        };
        match found {
            Found::Good(wanted) => {
                (self.gone_since, self.bad_since, self.said_waiting) = (None, None, false);
                let next = self.place(&wanted, now);
                self.good = Some(wanted);
                next
            }
            Found::Bad { primary, reason } => {
                self.gone_since = None;
                let next = self.complain(&primary, &reason, now);
                next.min(self.place_last_good(now))
            }
            Found::Nothing => self.without_primary(now),
        }
    }

    /// Writes what is wanted, if it is not there, and takes away what we wrote under another name.
    fn place(&mut self, wanted: &Wanted, now: Instant) -> Duration {
        let folder = &self.options.conf_dir;
        let path = folder.join(wanted.name);
        let mut next = Duration::MAX;
        match conflist_fault(folder, wanted) {
            None => self.conflist.placed = true,
            Some(reason) => {
                // Ours is repaired; what follows the primary's change, or replaces an earlier version's, is not a repair.
                let repair = self.conflist.placed && self.good.as_ref() == Some(wanted);
                if repair && let Err(left) = self.conflist.allowed(now, &path) {
                    return left;
                }
                let msg = match (repair, self.conflist.placed) {
                    (true, _) => "configuration repaired",
                    (false, true) => "configuration follows the primary's",
                    (false, false) => "configuration installed",
                };
                let written = files::replace(folder, wanted.name, NEW_CONFLIST, wanted.mode, wanted.bytes.as_slice());
                let event = Event {
                    file: Some(&path),
                    primary: Some(&wanted.primary),
                    reason: repair.then_some(reason.as_str()),
                    ..Event::info(msg)
                };
                next = self.conflist.done(&path, written, event);
            }
        }
        if self.conflist.failure.is_none() {
            for other in OURS.into_iter().filter(|other| *other != wanted.name) {
                let _ = files::remove(&folder.join(other)); // looked at again the next time
            }
        }
        next
    }

    fn place_last_good(&mut self, now: Instant) -> Duration {
        let Some(wanted) = self.good.clone() else { return Duration::MAX };
        self.place(&wanted, now)
    }

    fn complain(&mut self, primary: &str, reason: &str, now: Instant) -> Duration {
        let text = format!("{primary}: {reason}");
        let (since, said) = match &self.bad_since {
            Some((known, since, said)) if *known == text => (*since, *said),
            _ => (now, false),
        };
        let left = PATIENCE.saturating_sub(now.saturating_duration_since(since));
        if !said && left.is_zero() {
            let kept = OURS.iter().any(|name| self.options.conf_dir.join(name).exists());
            let msg = if kept {
                "the primary's configuration can not be used: ours stays as it was made of the last good one"
            } else {
                "the primary's configuration can not be used: the plugin is not in the chain"
            };
            Event { primary: Some(primary), reason: Some(reason), ..Event::error(msg) }.say();
        }
        self.bad_since = Some((text, since, said || left.is_zero()));
        if said || left.is_zero() { Duration::MAX } else { left }
    }

    fn without_primary(&mut self, now: Instant) -> Duration {
        self.bad_since = None;
        let ours: Vec<PathBuf> = OURS
            .iter()
            .map(|name| self.options.conf_dir.join(name))
            .filter(|path| path.symlink_metadata().is_ok())
            .collect();
        if ours.is_empty() && self.good.is_none() {
            if !std::mem::replace(&mut self.said_waiting, true) {
                Event {
                    file: Some(&self.options.conf_dir),
                    ..Event::info("waiting for the primary network plugin's configuration")
                }
                .say();
            }
            return Duration::MAX;
        }
        let since = *self.gone_since.get_or_insert(now);
        let left = GRACE.saturating_sub(now.saturating_duration_since(since));
        if !left.is_zero() {
            return left.min(self.place_last_good(now));
        }
        (self.good, self.gone_since, self.conflist) = (None, None, Guard::default());
        for path in ours {
            match files::remove(&path).and_then(|_| files::sync(&self.options.conf_dir)) {
                Ok(()) => {
                    Event { file: Some(&path), ..Event::warn("the primary's configuration is gone: ours was removed") }
                        .say()
                }
                Err(error) => {
                    let reason = error.to_string();
                    Event { file: Some(&path), reason: Some(&reason), ..Event::error("can not be removed") }.say();
                    return RETRY;
                }
            }
        }
        Duration::ZERO // to say that we wait
    }

    /// Cilium renames configurations that are not its own, so that the runtime passes them over.
    fn notice_cilium(&mut self) {
        for name in OURS {
            let path = self.options.conf_dir.join(format!("{name}{CILIUM}"));
            if files::remove(&path).unwrap_or_default() {
                Event {
                    file: Some(&path),
                    reason: Some(
                        "Cilium removes other components' configurations; pods that start meanwhile are not redirected \
                         until they are repaired: set cni.exclusive=false in Cilium's Helm values",
                    ),
                    ..Event::warn("another component renamed our configuration")
                }
                .say();
            }
        }
    }
}

/// Where the plugin, which runs on the node itself, notes what it said already.
fn state_dir(options: &Options) -> PathBuf {
    options.host_cache_dir.join(PLUGIN)
}

/// Compares the plugin's file with this program. The stamp is of before, so that a change meanwhile is not overlooked.
fn compare_binary(path: &Path) -> Result<Stamp, String> {
    let (file, data) = match files::open(path, false) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("it is missing".into()),
        Err(error) => return Err(format!("it can not be read ({error})")),
    };
    let mode = data.mode() & 0o7777;
    if mode != MODE {
        return Err(format!("its permissions are {mode:o}, not {MODE:o}"));
    }
    match File::open(OWN_BYTES).and_then(|own| files::same(own, file)) {
        Ok(true) => Ok(Stamp::of(&data)),
        Ok(false) => Err("its bytes are not this version's".into()),
        Err(error) => Err(format!("it can not be compared ({error})")),
    }
}

/// What is wrong with our configuration.
fn conflist_fault(folder: &Path, wanted: &Wanted) -> Option<String> {
    let (file, data) = match files::open(&folder.join(wanted.name), false) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some("it is missing".into()),
        Err(error) => return Some(format!("it can not be read ({error})")),
    };
    let mode = data.mode() & 0o7777;
    if mode != wanted.mode {
        return Some(format!("its permissions are {mode:o}, not {:o}", wanted.mode));
    }
    match files::same(wanted.bytes.as_slice(), file) {
        Ok(true) => None,
        Ok(false) => Some("its content is not the primary's chain with our entry".into()),
        Err(error) => Some(format!("it can not be compared ({error})")),
    }
}

/// Is everything in place? Else one line why not.
pub(super) fn check(options: &Options) -> Result<(), String> {
    let binary = options.bin_dir.join(PLUGIN);
    compare_binary(&binary).map_err(|reason| format!("the plugin {} is not in place: {reason}", binary.display()))?;
    let folder = &options.conf_dir;
    match primary::find(folder, &state_dir(options)) {
        Err(error) => Err(format!("{} can not be read: {error}", folder.display())),
        Ok(Found::Nothing) => Err(format!("no network plugin has put its configuration into {} yet", folder.display())),
        Ok(Found::Bad { primary, reason }) => {
            Err(format!("the primary's configuration {primary} can not be used: {reason}"))
        }
        Ok(Found::Good(wanted)) => match conflist_fault(folder, &wanted) {
            Some(reason) => {
                Err(format!("the configuration {} is not in place: {reason}", folder.join(wanted.name).display()))
            }
            None => match OURS
                .iter()
                .map(|name| folder.join(name))
                .find(|path| *path != folder.join(wanted.name) && path.exists())
            {
                Some(other) => Err(format!("{} is there as well: the agent takes it away", other.display())),
                None => Ok(()),
            },
        },
    }
}
