//! Waits for what the agent must look at: changes in its folders, time, or its end. Blocking, on one thread.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// Everything by which a name or a content can change. Which of it matters is decided by [`Names`].
const CHANGES: [AddWatchFlags; 8] = [
    AddWatchFlags::IN_MODIFY,
    AddWatchFlags::IN_CLOSE_WRITE,
    AddWatchFlags::IN_ATTRIB,
    AddWatchFlags::IN_CREATE,
    AddWatchFlags::IN_DELETE,
    AddWatchFlags::IN_MOVE,
    AddWatchFlags::IN_DELETE_SELF,
    AddWatchFlags::IN_MOVE_SELF,
];

/// Which names of a folder matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// All; a file that is written to matters when it is closed, but one of these at once.
    All(&'static [&'static str]),
    /// This one alone.
    Only(&'static str),
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Something changed, or the time is over.
    Look,
    /// SIGTERM or SIGINT.
    Stop,
}

struct Watch {
    descriptor: WatchDescriptor,
    folder: (u64, u64),
    names: Names,
}

pub(super) struct Watcher {
    /// None where the node has no more inotify instances (fs.inotify.max_user_instances): then time alone wakes.
    inotify: Option<Inotify>,
    signals: SignalFd,
    watches: HashMap<PathBuf, Watch>,
}

impl Watcher {
    /// From here on SIGTERM and SIGINT end a wait instead of the process.
    pub(super) fn new() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        Ok(Self {
            inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok(),
            signals: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            watches: HashMap::new(),
        })
    }

    /// Watches a folder, also one that took the place of the one watched before. True if its changes will wake.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub(super) fn watch(&mut self, folder: &Path, names: Names) -> io::Result<bool> {
        let data = match fs::metadata(folder) {
            // A folder that was deleted under a mount still has a name, but nothing can be put into it any more.
            Ok(data) if data.nlink() == 0 => Err(io::Error::from(io::ErrorKind::NotFound)),
            other => other,
        };
        let Some(inotify) = &self.inotify else { return data.map(|_| false) };
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                if let Some(old) = self.watches.remove(folder) {
                    let _ = inotify.rm_watch(old.descriptor); // gone with its folder
                }
                return Err(error);
            }
        };
        let identity = (data.dev(), data.ino());
        if self.watches.get(folder).is_some_and(|watch| watch.folder == identity) {
            return Ok(true);
        }
        if let Some(old) = self.watches.remove(folder) {
            let _ = inotify.rm_watch(old.descriptor);
        }
        let mask = AddWatchFlags::from_iter(CHANGES) | AddWatchFlags::IN_ONLYDIR;
        let Ok(descriptor) = inotify.add_watch(folder, mask) else { return Ok(false) };
        self.watches.insert(folder.to_owned(), Watch { descriptor, folder: identity, names });
        Ok(true)
    }

    /// Waits for a change that matters, `limit` at most.
    pub(super) fn wait(&mut self, limit: Duration) -> io::Result<Wake> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up, or the last part of a millisecond would be spent in a circle.
            let millis = left.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let mut files = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if let Some(inotify) = &self.inotify {
                files.push(PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut files, timeout) {
                Ok(0) => return Ok(Wake::Look),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if self.signals.read_signal()?.is_some() {
                return Ok(Wake::Stop);
            }
            if self.drain()? {
                return Ok(Wake::Look);
            }
        }
    }

    /// Reads all events that are there. True if one of them matters.
    fn drain(&mut self) -> io::Result<bool> {
        let Some(inotify) = &self.inotify else { return Ok(false) };
        let mut matters = false;
        loop {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(matters),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watches.retain(|_, watch| watch.descriptor != event.wd);
                }
                let names = self.watches.values().find(|watch| watch.descriptor == event.wd).map(|watch| watch.names);
                matters |= relevant(names, event.name.as_deref(), event.mask);
            }
        }
    }
}

fn relevant(names: Option<Names>, name: Option<&OsStr>, mask: AddWatchFlags) -> bool {
    match (names, name) {
        // The folder itself, or events that were lost.
        (None, _) | (_, None) => true,
        (Some(Names::Only(only)), Some(name)) => name == only,
        (Some(Names::All(_)), Some(_)) if mask != AddWatchFlags::IN_MODIFY => true,
        (Some(Names::All(at_once)), Some(name)) => at_once.iter().any(|known| name == *known),
    }
}
