//! In which order, or in which shares, the places of endpoints are used by callers of a place.

use std::collections::BTreeMap;

use weir_config::model::Places;

use crate::source::Locality;

/// What is said of the endpoints of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// Lower ones first; every number up to the highest is there.
    pub(super) priority: u32,
    /// Share among places, where there are shares; places without one get nothing.
    pub(super) weight: Option<u32>,
}

/// Shares are kept in so many parts of a percent.
const PARTS: u64 = 1000;

/// For each place of endpoints, with their number.
pub(super) fn standing(
    places: Option<&Places>,
    caller: Option<&Locality>,
    endpoints: &BTreeMap<Locality, usize>,
) -> BTreeMap<Locality, Standing> {
    let alike = || endpoints.keys().map(|place| (place.clone(), Standing::default())).collect();
    let Some(caller) = caller.filter(|caller| !caller.region.is_empty()) else { return alike() };
    match places {
        None | Some(Places::Anywhere) => alike(),
        Some(Places::Near(next)) => near(next, caller, endpoints.keys()),
        Some(Places::Spread(spread)) => match best(spread.keys(), caller).and_then(|from| spread.get(from)) {
            Some(shares) => shared(shares, endpoints),
            None => alike(),
        },
    }
}

/// The caller's zone, its region, the region that is named for it, and then all others.
fn near<'a>(
    next: &BTreeMap<String, String>,
    caller: &Locality,
    places: impl Iterator<Item = &'a Locality> + Clone,
) -> BTreeMap<Locality, Standing> {
    let rank = |place: &Locality| match () {
        () if place == caller => 0,
        () if place.region == caller.region => 1,
        () if next.get(&caller.region) == Some(&place.region) => 2,
        () => 3,
    };
    let mut ranks: Vec<u32> = places.clone().map(rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let priority = |place: &Locality| {
        let position = ranks.iter().position(|known| *known == rank(place)).unwrap_or_default();
        u32::try_from(position).unwrap_or_default()
    };
    places.map(|place| (place.clone(), Standing { priority: priority(place), weight: None })).collect()
}

/// A share of several places is theirs by the number of their endpoints.
fn shared(shares: &BTreeMap<String, u32>, endpoints: &BTreeMap<Locality, usize>) -> BTreeMap<Locality, Standing> {
    let mut members: BTreeMap<&String, u64> = BTreeMap::new();
    let of = |place: &Locality| best(shares.keys(), place);
    for (place, count) in endpoints {
        if let Some(share) = of(place) {
            *members.entry(share).or_default() += *count as u64;
        }
    }
    let weight = |place: &Locality, count: usize| {
        let share = of(place)?;
        let all = members.get(share).copied().filter(|all| *all > 0)?;
        let weight = u64::from(*shares.get(share)?) * PARTS * count as u64 / all;
        u32::try_from(weight).ok().map(|weight| weight.max(1))
    };
    endpoints
        .iter()
        .map(|(place, count)| (place.clone(), Standing { priority: 0, weight: weight(place, *count) }))
        .collect()
}

/// The pattern that says most of a place: `region/zone`, then `region/*` or `region`, then `*`.
fn best<'a>(patterns: impl Iterator<Item = &'a String>, place: &Locality) -> Option<&'a String> {
    let says = |pattern: &str| match pattern.split_once('/') {
        _ if pattern == "*" => Some(1),
        None => (pattern == place.region).then_some(2),
        Some((region, "*")) => (region == place.region).then_some(2),
        Some((region, zone)) => (region == place.region && zone == place.zone).then_some(3),
    };
    patterns
        .filter_map(|pattern| Some((says(pattern)?, pattern)))
        .max_by_key(|(says, _)| *says)
        .map(|(_, pattern)| pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(region: &str, zone: &str) -> Locality {
        Locality { region: region.into(), zone: zone.into() }
    }

    fn endpoints() -> BTreeMap<Locality, usize> {
        [(place("eu", "a"), 3), (place("eu", "b"), 1), (place("us", "a"), 2), (place("", ""), 1)].into()
    }

    #[test]
    fn the_nearest_first_without_gaps() {
        let order = |next: &[(&str, &str)], caller| {
            let next = next.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
            let standing = standing(Some(&Places::Near(next)), Some(&caller), &endpoints());
            ["eu/a", "eu/b", "us/a", "/"].map(|name| {
                let (region, zone) = name.split_once('/').unwrap();
                standing[&place(region, zone)].priority
            })
        };
        assert_eq!(order(&[], place("eu", "a")), [0, 1, 2, 2]);
        assert_eq!(order(&[("eu", "us")], place("eu", "a")), [0, 1, 2, 3]);
        assert_eq!(order(&[("eu", "us")], place("eu", "c")), [0, 0, 1, 2], "nobody is in the zone");
        assert_eq!(order(&[], place("us", "a")), [1, 1, 0, 1]);
        assert_eq!(order(&[], place("", "")), [0; 4], "a caller whose place is not known");
    }

    #[test]
    fn shares_by_place() {
        let to = [("eu/*".to_owned(), 80), ("us/a".to_owned(), 20)].into();
        let spread = Places::Spread([("eu".to_owned(), to)].into());
        let got = standing(Some(&spread), Some(&place("eu", "b")), &endpoints());
        let weights =
            [("eu", "a"), ("eu", "b"), ("us", "a"), ("", "")].map(|(region, zone)| got[&place(region, zone)].weight);
        assert_eq!(weights, [Some(60_000), Some(20_000), Some(20_000), None]);
        let other = standing(Some(&spread), Some(&place("us", "a")), &endpoints());
        assert!(other.values().all(|standing| *standing == Standing::default()), "no share is said for these callers");
    }
}
