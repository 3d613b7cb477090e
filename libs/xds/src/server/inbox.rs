//! Names whose resources may have changed, for one stream.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::Kind;

/// Names whose resources may have changed, for one stream. Each name is kept once, however often it changes.
#[derive(Debug, Default)]
pub struct Inbox {
    changed: Mutex<Changed>,
    wake: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) names: HashSet<(Kind, Arc<str>)>,
    /// When the oldest of the changes was signalled.
    pub(super) since: Option<Instant>,
}

impl Inbox {
    /// The resources of these names may have changed. Does not wait.
    pub fn changed(&self, names: impl IntoIterator<Item = (Kind, Arc<str>)>) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.names.extend(names);
        changed.since.get_or_insert_with(Instant::now);
        drop(changed);
        self.wake.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn take(&self) -> Changed {
        mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
