//! Some of the requests, by chance.

/// A share of all cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chance {
    some: u32,
    of: u32,
}

impl Chance {
    /// In every case.
    pub const ALWAYS: Self = Self { some: 1, of: 1 };

    /// In so many cases of so many.
    pub fn new(some: u32, of: u32) -> Self {
        if some >= of { Self::ALWAYS } else { Self { some, of } }
    }

    /// True in that share of all random numbers.
    pub fn takes(self, random: u64) -> bool {
        (u128::from(random) * u128::from(self.of)) >> 64 < u128::from(self.some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::mix;

    #[test]
    fn shares_hold() {
        let taken = |some, of| (0..100_000_u64).filter(|at| Chance::new(some, of).takes(mix(*at + 1))).count();
        assert_eq!((taken(0, 100), taken(100, 100), taken(200, 100)), (0, 100_000, 100_000));
        assert_eq!(Chance::new(100, 100), Chance::new(1_000_000, 1_000_000));
        assert!((24_000..26_000).contains(&taken(25, 100)));
        assert!((50..200).contains(&taken(1000, 1_000_000)));
    }
}
