//! A folder of manifests as the source.
//!
//! Files `*.yaml`, `*.yml` and `*.json`, without sub-folders; names that start with a dot are passed over (temporary files). A
//! file that does not parse keeps its last good objects, and its problems are told; where only access rules can not be accepted,
//! these are closed at once, as they would be after a restart. An object in two files is taken from the
//! first by name. inotify says what changed; every 30 s everything is looked at again, for file systems that say nothing.
//!
//! What a file holds that has never parsed is not known, so nothing may be called absent: `Synced` waits until every file that
//! is there has parsed once, or is gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use inotify::{EventMask, Inotify, WatchMask};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::StreamExt as _;
use weir_config::{FieldPath, MAX_FILE_BYTES, Problem};

use super::{Batch, Change, Item, ItemRef, Source};

/// Quiet time after which changes are read, so that what is written together takes effect together.
const QUIET: Duration = Duration::from_millis(10);
/// Longest time that changes wait for quiet.
const PATIENCE: Duration = Duration::from_millis(100);
/// Everything is looked at again after this time.
const RESCAN: Duration = Duration::from_secs(30);
/// Bytes for inotify's events: 256 events with the longest names.
const EVENT_BUFFER: usize = 256 * 272;

/// A folder of manifests.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    events: Option<Inotify>,
    files: BTreeMap<PathBuf, File>,
    /// Which files hold an object.
    holders: HashMap<ItemRef, BTreeSet<PathBuf>>,
    /// The folder was listed at least once.
    listed: bool,
    start: Start,
}

/// How far the first reading is.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// Not done: this holds it up.
    Held(Vec<String>),
    /// `Synced` was told.
    Done,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// Last good content.
    items: HashMap<ItemRef, Item>,
    parsed_once: bool,
    /// What is wrong with it now: its first problem.
    trouble: Option<String>,
}

/// Changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What to look at.
enum Look {
    All,
    At(BTreeSet<PathBuf>),
}

