//! The choice of an endpoint: among priorities, among the places (localities) of one, and within one of these by the cluster's method.
//!
//! The ordinary cluster has one priority and one group of endpoints and takes the better of two at random (Mitzenmacher 2001), by latency
//! and requests in flight. All else is looked at only where a cluster asks for it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Endpoint, Part, hashing::Places};
use crate::net::random;

/// A priority, or a place, counts as whole while this many percent more than its part could be done by what is well in it (Envoy's
/// overprovisioning factor).
const OVERPROVISIONING: u64 = 140;
/// Below this many percent of endpoints that are well, all are used: better than to overrun the few.
const PANIC: u32 = 50;
/// How long a count of the endpoints that are well may be used, in milliseconds.
const COUNT: u64 = 20;
/// Longest order of turns, where weights differ.
const TURNS: u64 = 2048;

/// How a cluster's endpoints are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Balancing {
    /// Within a group of endpoints.
    pub method: Method,
    /// New endpoints begin with less.
    pub slow_start: Option<SlowStart>,
    /// Percent of endpoints that are well below which all are used.
    pub panic: u32,
    /// Places have weights of their own.
    pub by_locality: bool,
}

impl Default for Balancing {
    fn default() -> Self {
        Self { method: Method::default(), slow_start: None, panic: PANIC, by_locality: false }
    }
}

/// How one of a group of endpoints is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// The better of two, by latency and load.
    #[default]
    LeastRequest,
    /// In turns.
    RoundRobin,
    /// By chance.
    Random,
    /// By the request's hash, on a ring with so many places.
    Ring {
        /// At least.
        least: u64,
        /// At most.
        most: u64,
    },
    /// By the request's hash, in a table with so many places.
    Maglev(u64),
}

/// New endpoints begin with a part of their weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// Until they have all of it.
    pub window: Duration,
    /// The least part.
    pub least: f32,
    /// The part grows with time to the power of its reciprocal: 1 evenly, more: sooner.
    pub aggression: f32,
}

impl SlowStart {
    fn part(&self, age: Duration) -> f32 {
        if age >= self.window {
            return 1.0;
        }
        let share = age.as_secs_f32().max(0.001) / self.window.as_secs_f32();
        share.powf(1.0 / self.aggression).max(self.least).min(1.0)
    }
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Endpoints that failed this request: others are preferred.
    pub tried: &'a [SocketAddr],
    /// By which requests are to meet at one endpoint.
    pub hash: Option<u64>,
    /// The time.
    pub now: Instant,
}

/// The endpoints at one moment, arranged for the choice.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// In the order of the configuration; each is held by the requests that are there.
    pub endpoints: Vec<Arc<Endpoint>>,
    tiers: Vec<Tier>,
    balancing: Balancing,
    /// Whether an endpoint takes part may change: the cluster ejects or checks, or the configuration says so of one.
    watched: bool,
}

/// The endpoints of one priority.
#[derive(Debug)]
struct Tier {
    groups: Vec<Group>,
}

/// Endpoints among which the method chooses.
#[derive(Debug)]
struct Group {
    members: Vec<Arc<Endpoint>>,
    weight: u32,
    order: Order,
    next: Turn,
    well: Count,
}

#[derive(Debug)]
enum Order {
    /// No order.
    None,
    /// Numbers of members, as often as their weights ask.
    Turns(Box<[u32]>),
    Hashed(Places),
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Turn(AtomicUsize);

/// How many members are well, counted now and then.
#[derive(Debug, Default)]
struct Count {
    at: AtomicU64,
    number: AtomicU32,
}

impl EndpointSet {
    /// `watched`: endpoints may be ejected, or checked.
    pub fn new(endpoints: Vec<Arc<Endpoint>>, balancing: &Balancing, watched: bool) -> Self {
        let watched = watched || endpoints.iter().any(|endpoint| !endpoint.healthy);
        let mut priorities: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let tiers = priorities.into_iter().map(|priority| {
            let members: Vec<&Arc<Endpoint>> = endpoints.iter().filter(|one| one.priority == priority).collect();
            let mut places: Vec<&str> = Vec::new();
            if balancing.by_locality {
                places = members.iter().map(|one| &*one.locality.name).collect();
                places.sort_unstable();
                places.dedup();
            }
            let group = |place: Option<&str>| {
                let of = |one: &&&Arc<Endpoint>| place.is_none_or(|place| *one.locality.name == *place);
                Group::new(members.iter().filter(of).map(|one| (*one).clone()).collect(), balancing)
            };
            let groups = if places.is_empty() {
                vec![group(None)]
            } else {
                places.into_iter().map(|p| group(Some(p))).collect()
            };
            Tier { groups }
        });
        Self { tiers: tiers.collect(), balancing: balancing.clone(), watched, endpoints }
    }

