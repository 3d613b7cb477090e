//! Repairs mesh pods that started without the plugin: those with capture settings in the runtime's notes and without our rules
//! in their namespace.
//!
//! Rules that are there stay as they are, also where this version would make others: a pod keeps what it started with.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use weir_init::{Applied, RuleSet, rules::Kind};
use weir_mesh::{CaptureSettings, names::CAPTURE_ANNOTATION};

use super::{
    cache::{self, Annotations, Attachment},
    files::{self, Stamp},
    netns::{self, Id, Refused},
    options::Options,
};
use crate::{config::NoAnnotations, log::Event};

/// Notes that are remembered; a node has at most a few hundred pods, with two or three notes each.
const MAX_NOTES: usize = 8192;
/// How long a note may be broken before it is complained about: the runtime may not have ended writing it.
const PATIENCE: Duration = Duration::from_secs(1);
/// When to try again what failed.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether a pod's namespace is still the one that was looked at.
const AGAIN: Duration = Duration::from_secs(30);

struct Note {
    stamp: Stamp,
    since: Instant,
    read: Result<Attachment, String>,
    said: bool,
}

/// What is known of a pod, by its sandbox.
struct Known {
    id: Option<Id>,
    looked: Instant,
    failure: Option<String>,
}

/// What was found in a pod's namespace.
enum Redirect {
    Whole,
    Different(String),
    Repaired(Applied),
}

/// All attachments of one sandbox.
#[derive(Default)]
struct Sandbox<'a> {
    capture: Option<&'a str>,
    pod: Option<&'a str>,
    namespaces: HashSet<&'a str>,
}

pub(super) struct Healer<'a> {
    options: &'a Options,
    notes: HashMap<PathBuf, Note>,
    known: HashMap<String, Known>,
    said_absent: bool,
    said_many: bool,
}

impl<'a> Healer<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self { options, notes: HashMap::new(), known: HashMap::new(), said_absent: false, said_many: false }
    }

    /// Looks at what is new, and repairs. Returns when to look again at the latest.
    pub(super) fn heal(&mut self, now: Instant) -> Duration {
        let mut next = self.read_notes(now);
        self.say_absent();
        let notes = std::mem::take(&mut self.notes);
        let sandboxes = sandboxes(&notes);
        self.known.retain(|container, _| sandboxes.contains_key(container.as_str()));
        let shared = shared(&sandboxes);
        for (container, sandbox) in &sandboxes {
            let Some(capture) = sandbox.capture else { continue };
            let pod = sandbox.pod.unwrap_or(container);
            if let Some(known) = self.known.get(*container) {
                let wait = if known.failure.is_some() { RETRY } else { AGAIN };
                let left = wait.saturating_sub(now.saturating_duration_since(known.looked));
                if !left.is_zero() {
                    next = next.min(left);
                    continue;
                }
            }
            let (id, failure) = self.look(container, pod, capture, sandbox, &shared);
            if let Some(reason) = &failure {
                next = next.min(RETRY);
                if self.known.get(*container).and_then(|known| known.failure.as_ref()) != Some(reason) {
                    Event { pod: Some(pod), reason: Some(reason), ..Event::error("redirect can not be repaired") }
                        .say();
                }
            }
            self.known.insert((*container).to_owned(), Known { id, looked: now, failure });
        }
        self.notes = notes;
        next
    }

    /// One pod: which namespace it has, and why it could not be looked at or repaired.
    fn look(
        &self,
        container: &str,
        pod: &str,
        capture: &str,
        sandbox: &Sandbox<'_>,
        shared: &HashSet<&OsStr>,
    ) -> (Option<Id>, Option<String>) {
        let mut namespaces = sandbox.namespaces.iter();
        let noted = match (namespaces.next(), namespaces.next()) {
            (Some(one), None) => *one,
            (None, _) => return (None, Some("the runtime noted no network namespace for it: restart the pod".into())),
            _ => return (None, Some("the runtime noted several network namespaces for it: restart the pod".into())),
        };
        if Path::new(noted).file_name().is_some_and(|name| shared.contains(name)) {
            return (None, Some(format!("{noted} is noted for another pod as well, with other settings")));
        }
        let held = match netns::open(noted, &self.options.host_netns_dirs, &self.options.netns_dir) {
            Ok(held) => held,
            // The pod has ended; its note goes later, or, after a restart of the node, never.
            Err(Refused::Gone) => return (None, None),
            Err(reason) => return (None, Some(format!("network namespace {noted}: {reason}"))),
        };
        if self.known.get(container).is_some_and(|known| known.id == Some(held.id) && known.failure.is_none()) {
            return (Some(held.id), None);
        }
        let found = CaptureSettings::from_json(capture)
            .map_err(|error| format!("annotation {CAPTURE_ANNOTATION} can not be used: {error}"))
            .and_then(|settings| repair(&held.path(), &RuleSet::new(&settings)).map_err(|error| error.to_string()));
        let event = Event { pod: Some(pod), netns: Some(Path::new(noted)), ..Event::default() };
        match found {
            Err(reason) => return (Some(held.id), Some(reason)),
            Ok(Redirect::Whole) => {}
            Ok(Redirect::Different(reason)) => Event {
                level: "info",
                msg: "redirect is not as this version makes it: left as it is",
                reason: Some(&reason),
                ..event
            }
            .say(),
            Ok(Redirect::Repaired(applied)) => Event {
                level: "info",
                msg: "redirect repaired",
                rules: Some(applied.rules),
                elapsed_us: Some(applied.elapsed.as_micros()),
                ..event
            }
            .say(),
        }
        (Some(held.id), None)
    }

    fn say_absent(&mut self) {
        let absent = |note: &Note| match &note.read {
            Ok(attachment) => attachment.pod.is_some() && attachment.annotations == Annotations::Absent,
            Err(_) => false,
        };
        if !self.said_absent && self.notes.values().any(absent) {
            self.said_absent = true;
            let reason = format!(
                "{NoAnnotations}; until then install Weir with the redirect made by an init container (chart value \
                 redirect=init), which needs nothing of the runtime"
            );
            Event { reason: Some(&reason), ..Event::warn("mesh pods of this node can not be found") }.say();
        }
    }

    /// Reads notes that are new or have changed, and forgets those that are gone.
    fn read_notes(&mut self, now: Instant) -> Duration {
        let mut next = Duration::MAX;
        let mut seen = HashSet::new();
        let mut old = std::mem::take(&mut self.notes);
        for folder in [self.options.cache_dir.join("results"), self.options.cache_dir.join("cache/results")] {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                if seen.len() >= MAX_NOTES {
                    if !std::mem::replace(&mut self.said_many, true) {
                        let reason = format!("more than {MAX_NOTES} files: the rest is passed over");
                        Event { file: Some(&folder), reason: Some(&reason), ..Event::warn("too many notes") }.say();
                    }
                    break;
                }
                let Ok(data) = fs::symlink_metadata(&path) else { continue };
                let stamp = Stamp::of(&data);
                let mut note = match old.remove(&path) {
                    Some(note) if note.stamp == stamp => note,
                    other => {
                        let since = other.as_ref().filter(|note| note.read.is_err()).map_or(now, |note| note.since);
                        Note { stamp, since, read: read(&path), said: other.is_some_and(|note| note.said) }
                    }
                };
                if let Err(reason) = &note.read
                    && !note.said
                {
                    let left = PATIENCE.saturating_sub(now.saturating_duration_since(note.since));
                    if left.is_zero() {
                        note.said = true;
                        Event {
                            file: Some(&path),
                            reason: Some(reason),
                            ..Event::warn("a note of the runtime is passed over")
                        }
                        .say();
                    } else {
                        next = next.min(left);
                    }
                }
                seen.insert(path.clone());
                self.notes.insert(path, note);
            }
        }
        next
    }
}