impl Directory {
    /// Opens a folder.
    ///
    /// # Errors
    /// Where it is no folder, or can not be watched.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        std::fs::read_dir(path).with_context(|| format!("--config-dir {}: make the folder first", path.display()))?;
        let events = Inotify::init().context("inotify: raise fs.inotify.max_user_instances")?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        events
            .watches()
            .add(path, mask)
            .with_context(|| format!("--config-dir {}: can not be watched", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            events: Some(events),
            files: BTreeMap::new(),
            holders: HashMap::new(),
            listed: false,
            start: Start::Held(Vec::new()),
        })
    }

    /// Looks, and gives what differs from before.
    fn look(&mut self, look: Look) -> Batch {
        let mut batch = Batch::new();
        let look = if self.listed { look } else { Look::All };
        let all = matches!(look, Look::All);
        // What inotify names is read in any case: two writes within the clock's grain look alike.
        let surely = matches!(look, Look::At(_));
        let paths: BTreeSet<PathBuf> = match look {
            Look::At(paths) => paths,
            Look::All => match list(&self.path) {
                Ok(paths) => {
                    self.listed = true;
                    paths.into_iter().chain(self.files.keys().cloned()).collect()
                }
                Err(error) => {
                    tracing::error!(dir = %self.path.display(), %error, "the folder can not be read: everything stays as it was");
                    self.begin(vec![format!("{}: {error}", self.path.display())], all, &mut batch);
                    return batch;
                }
            },
        };
        for path in paths {
            self.read(&path, surely, &mut batch);
        }
        let unread = self.files.values().filter(|file| !file.parsed_once).filter_map(|file| file.trouble.clone());
        self.begin(unread.collect(), all, &mut batch);
        batch
    }

    /// Says that everything is read, or what holds that up: whenever it changes, and again each time that all is looked at.
    fn begin(&mut self, unread: Vec<String>, again: bool, batch: &mut Batch) {
        let Start::Held(before) = &self.start else { return };
        if unread.is_empty() {
            tracing::info!(dir = %self.path.display(), files = self.files.len(), "manifests read");
            self.start = Start::Done;
            batch.push(Change::Synced);
            return;
        }
        let differs = *before != unread;
        if differs || again {
            for problem in &unread {
                tracing::error!(
                    "NOT READY, proxies are not answered and keep what they have: {problem}: mend this file or remove it"
                );
            }
        }
        if differs {
            batch.push(Change::Held(unread.clone()));
            self.start = Start::Held(unread);
        }
    }

    fn read(&mut self, path: &Path, surely: bool, batch: &mut Batch) {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        let known = self.files.get(path).and_then(|file| file.stamp).filter(|_| !surely);
        match load(path, known) {
            Load::Same => {}
            Load::Gone => {
                if let Some(file) = self.files.remove(path) {
                    tracing::info!(file = name, objects = file.items.len(), "removed");
                    if file.trouble.is_some() {
                        batch.push(Change::Problems(name, Vec::new()));
                    }
                    self.replace(path, file.items, HashMap::new(), batch);
                }
            }
            Load::Bad(stamp, problems) => {
                let file = self.files.entry(path.to_owned()).or_default();
                file.stamp = stamp;
                file.trouble = Some(problems.first().map_or_else(|| name.clone(), ToString::to_string));
                for problem in &problems {
                    tracing::error!(file = name, kept = file.items.len(), "{problem}");
                }
                batch.push(Change::Problems(name, problems));
            }
            Load::Good(stamp, items, problems) => {
                let file = self.files.entry(path.to_owned()).or_default();
                file.stamp = Some(stamp);
                file.parsed_once = true;
                let had = file.trouble.take().is_some();
                file.trouble = problems.first().map(ToString::to_string);
                if had && problems.is_empty() {
                    tracing::info!(file = name, "mended");
                }
                for problem in &problems {
                    tracing::error!(file = name, "{problem}: the rule is closed");
                }
                if had || !problems.is_empty() {
                    batch.push(Change::Problems(name, problems));
                }
                let old = std::mem::replace(&mut file.items, items.clone());
                self.replace(path, old, items, batch);
            }
        }
    }

    /// A file's content has changed: tells what this does to objects, of which other files may have a copy.
    fn replace(&mut self, path: &Path, old: HashMap<ItemRef, Item>, new: HashMap<ItemRef, Item>, batch: &mut Batch) {
        let touched: BTreeSet<&ItemRef> = old.keys().chain(new.keys()).collect();
        for reference in touched {
            let holders = self.holders.entry(reference.clone()).or_default();
            let before = holders.first().cloned();
            if new.contains_key(reference) {
                holders.insert(path.to_owned());
            } else {
                holders.remove(path);
            }
            let after = holders.first().cloned();
            if holders.len() > 1 && new.contains_key(reference) {
                let files: Vec<String> = holders.iter().map(|path| path.display().to_string()).collect();
                tracing::error!(object = %reference, ?files, "is in several files: the first is taken");
            }
            let Some(after) = after else {
                self.holders.remove(reference);
                batch.push(Change::Delete(reference.clone()));
                continue;
            };
            let was = if before.as_deref() == Some(path) {
                old.get(reference)
            } else {
                before.as_ref().and_then(|path| self.item(path, reference))
            };
            let is = if after == path { new.get(reference) } else { self.item(&after, reference) };
            if let Some(item) = is
                && was != Some(item)
            {
                batch.push(Change::Apply(item.clone()));
            }
        }
    }

    fn item(&self, path: &Path, reference: &ItemRef) -> Option<&Item> {
        self.files.get(path)?.items.get(reference)
    }
}