    /// Picks an endpoint. Those that failed this request, refuse connections or take no part come last, but are better than none.
    pub fn pick(&self, ask: &Ask<'_>) -> Option<&Arc<Endpoint>> {
        let simple = match self.tiers.as_slice() {
            [] => return None,
            [tier] => tier.groups.first().filter(|_| tier.groups.len() == 1 && !self.watched),
            _ => None,
        };
        match simple {
            Some(group) => group.pick(self, ask, false),
            None => self.among_tiers(ask),
        }
    }

    /// The endpoint with this address, if it takes part.
    pub fn find(&self, address: SocketAddr, now: Instant) -> Option<&Arc<Endpoint>> {
        let takes_part = |one: &&Arc<Endpoint>| one.healthy && one.standing.part(now) == Part::In;
        self.endpoints.iter().find(|one| one.address == address).filter(takes_part)
    }

    fn among_tiers(&self, ask: &Ask<'_>) -> Option<&Arc<Endpoint>> {
        let parts: SmallVec<[(u64, u64); 4]> = self.tiers.iter().map(|tier| tier.well(ask.now)).collect();
        let available = |(well, all): (u64, u64)| (OVERPROVISIONING * well).checked_div(all).unwrap_or(0).min(100);
        let sum: u64 = parts.iter().map(|part| available(*part)).sum();
        let whole = sum.min(100);
        let mut at = scaled(ask.hash.map_or_else(random, |hash| hash.rotate_left(32)), whole);
        let mut chosen = (self.tiers.first()?, *parts.first()?);
        for (tier, part) in self.tiers.iter().zip(&parts) {
            let share = available(*part);
            if whole > 0 && at < share {
                chosen = (tier, *part);
                break;
            }
            at = at.saturating_sub(share);
        }
        let (tier, (well, all)) = chosen;
        let panic = sum < 100 && well * 100 < u64::from(self.balancing.panic) * all;
        tier.group(ask)?.pick(self, ask, panic)
    }
}

impl Tier {
    /// Endpoints that are well, and all.
    fn well(&self, now: Instant) -> (u64, u64) {
        self.groups.iter().fold((0, 0), |(well, all), group| {
            (well + u64::from(group.well(now)), all + u64::try_from(group.members.len()).unwrap_or(u64::MAX >> 8))
        })
    }

    /// A place by its weight, as far as it is well.
    fn group(&self, ask: &Ask<'_>) -> Option<&Group> {
        if let [only] = self.groups.as_slice() {
            return Some(only);
        }
        let part = |group: &Group| {
            let all = u64::try_from(group.members.len()).unwrap_or(1).max(1);
            let able = (OVERPROVISIONING * u64::from(group.well(ask.now)) / all).min(100);
            u64::from(group.weight) * able
        };
        let parts: SmallVec<[u64; 8]> = self.groups.iter().map(part).collect();
        let sum = parts.iter().copied().fold(0, u64::saturating_add);
        // Where none is well, all count.
        let parts = if sum > 0 { parts } else { self.groups.iter().map(|group| u64::from(group.weight)).collect() };
        let sum = parts.iter().copied().fold(0, u64::saturating_add);
        let mut at = scaled(ask.hash.map_or_else(random, |hash| hash.rotate_left(16)), sum);
        for (group, part) in self.groups.iter().zip(parts) {
            if at < part {
                return Some(group);
            }
            at -= part;
        }
        self.groups.first()
    }
}

impl Group {
    fn new(members: Vec<Arc<Endpoint>>, balancing: &Balancing) -> Self {
        let keyed =
            || -> Vec<(SocketAddr, u32)> { members.iter().map(|one| (one.address, one.weight.max(1))).collect() };
        let order = match balancing.method {
            Method::LeastRequest => Order::None,
            Method::RoundRobin | Method::Random => Order::Turns(turns(&members)),
            Method::Ring { least, most } => Order::Hashed(Places::ring(&keyed(), least, most)),
            Method::Maglev(size) => Order::Hashed(Places::table(&keyed(), size)),
        };
        let weight = members.first().map_or(1, |one| one.locality.weight);
        let next = Turn(AtomicUsize::new(usize::try_from(random() >> 40).unwrap_or(0)));
        Self { members, weight, order, next, well: Count::default() }
    }

    fn well(&self, now: Instant) -> u32 {
        let Some(clock) = self.members.first().map(|one| &one.standing) else { return 0 };
        let at = clock.millis(now).max(1);
        let last = self.well.at.load(Relaxed);
        if last != 0 && at.saturating_sub(last) < COUNT {
            return self.well.number.load(Relaxed);
        }
        let well = |one: &&Arc<Endpoint>| one.healthy && one.standing.part(now) != Part::Out;
        let number = u32::try_from(self.members.iter().filter(well).count()).unwrap_or(u32::MAX);
        self.well.number.store(number, Relaxed);
        self.well.at.store(at, Relaxed);
        number
    }