/// Reads one note. It is the runtime's: a regular file that nobody but root can write.
fn read(path: &Path) -> Result<Attachment, String> {
    let text = |error: io::Error| error.to_string();
    let (file, data) = files::open(path, false).map_err(text)?;
    if data.uid() != 0 || data.mode() & 0o022 != 0 {
        return Err("others than root can write it".into());
    }
    let bytes = files::read(&file, cache::MAX_SIZE).map_err(text)?;
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("its name is no text")?;
    cache::parse(name, &bytes).map_err(|broken| broken.to_string())
}

fn sandboxes(notes: &HashMap<PathBuf, Note>) -> BTreeMap<&str, Sandbox<'_>> {
    let mut all: BTreeMap<&str, Sandbox<'_>> = BTreeMap::new();
    for attachment in notes.values().filter_map(|note| note.read.as_ref().ok()) {
        let sandbox = all.entry(&attachment.container).or_default();
        sandbox.namespaces.extend(attachment.namespaces.iter().map(String::as_str));
        sandbox.pod = sandbox.pod.or(attachment.pod.as_deref());
        // The loopback interface is noted while the chain may still be at work.
        if attachment.network
            && let Annotations::Capture(capture) = &attachment.annotations
        {
            sandbox.capture = Some(capture);
        }
    }
    all
}

/// Names of namespaces that are noted for several sandboxes which do not agree. The folder has several names itself.
fn shared<'a>(sandboxes: &BTreeMap<&str, Sandbox<'a>>) -> HashSet<&'a OsStr> {
    let (mut first, mut shared) = (HashMap::new(), HashSet::new());
    for sandbox in sandboxes.values() {
        for name in sandbox.namespaces.iter().filter_map(|namespace| Path::new(*namespace).file_name()) {
            if *first.entry(name).or_insert(sandbox.capture) != sandbox.capture {
                shared.insert(name);
            }
        }
    }
    shared
}

fn repair(netns: &Path, rules: &RuleSet) -> Result<Redirect, weir_init::Error> {
    weir_init::in_netns(netns, || match weir_init::verify_in_current_netns(rules) {
        Ok(()) => Ok(Redirect::Whole),
        Err(weir_init::Error::Differs(difference)) => {
            if missing(rules, &weir_init::show_in_current_netns()?) {
                weir_init::apply_in_current_netns(rules).map(Redirect::Repaired)
            } else {
                Ok(Redirect::Different(difference))
            }
        }
        Err(error) => Err(error),
    })
}

/// Is there a family of which nothing, or not everything, is redirected: no table, or an empty chain of those that redirect?
fn missing(want: &RuleSet, have: &RuleSet) -> bool {
    want.tables().iter().any(|table| {
        let Some(found) = have.tables().iter().find(|found| found.family == table.family) else { return true };
        table.chains.iter().filter(|chain| chain.base.is_none_or(|base| base.kind == Kind::Nat)).any(|chain| {
            !chain.rules.is_empty()
                && found.chains.iter().find(|found| found.name == chain.name).is_none_or(|found| found.rules.is_empty())
        })
    })
}
