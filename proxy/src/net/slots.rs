//! A bounded number of something, counted by all workers together: who has a slot has room for one.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// How many there are now. Two cache lines of its own: nothing else slows down because it is written.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Slots(AtomicU32);

impl Slots {
    /// A slot, where fewer than `most` are taken.
    pub fn take(self: &Arc<Self>, most: u32) -> Option<Slot> {
        self.0.fetch_update(Relaxed, Relaxed, |now| (now < most).then_some(now + 1)).ok()?;
        Some(Slot(self.clone()))
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.0.load(Relaxed)
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
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
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
                            most.fetch_max(slots.taken(), Relaxed);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(slots.taken(), 0);
        assert!((1..=3).contains(&most.load(Relaxed)), "{most:?}");
        assert!(slots.take(0).is_none());
    }
}
