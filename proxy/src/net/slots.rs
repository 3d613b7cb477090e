//! A bounded number of something, counted by all workers together: who has a slot has room for one.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// How many there are now. Cache lines of its own: nothing else slows down because it is written.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Slots {
    taken: AtomicU32,
    waiting: AtomicU32,
    /// Wakes who waits longest.
    freed: Notify,
}

impl Slots {
    /// A slot, where fewer than `most` are taken and nobody waits for one.
    pub fn take(self: &Arc<Self>, most: u32) -> Option<Slot> {
        if self.waiting() > 0 { None } else { self.claim(most) }
    }

    /// A place in the queue for one.
    pub fn queue(self: &Arc<Self>) -> Queue {
        self.waiting.fetch_add(1, SeqCst);
        Queue(self.clone())
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(SeqCst)
    }

    /// How many wait in the queue.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    fn claim(self: &Arc<Self>, most: u32) -> Option<Slot> {
        self.taken.fetch_update(SeqCst, SeqCst, |now| (now < most).then_some(now + 1)).ok()?;
        Some(Slot(self.clone()))
    }

    /// Wakes one who waits, where there is room. It looks after it has entered the queue and after it has left it, and who gives a slot
    /// back looks whether somebody waits: one of them sees the other.
    fn look(&self, most: u32) {
        if self.taken() < most {
            self.freed.notify_one();
        }
    }
}

/// Room for one; given back when it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

impl Slot {
    /// True where it is one of these.
    pub fn is_of(&self, slots: &Arc<Slots>) -> bool {
        Arc::ptr_eq(&self.0, slots)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
        if self.0.waiting() > 0 {
            self.0.freed.notify_one();
        }
    }
}

/// A place in a queue of all workers, which is left when it is dropped.
#[derive(Debug)]
pub struct Queue(Arc<Slots>);

impl Queue {
    /// A slot, when there are fewer than `most` and it is this one's turn.
    pub async fn slot(&self, most: u32) -> Slot {
        self.0.look(most);
        loop {
            self.0.freed.notified().await;
            if let Some(slot) = self.0.claim(most) {
                self.0.look(most);
                return slot;
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn four_threads_never_have_more_than_there_are() {
        let (slots, most) = (Arc::<Slots>::default(), Arc::new(AtomicU32::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (slots, most) = (slots.clone(), most.clone());
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        if let Some(_slot) = slots.take(3) {
                            most.fetch_max(slots.taken(), SeqCst);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(slots.taken(), 0);
        assert!((1..=3).contains(&most.load(SeqCst)), "{most:?}");
        assert!(slots.take(0).is_none());
    }

    /// Whoever comes anew waits behind those who wait, and each of them has its turn, on whatever thread.
    #[test]
    fn everybody_has_a_turn() {
        let slots = Arc::<Slots>::default();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let slots = slots.clone();
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        for turn in 0..2_000 {
                            let queue = slots.queue();
                            if turn % 7 == 0 {
                                // Who gives up passes on what it was woken for.
                                let _ = timeout(Duration::ZERO, queue.slot(2)).await;
                            }
                            let slot =
                                timeout(Duration::from_secs(10), queue.slot(2)).await.expect("nobody is forgotten");
                            drop(queue);
                            assert!(slots.taken() <= 2);
                            tokio::task::yield_now().await;
                            drop(slot);
                        }
                    });
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((slots.taken(), slots.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn first_come_first_served() {
        let slots = Arc::<Slots>::default();
        let held = slots.take(1).unwrap();
        let (one, other) = (slots.queue(), slots.queue());
        let (mut first, mut second) = (Box::pin(one.slot(1)), Box::pin(other.slot(1)));
        assert!(
            timeout(Duration::ZERO, &mut first).await.is_err() && timeout(Duration::ZERO, &mut second).await.is_err()
        );
        drop(held);
        assert!(slots.take(1).is_none(), "it is for those who wait");
        assert!(timeout(Duration::from_millis(20), &mut second).await.is_err());
        let slot = timeout(Duration::from_secs(5), first).await.unwrap();
        drop(one);
        drop(slot);
        drop(timeout(Duration::from_secs(5), second).await.unwrap());
        drop(other);
        assert!(slots.take(1).is_some());
    }
}