impl Source for Directory {
    async fn run(mut self, batches: mpsc::Sender<Batch>) {
        let first = self.look(Look::All);
        if batches.send(first).await.is_err() {
            return;
        }
        let events = self.events.take().map(|events| events.into_event_stream(vec![0; EVENT_BUFFER]));
        let events = match events {
            Some(Ok(events)) => events,
            Some(Err(error)) => {
                tracing::error!(%error, "inotify: changes are seen every 30 s only");
                return self.poll(batches).await;
            }
            None => return self.poll(batches).await,
        };
        tokio::pin!(events);
        loop {
            let mut changed = Changed::default();
            tokio::select! {
                event = events.next() => changed.note(&self.path, event),
                () = tokio::time::sleep(RESCAN) => changed.all = true,
                () = batches.closed() => return,
            }
            let patience = Instant::now() + PATIENCE;
            while let Ok(event) = tokio::time::timeout_at(patience.min(Instant::now() + QUIET), events.next()).await {
                changed.note(&self.path, event);
                if changed.ended || Instant::now() >= patience {
                    break;
                }
            }
            if changed.ended {
                tracing::error!("inotify ended: changes are seen every 30 s only");
                return self.poll(batches).await;
            }
            let batch = self.look(if changed.all { Look::All } else { Look::At(changed.paths) });
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return;
            }
        }
    }
}

impl Directory {
    /// Without inotify.
    async fn poll(mut self, batches: mpsc::Sender<Batch>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RESCAN) => {}
                () = batches.closed() => return,
            }
            let batch = self.look(Look::All);
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return;
            }
        }
    }
}

#[derive(Default)]
struct Changed {
    paths: BTreeSet<PathBuf>,
    all: bool,
    ended: bool,
}

impl Changed {
    fn note(&mut self, dir: &Path, event: Option<std::io::Result<inotify::EventOwned>>) {
        match event {
            None => self.ended = true,
            Some(Err(error)) => {
                tracing::warn!(%error, "inotify: everything is looked at");
                self.all = true;
            }
            Some(Ok(event)) => match event.name {
                // Mounted ConfigMaps swap the link `..data`: all names stay, all contents change.
                Some(name) if name.to_string_lossy().starts_with("..") => self.all = true,
                Some(name) if is_manifest(&name) => {
                    self.paths.insert(dir.join(name));
                }
                Some(_) => {}
                None => {
                    if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                        tracing::error!(dir = %dir.display(), "the folder was removed: everything stays as it was; a new one is looked at every 30 s");
                    }
                    self.all = true;
                }
            },
        }
    }
}

fn is_manifest(name: &OsStr) -> bool {
    let path = Path::new(name);
    let hidden = name.to_string_lossy().starts_with('.');
    !hidden && path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if is_manifest(&entry.file_name()) {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

enum Load {
    Same,
    Gone,
    Bad(Option<Stamp>, Vec<Problem>),
    /// All objects are known; what is wrong is in access rules, which are closed.
    Good(Stamp, HashMap<ItemRef, Item>, Vec<Problem>),
}

fn load(path: &Path, known: Option<Stamp>) -> Load {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let whole = |message: String| {
        vec![Problem { file: name.into(), document: 0, line: 0, object: None, field: FieldPath::root(), message }]
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Load::Gone,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Load::Gone,
        Err(error) => return Load::Bad(None, whole(error.to_string())),
    };
    let stamp =
        Stamp { inode: metadata.ino(), size: metadata.size(), modified: (metadata.mtime(), metadata.mtime_nsec()) };
    if known == Some(stamp) {
        return Load::Same;
    }
    // One byte more than is allowed: the parser says that it is too much.
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = String::new();
    if let Err(error) = std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)) {
        return Load::Bad(Some(stamp), whole(error.to_string()));
    }
    let read = weir_config::parse_stored(name, &text);
    if read.is_whole {
        let items = read.manifests.iter().filter_map(|manifest| Item::of(&manifest.object));
        Load::Good(stamp, items.map(|item| (item.reference(), item)).collect(), read.problems)
    } else {
        Load::Bad(Some(stamp), read.problems)
    }
}
