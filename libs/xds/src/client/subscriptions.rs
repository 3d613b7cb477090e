//! The names that are asked for: changed from any thread without waiting, read by the client's task.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::NameRef;
use crate::{Kind, MAX_NAME_BYTES};

/// Most names that a client asks for at a time, of all kinds together.
pub const MAX_SUBSCRIPTIONS: usize = 65_536;

/// Handle to the names that a client asks for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Subscriptions(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    names: Mutex<Names>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Names {
    /// With the number of the wish: a name that was given up and asked for again must be answered again.
    wanted: Wanted,
    wishes: u64,
    /// Names that were touched since the client last looked; kept only while there is a stream.
    touched: HashSet<(Kind, NameRef)>,
    connected: bool,
}

/// All names that are wanted, with the numbers of their wishes.
pub(super) type Wanted = HashMap<(Kind, NameRef), u64>;
/// What changed: names, and the number of the wish if they are wanted now.
pub(super) type Changes = Vec<(Kind, NameRef, Option<u64>)>;

impl Subscriptions {
    /// Asks for a name; a name that is asked for already is left alone. Does not wait. False where the name is longer than
    /// [`MAX_NAME_BYTES`] or [`MAX_SUBSCRIPTIONS`] names are asked for.
    pub fn add(&self, kind: Kind, name: impl Into<Arc<str>>) -> bool {
        let name = name.into();
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return false;
        }
        let mut names = self.lock();
        let key = (kind, name);
        if names.wanted.contains_key(&key) {
            return true;
        }
        if names.wanted.len() >= MAX_SUBSCRIPTIONS {
            return false;
        }
        names.wishes += 1;
        let wish = names.wishes;
        names.wanted.insert(key.clone(), wish);
        self.touch(names, key);
        true
    }

    /// Asks no longer for a name. Does not wait.
    pub fn remove(&self, kind: Kind, name: impl Into<Arc<str>>) {
        let mut names = self.lock();
        let key = (kind, name.into());
        if names.wanted.remove(&key).is_some() {
            self.touch(names, key);
        }
    }

    /// Number of names that are asked for.
    pub fn len(&self) -> usize {
        self.lock().wanted.len()
    }

    /// True where no name is asked for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn touch(&self, mut names: MutexGuard<'_, Names>, key: (Kind, NameRef)) {
        if names.connected {
            names.touched.insert(key);
            drop(names);
            self.0.changed.notify_one();
        }
    }

    pub(super) fn changed(&self) -> Arc<Notify> {
        self.0.changed.clone()
    }

    /// A stream begins: all names that are wanted now; later changes are kept.
    pub(super) fn connected(&self) -> Wanted {
        let mut names = self.lock();
        names.connected = true;
        names.touched.clear();
        names.wanted.clone()
    }

    pub(super) fn disconnected(&self) {
        let mut names = self.lock();
        names.connected = false;
        names.touched = HashSet::new();
    }

    pub(super) fn take_changes(&self) -> Changes {
        let mut names = self.lock();
        let touched = std::mem::take(&mut names.touched);
        touched
            .into_iter()
            .map(|key| {
                let wanted = names.wanted.get(&key).copied();
                (key.0, key.1, wanted)
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        // Nothing panics while it is held; if it did, the sets are whole.
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
