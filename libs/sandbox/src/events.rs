//! What happened in a sandbox: kept for `status`, and on disk for whoever looks after it has ended.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::util::{rfc3339, unix_now};

/// Events kept in memory.
const KEPT: usize = 2000;
/// Size of the file at which nothing more is written to it, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339.
    pub time: String,
    /// Whether a person should look at it.
    pub warning: bool,
    /// Kind, namespace and name of the object it is about.
    pub object: String,
    /// One word, as Kubernetes has them.
    pub reason: String,
    /// What happened.
    pub message: String,
}

/// All events of a sandbox.
#[derive(Debug, Clone)]
pub struct Events {
    inner: Arc<Mutex<Inner>>,
    live: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Inner {
    kept: Vec<Event>,
    file: Option<File>,
    written: u64,
}

impl Events {
    /// Events that are also written to a file, one JSON object a line.
    pub fn new(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).ok();
        let (live, _) = broadcast::channel(256);
        Self { inner: Arc::new(Mutex::new(Inner { kept: Vec::new(), file, written: 0 })), live }
    }

    /// Something went as it should.
    pub fn normal(&self, object: &str, reason: &str, message: impl Into<String>) {
        self.add(false, object, reason, message.into());
    }

    /// Something that a person should look at.
    pub fn warning(&self, object: &str, reason: &str, message: impl Into<String>) {
        self.add(true, object, reason, message.into());
    }

    fn add(&self, warning: bool, object: &str, reason: &str, message: String) {
        let event =
            Event { time: rfc3339(unix_now()), warning, object: object.to_owned(), reason: reason.to_owned(), message };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // The same again, such as an admission that is tried once more, says nothing new.
        let repeated = inner.kept.iter().rev().take(20).any(|last| {
            last.warning
                && (&last.object, &last.reason, &last.message) == (&event.object, &event.reason, &event.message)
        });
        if repeated {
            return;
        }
        if inner.kept.len() >= KEPT {
            inner.kept.drain(..KEPT / 10);
        }
        if let Ok(mut line) = serde_json::to_vec(&event)
            && inner.written < MAX_FILE
        {
            line.push(b'\n');
            inner.written = inner.written.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
            if let Some(file) = &mut inner.file {
                let _ = file.write_all(&line);
            }
        }
        inner.kept.push(event.clone());
        drop(inner);
        // Nobody has to listen.
        let _ = self.live.send(event);
    }

    /// Everything kept, oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).kept.clone()
    }

    /// Everything from now on.
    pub fn follow(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }
}
