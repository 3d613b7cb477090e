//! Objects whose status is written, and what is needed to write it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use weir_config::model::Origin;

use super::{policy::PolicyFacts, route::RouteFacts};

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    /// Every route that names a Service, accepted or not.
    pub(in crate::kubernetes) routes: Arc<Book<RouteFacts>>,
    /// Every policy, accepted or not.
    pub(in crate::kubernetes) policies: Arc<Book<PolicyFacts>>,
}

impl Books {
    pub(crate) fn new() -> Self {
        Self { routes: Arc::new(Book::new()), policies: Arc::new(Book::new()) }
    }
}

/// Objects by name.
#[derive(Debug)]
pub(in crate::kubernetes) struct Book<F> {
    facts: Mutex<HashMap<Origin, F>>,
    changes: watch::Sender<()>,
}

impl<F: PartialEq> Book<F> {
    fn new() -> Self {
        Self { facts: Mutex::default(), changes: watch::Sender::new(()) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Origin, F>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Takes what an object is now; `None` where it is gone, or none of ours.
    pub(in crate::kubernetes) fn set(&self, name: &Origin, facts: Option<F>) {
        let mut all = self.lock();
        let changed = match facts {
            Some(facts) if all.get(name) == Some(&facts) => false,
            Some(facts) => {
                all.insert(name.clone(), facts);
                true
            }
            None => all.remove(name).is_some(),
        };
        drop(all);
        if changed {
            self.changes.send_replace(());
        }
    }
}
