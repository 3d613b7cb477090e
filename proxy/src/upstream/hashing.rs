//! Consistent hashing: which of some endpoints a hash belongs to, so that few hashes move when endpoints come or go.

use std::net::SocketAddr;

use crate::net::{hash64, mix};

/// Most places on a ring, and in a table. Envoy allows more; a ring of this size is even within a few percent for a thousand endpoints, and
/// made anew in some milliseconds.
pub const MAX_PLACES: u64 = 1 << 17;

/// Places in the order of hashes, each with the number of an endpoint.
#[derive(Debug)]
pub(super) enum Places {
    /// Ketama: each endpoint has places on a ring, a hash belongs to the next one.
    Ring(Box<[(u64, u32)]>),
    /// Maglev (Eisenbud et al. 2016): a table in which each endpoint has its share.
    Table(Box<[u32]>),
}

impl Places {
    /// A ring with at least `least` places and no more than `most`, but one for each endpoint.
    pub(super) fn ring(endpoints: &[(SocketAddr, u32)], least: u64, most: u64) -> Self {
        let total: u64 = endpoints.iter().map(|(_, weight)| u64::from(*weight)).sum::<u64>().max(1);
        let lightest = endpoints.iter().map(|(_, weight)| u64::from(*weight)).min().unwrap_or(1).max(1);
        // Enough for the lightest to have one whole place.
        let size = total.div_ceil(lightest).max(least).min(most.clamp(1, MAX_PLACES));
        let mut places = Vec::new();
        for (number, (address, weight)) in (0_u32..).zip(endpoints) {
            let share = (u128::from(size) * u128::from(*weight)).div_ceil(u128::from(total)).max(1);
            let key = address.to_string();
            for place in 0..u64::try_from(share).unwrap_or(1) {
                places.push((hash64(&[key.as_bytes(), b"_", &place.to_le_bytes()]), number));
            }
        }
        places.sort_unstable();
        Self::Ring(places.into())
    }

    /// A table of this size, a prime well above the number of endpoints.
    pub(super) fn table(endpoints: &[(SocketAddr, u32)], size: u64) -> Self {
        let size = size.clamp(1, MAX_PLACES);
        let heaviest = endpoints.iter().map(|(_, weight)| *weight).max().unwrap_or(1).max(1);
        // Each goes through all places in an order of its own; the heavier one has more turns to take the next that is free.
        let mut orders: Vec<(u64, u64, u64, f64)> = endpoints
            .iter()
            .map(|(address, _)| {
                let hash = hash64(&[address.to_string().as_bytes()]);
                (hash % size, mix(hash ^ u64::MAX) % size.saturating_sub(1).max(1) + 1, 0, 0.0)
            })
            .collect();
        let mut table = vec![u32::MAX; usize::try_from(size).unwrap_or(1)];
        let mut left = if endpoints.is_empty() { 0 } else { table.len() };
        while left > 0 {
            let before = left;
            for ((number, order), (_, weight)) in (0_u32..).zip(&mut orders).zip(endpoints) {
                order.3 += f64::from(*weight) / f64::from(heaviest);
                if order.3 < 1.0 || left == 0 {
                    continue;
                }
                order.3 -= 1.0;
                // Once around are all places, the size being a prime.
                for _ in 0..size {
                    let place = (u128::from(order.0) + u128::from(order.1) * u128::from(order.2)) % u128::from(size);
                    order.2 += 1;
                    if let Some(free) = usize::try_from(place).ok().and_then(|at| table.get_mut(at))
                        && *free == u32::MAX
                    {
                        *free = number;
                        left -= 1;
                        break;
                    }
                }
            }
            if left == before {
                break; // the size is none, after all
            }
        }
        Self::Table(table.into())
    }

    /// Numbers of endpoints in the order in which a hash prefers them; some come several times.
    pub(super) fn from(&self, hash: u64) -> impl Iterator<Item = u32> {
        let (len, start) = match self {
            Self::Ring(ring) => (ring.len(), ring.partition_point(|(place, _)| *place < hash)),
            Self::Table(table) => {
                let len = u64::try_from(table.len()).unwrap_or(1).max(1);
                (table.len(), usize::try_from(hash % len).unwrap_or(0))
            }
        };
        (0..len).filter_map(move |step| {
            let at = start.wrapping_add(step) % len;
            match self {
                Self::Ring(ring) => ring.get(at).map(|(_, number)| *number),
                Self::Table(table) => table.get(at).copied(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Vec<(SocketAddr, u32)> {
        (1..=count).map(|last| (([198, 18, 0, last], 80).into(), 1)).collect()
    }

    fn owners(places: &Places) -> Vec<u32> {
        (0..10_000_u64).map(|key| places.from(hash64(&[&key.to_le_bytes()])).next().unwrap()).collect()
    }

    fn share(owners: &[u32], of: u32) -> usize {
        owners.iter().filter(|owner| **owner == of).count()
    }

    #[test]
    fn shares_follow_weights_and_few_keys_move() {
        for make in [
            (|all: &[(SocketAddr, u32)]| Places::ring(all, 8192, MAX_PLACES)) as fn(&[(SocketAddr, u32)]) -> Places,
            |all| Places::table(all, 65_537),
        ] {
            let ten = owners(&make(&endpoints(10)));
            for of in 0..10 {
                assert!((700..1300).contains(&share(&ten, of)), "{}", share(&ten, of));
            }
            let nine = owners(&make(&endpoints(9)));
            let moved = ten.iter().zip(&nine).filter(|(one, other)| one != other).count();
            assert!((800..2500).contains(&moved), "{moved} of 10,000 moved, where 1,000 had to");
            let mut weighted = endpoints(3);
            weighted[0].1 = 2;
            let weighted = owners(&make(&weighted));
            assert!((4300..5700).contains(&share(&weighted, 0)), "{}", share(&weighted, 0));
        }
    }

    #[test]
    fn odd_sizes_have_an_end() {
        for size in [2, 3, 11, 101] {
            let table = Places::table(&endpoints(7), size);
            assert!(owners(&table).iter().all(|owner| *owner < 7), "{size}");
        }
        for size in [0, 1, 4, 1 << 10] {
            Places::table(&endpoints(7), size); // has an end
        }
        assert_eq!(Places::table(&[], 7).from(1).filter(|number| *number != u32::MAX).count(), 0);
        assert_eq!(Places::ring(&[], 7, 7).from(1).count(), 0);
        assert_eq!(Places::ring(&endpoints(1), 1, 1).from(u64::MAX).next(), Some(0));
        let mut far = endpoints(2);
        far[1].1 = u32::MAX;
        assert!(owners(&Places::ring(&far, 1, MAX_PLACES)).iter().all(|owner| *owner < 2));
    }
}
