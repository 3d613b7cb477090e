//! Spreads requests over clusters by weight: evenly, not by chance.
//!
//! A random choice at 90/10 sends 4 of 10 requests to the small one now and then, and a canary of 1 % may see nothing for 500
//! requests. Here request *n* is placed by arithmetic on one shared counter: of two parts with weights *a* and *b* the first gets
//! request *n* iff `floor((n+1)·a/(a+b))` is above `floor(n·a/(a+b))`, so that over **any** run of requests each part gets its share
//! rounded down or up. More than two clusters are a tree of such parts, where a part's own requests are numbered by the same floor.
//! Nothing is locked, nothing but the counter is written, and the exact proportion returns every `sum of weights` requests.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::spec::TargetSpec;
use crate::http::Edits;

/// The clusters of a route.
#[derive(Debug)]
pub struct Split<C> {
    /// The heaviest first. Those without a weight, last, are for sessions alone.
    targets: Box<[Target<C>]>,
    /// How many have a weight; never 0.
    weighted: usize,
    total: u64,
    counter: Arc<Counter>,
}

/// A cluster of a route, with what is done on the way there and back.
#[derive(Debug)]
pub struct Target<C> {
    name: String,
    /// As configured.
    weight: u32,
    /// Reduced, so that the sum of all has at most 32 bits.
    share: u64,
    cluster: C,
    request_edits: Edits,
    response_edits: Edits,
}

/// Number of the next request, shared by all workers and by the tables before and after a change. A cache line of its own (two,
/// as processors fetch them in pairs): nothing else slows down because it is written.
#[derive(Debug)]
#[repr(align(128))]
struct Counter(AtomicU64);

impl<C> Target<C> {
    /// Name of the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its weight as configured.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &C {
        &self.cluster
    }

    /// Changes to the headers of requests that go there, besides the route's.
    #[must_use]
    pub fn request_edits(&self) -> &Edits {
        &self.request_edits
    }

    /// Changes to the headers of responses from there, besides the route's.
    #[must_use]
    pub fn response_edits(&self) -> &Edits {
        &self.response_edits
    }
}

impl<C> Split<C> {
    /// `None` if no target has a weight. Without a `previous` split of the same shares the sequence begins at a random place, so that the proxies of a mesh do not send their first requests to the same cluster.
    pub(crate) fn new(specs: Vec<TargetSpec<C>>, previous: Option<&Self>) -> Option<Self> {
        let mut targets: Vec<Target<C>> = specs
            .into_iter()
            .map(|spec| Target {
                name: spec.name,
                weight: spec.weight,
                share: u64::from(spec.weight),
                cluster: spec.cluster,
                request_edits: spec.request_edits,
                response_edits: spec.response_edits,
            })
            .collect();
        // The heavy ones high in the tree, where the rounding of the levels above does not reach them.
        targets.sort_by_key(|target| std::cmp::Reverse(target.weight));
        let weighted = targets.partition_point(|target| target.weight > 0);
        let shares = targets.get_mut(..weighted).filter(|shares| !shares.is_empty())?;
        let total = reduce(shares);
        let same = |other: &&Self| {
            let both = || other.shares().iter().zip(&*shares);
            other.weighted == weighted && both().all(|(one, two)| one.name == two.name && one.weight == two.weight)
        };
        let counter = match previous.filter(same) {
            Some(previous) => Arc::clone(&previous.counter),
            None => Arc::new(Counter(AtomicU64::new(RandomState::new().hash_one(0) % total))),
        };
        Some(Self { targets: targets.into(), weighted, total, counter })
    }

    /// The targets that new requests go to.
    #[must_use]
    pub fn shares(&self) -> &[Target<C>] {
        self.targets.get(..self.weighted).unwrap_or_default()
    }

    /// All targets: a session stays where it began, also when that has no weight any more (GEP-1619).
    #[must_use]
    pub fn targets(&self) -> &[Target<C>] {
        &self.targets
    }

    /// The target of the next request.
    #[must_use]
    pub fn pick(&self) -> &Target<C> {
        let number = if self.weighted > 1 { self.counter.0.fetch_add(1, Ordering::Relaxed) } else { 0 };
        self.place(number)
    }

    /// The target of request `number`.
    #[expect(clippy::indexing_slicing, reason = "`weighted` is never 0, and `first < last` keeps the index inside")]
    fn place(&self, number: u64) -> &Target<C> {
        let mut number = number.checked_rem(self.total).unwrap_or(0);
        let mut total = self.total;
        let (mut first, last) = (0, self.weighted - 1);
        while first < last {
            // Below 2^32 each: `total` has at most 32 bits and `number` is below it.
            let share = self.targets[first].share;
            let before = number * share / total;
            if (number + 1) * share / total > before {
                break;
            }
            number -= before;
            total -= share;
            first += 1;
        }
        &self.targets[first]
    }

    #[cfg(test)]
    pub(super) fn set_next(&self, number: u64) {
        self.counter.0.store(number, Ordering::Relaxed);
    }
}

/// Divides the shares by what they have in common, and brings their sum below 2^32; gives the sum.
fn reduce<C>(targets: &mut [Target<C>]) -> u64 {
    let divisor = targets.iter().map(|target| target.share).fold(0, gcd).max(1);
    let sum = |targets: &[Target<C>]| targets.iter().map(|target| target.share).fold(0, u64::saturating_add);
    targets.iter_mut().for_each(|target| target.share /= divisor);
    while sum(targets) > u64::from(u32::MAX) {
        targets.iter_mut().for_each(|target| target.share = (target.share / 2).max(1));
    }
    sum(targets)
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}