    /// `panic`: all count as well.
    fn pick(&self, set: &EndpointSet, ask: &Ask<'_>, panic: bool) -> Option<&Arc<Endpoint>> {
        if let [only] = self.members.as_slice() {
            return Some(only);
        }
        let takes_part =
            |one: &Endpoint| !set.watched || panic || one.healthy && one.standing.part(ask.now) != Part::Out;
        let good =
            |one: &Endpoint| !ask.tried.contains(&one.address) && !one.state.is_avoided(ask.now) && takes_part(one);
        // Who gets the one request on probation is settled last: the choice may fall on another one.
        let settled = |one: &Endpoint| {
            !set.watched || panic || one.standing.part(ask.now) == Part::In || one.standing.claim(ask.now)
        };
        if let Some(one) = self.by_method(set, ask, &good)
            && settled(one)
        {
            return Some(one);
        }
        let cost = |one: &Endpoint| cost(one, set.balancing.slow_start, ask.now);
        let best = |filter: &dyn Fn(&Endpoint) -> bool| {
            self.members.iter().filter(|one| filter(one)).min_by(|one, other| cost(one).total_cmp(&cost(other)))
        };
        best(&|one| good(one) && settled(one))
            .or_else(|| best(&|one| !ask.tried.contains(&one.address) && takes_part(one) && settled(one)))
            .or_else(|| best(&takes_part))
            .or_else(|| sample(&self.members))
    }

    /// The method's choice among those that are good; `None` where it does not find one at once.
    fn by_method(&self, set: &EndpointSet, ask: &Ask<'_>, good: &dyn Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
        let at = |number: u32| self.members.get(usize::try_from(number).ok()?);
        match &self.order {
            Order::None => {
                let (one, other) = (sample(&self.members)?, sample(&self.members)?);
                if !good(one) || !good(other) {
                    return None;
                }
                // What is due for its probation comes first, however slow it was before.
                let cost = |endpoint: &Endpoint| match set.watched && endpoint.standing.part(ask.now) == Part::Due {
                    true => 0.0,
                    false => cost(endpoint, set.balancing.slow_start, ask.now),
                };
                Some(if cost(one) <= cost(other) { one } else { other })
            }
            Order::Turns(turns) => {
                let in_turn = set.balancing.method == Method::RoundRobin;
                let len = turns.len().max(1);
                let may = |one: &Endpoint| match set.balancing.slow_start {
                    Some(slow) => random() as f32 / u64::MAX as f32 <= slow.part(one.standing.age(ask.now)),
                    None => true,
                };
                let start = if in_turn {
                    self.next.0.fetch_add(1, Relaxed)
                } else {
                    usize::try_from(scaled(random(), u64::try_from(len).unwrap_or(1))).unwrap_or(0)
                };
                let mut order = (0..len).filter_map(|step| at(*turns.get(start.wrapping_add(step) % len)?));
                order.find(|one| good(one) && may(one))
            }
            Order::Hashed(places) => {
                let mut order = places.from(ask.hash.unwrap_or_else(random)).filter_map(at);
                order.find(|one| good(one))
            }
        }
    }
}

/// Numbers of the endpoints, each as often as its weight asks, as evenly as can be.
fn turns(members: &[Arc<Endpoint>]) -> Box<[u32]> {
    let weights: Vec<u64> = members.iter().map(|one| u64::from(one.weight.max(1))).collect();
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum: u64 = weights.iter().map(|weight| weight / divisor).sum();
    let longest = TURNS.max(u64::try_from(members.len()).unwrap_or(TURNS));
    let reduced = |weight: &u64| {
        let weight = weight / divisor;
        if sum > longest { (weight * longest / sum).max(1) } else { weight }
    };
    let weights: Vec<i64> = weights.iter().map(reduced).map(|weight| i64::try_from(weight).unwrap_or(1)).collect();
    let total: i64 = weights.iter().sum();
    let mut due: Vec<i64> = vec![0; weights.len()];
    let next = |_| {
        due.iter_mut().zip(&weights).for_each(|(due, weight)| *due += weight);
        let most = due.iter().copied().max()?;
        let at = due.iter().position(|due| *due == most)?;
        *due.get_mut(at)? -= total;
        u32::try_from(at).ok()
    };
    (0..total).filter_map(next).collect()
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

fn cost(endpoint: &Endpoint, slow_start: Option<SlowStart>, now: Instant) -> f32 {
    let weight = f32::from(u16::try_from(endpoint.weight.max(1)).unwrap_or(u16::MAX));
    let part = slow_start.map_or(1.0, |slow| slow.part(endpoint.standing.age(now)));
    endpoint.state.cost() / (weight * part)
}

fn sample(all: &[Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
    let len = u64::try_from(all.len()).ok()?;
    all.get(usize::try_from(scaled(random(), len)).ok()?)
}

/// A random number below `below`; 0 for 0.
fn scaled(random: u64, below: u64) -> u64 {
    u64::try_from((u128::from(random) * u128::from(below)) >> 64).unwrap_or(0)
}

#[cfg(test)]
#[path = "balance_tests.rs"]
pub(super) mod tests;
