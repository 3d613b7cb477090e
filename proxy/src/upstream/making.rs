//! Connections to one endpoint that are being made at the same time: only so many.
//!
//! After a moment in which nothing went, hundreds of requests want a connection at once. Were each to make its own, all handshakes
//! would share the processor, none would end in time, and all that work would be thrown away and begun again. The others wait: for
//! room, or for a connection that another request has finished with, which mostly comes first.

use std::{cell::RefCell, hash::Hash, rc::Rc};

use rustc_hash::FxHashMap;
use tokio::sync::Notify;

/// At once, for one endpoint and worker. A worker can not do more handshakes than one at a time; the rest of these are on their way.
pub(super) const AT_ONCE: usize = 16;

/// Who is making connections to where, for one worker.
pub(super) struct Making<K> {
    all: RefCell<FxHashMap<K, Under>>,
    at_once: usize,
}

#[derive(Default)]
struct Under {
    count: usize,
    /// Who waits although nobody makes any.
    waiting: usize,
    freed: Rc<Notify>,
}

impl<K> Default for Making<K> {
    fn default() -> Self {
        Self::at_once(AT_ONCE)
    }
}

/// Room for one connection that is being made.
pub struct Room<'a, K: Copy + Eq + Hash> {
    making: &'a Making<K>,
    key: K,
}

impl<K> Making<K> {
    /// So many for one key.
    pub(super) fn at_once(at_once: usize) -> Self {
        Self { all: RefCell::default(), at_once }
    }
}

impl<K: Copy + Eq + Hash> Making<K> {
    /// Room for another connection, where there is some.
    pub(super) fn enter(&self, key: K) -> Option<Room<'_, K>> {
        let mut all = self.all.borrow_mut();
        let under = all.entry(key).or_default();
        if under.count >= self.at_once {
            return None;
        }
        under.count += 1;
        Some(Room { making: self, key })
    }

    /// Ready when there may be room, or a connection, for one who waits. At once where nobody is making any.
    pub(super) async fn freed(&self, key: K) {
        let freed = self.all.borrow().get(&key).map(|under| under.freed.clone());
        if let Some(freed) = freed {
            freed.notified().await;
        }
    }

    /// Ready when there may be a connection, also where nobody is making any.
    pub(super) async fn given(&self, key: K) {
        let freed = {
            let mut all = self.all.borrow_mut();
            let under = all.entry(key).or_default();
            under.waiting += 1;
            under.freed.clone()
        };
        let _waits = Waits { making: self, key };
        freed.notified().await;
    }

    /// How many wait although nobody makes any.
    pub(super) fn waiting(&self, key: K) -> usize {
        self.all.borrow().get(&key).map_or(0, |under| under.waiting)
    }

    /// A connection is free: one who waits may have it.
    pub(super) fn tell_one(&self, key: K) {
        if let Some(under) = self.all.borrow().get(&key) {
            under.freed.notify_one();
        }
    }
}

struct Waits<'a, K: Copy + Eq + Hash> {
    making: &'a Making<K>,
    key: K,
}

impl<K: Copy + Eq + Hash> Drop for Waits<'_, K> {
    fn drop(&mut self) {
        let mut all = self.making.all.borrow_mut();
        let Some(under) = all.get_mut(&self.key) else { return };
        under.waiting = under.waiting.saturating_sub(1);
        if under.count == 0 && under.waiting == 0 {
            all.remove(&self.key);
        }
    }
}

impl<K: Copy + Eq + Hash> Drop for Room<'_, K> {
    fn drop(&mut self) {
        let mut all = self.making.all.borrow_mut();
        let Some(under) = all.get_mut(&self.key) else { return };
        under.count = under.count.saturating_sub(1);
        under.freed.notify_one();
        if under.count == 0 {
            // Nobody is left who would tell the others.
            under.freed.notify_waiters();
            if under.waiting == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use tokio::{task::LocalSet, time::timeout};

    use super::*;

    #[tokio::test]
    async fn no_more_than_so_many_at_once_and_everybody_comes_to_it() {
        let making = Rc::new(Making::<u8>::default());
        let (now, most, done) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let local = LocalSet::new();
        for _ in 0..500 {
            let (making, now, most, done) = (making.clone(), now.clone(), most.clone(), done.clone());
            local.spawn_local(async move {
                let room = loop {
                    match making.enter(1) {
                        Some(room) => break room,
                        None => making.freed(1).await,
                    }
                };
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                tokio::task::yield_now().await;
                now.set(now.get() - 1);
                done.set(done.get() + 1);
                drop(room);
            });
        }
        timeout(Duration::from_secs(10), local).await.unwrap();
        assert_eq!((done.get(), most.get()), (500, AT_ONCE));
        assert!(making.all.borrow().is_empty(), "nothing is kept of it");
    }

    #[tokio::test]
    async fn who_waits_for_a_given_one_leaves_nothing_behind() {
        let making = Making::<u8>::default();
        assert!(timeout(Duration::from_millis(20), making.given(1)).await.is_err());
        assert!(making.all.borrow().is_empty());
        let (waited, ()) = tokio::join!(timeout(Duration::from_secs(5), making.given(1)), async {
            while making.waiting(1) == 0 {
                tokio::task::yield_now().await;
            }
            drop(making.enter(1));
            making.tell_one(1);
        });
        waited.unwrap();
        assert!(making.all.borrow().is_empty());
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_free_connection_and_others_are_not_in_the_way() {
        let making = Making::<u8>::default();
        let rooms: Vec<_> = (0..AT_ONCE).map(|_| making.enter(1).unwrap()).collect();
        assert!(making.enter(1).is_none() && making.enter(2).is_some());
        assert!(timeout(Duration::from_millis(20), making.freed(1)).await.is_err());
        making.tell_one(1);
        timeout(Duration::from_secs(5), making.freed(1)).await.unwrap();
        drop(rooms);
        timeout(Duration::from_secs(5), making.freed(1)).await.unwrap();
    }
}
