//! One object by its name, as it is now.

use std::fmt::Debug;

use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::{sync::watch as state, task::JoinHandle};

use super::watch::{Event, Prompt, What, follow};

/// What is known of an object.
#[derive(Debug, Clone)]
pub(super) enum Seen<K> {
    /// Nothing yet.
    Unknown,
    /// It is not there.
    Absent,
    /// It is there.
    There(K),
}

/// Follows one object until dropped.
#[derive(Debug)]
pub(super) struct One<K> {
    seen: state::Receiver<Seen<K>>,
    task: JoinHandle<()>,
}

impl<K> Drop for One<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> One<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    pub(super) fn follow(api: Api<K>, name: &'static str) -> Self {
        let (sender, seen) = state::channel(Seen::Unknown);
        let task = tokio::spawn(async move {
            let mut found = false;
            let mut troubled = false;
            let listener = Prompt(move |event| {
                match event {
                    Event::Begin => found = false,
                    Event::There(object) => {
                        found = true;
                        sender.send_replace(Seen::There(object));
                    }
                    Event::Complete if found => {}
                    Event::Gone(_) | Event::Complete | Event::Absent => {
                        sender.send_replace(Seen::Absent);
                    }
                    // Said once until it goes well again.
                    Event::Failed(reason) => {
                        if !std::mem::replace(&mut troubled, true) {
                            tracing::warn!(name, reason, "an object can not be watched; trying again");
                        }
                        return !sender.is_closed();
                    }
                }
                troubled = false;
                !sender.is_closed()
            });
            follow(api, What::named(name), listener).await;
        });
        Self { seen, task }
    }

    /// Waits for a change, or for the first news.
    pub(super) async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The object as it is now.
    pub(super) fn now(&mut self) -> Seen<K> {
        self.seen.borrow_and_update().clone()
    }
}
