//! The choice of an endpoint: the better of two at random (Mitzenmacher 2001), by latency and requests in flight.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::Instant;

use super::{Endpoint, EndpointSet};
use crate::net::random;

/// Picks an endpoint. Endpoints in `tried` and those that refuse connections come last, but are better than none.
pub fn pick<'a>(set: &'a EndpointSet, tried: &[SocketAddr], now: Instant) -> Option<&'a Arc<Endpoint>> {
    let all = set.endpoints.as_slice();
    match all {
        [] => return None,
        [only] => return Some(only),
        _ => {}
    }
    let good = |e: &&Arc<Endpoint>| !tried.contains(&e.address) && !e.state.is_avoided(now);
    if let (Some(a), Some(b)) = (sample(all), sample(all)) {
        let (a_good, b_good) = (good(&a), good(&b));
        if a_good && b_good {
            return Some(if cost(a) <= cost(b) { a } else { b });
        }
    }
    // One of the two is out: look at all, which is rare and short.
    let best =
        |filter: &dyn Fn(&&Arc<Endpoint>) -> bool| all.iter().filter(filter).min_by(|a, b| cost(a).total_cmp(&cost(b)));
    best(&good).or_else(|| best(&|e| !tried.contains(&e.address))).or_else(|| sample(all))
}

fn cost(endpoint: &Endpoint) -> f32 {
    let weight = u16::try_from(endpoint.weight.max(1)).unwrap_or(u16::MAX);
    endpoint.state.cost() / f32::from(weight)
}

fn sample(all: &[Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
    let len = u64::try_from(all.len()).ok()?;
    let at = usize::try_from((u128::from(random()) * u128::from(len)) >> 64).ok()?;
    all.get(at)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{telemetry::Peer, upstream::Workload};

    fn set(n: u8) -> EndpointSet {
        let endpoint = |i| Endpoint {
            address: ([198, 18, 0, i], 80).into(),
            mesh: None,
            weight: 1,
            workload: Workload { pod: "".into(), identity: None, peer: Peer::unknown(), mesh: false },
            state: Arc::default(),
        };
        EndpointSet { endpoints: (1..=n).map(endpoint).map(Arc::new).collect() }
    }

    fn share(set: &EndpointSet, of: usize) -> usize {
        let now = Instant::now();
        (0..1000).filter(|_| pick(set, &[], now).unwrap().address == set.endpoints[of].address).count()
    }

    #[test]
    fn equal_endpoints_share_equally() {
        let set = set(4);
        // Equal costs prefer the first of the two samples: still a random one.
        for i in 0..4 {
            assert!((150..350).contains(&share(&set, i)), "{}", share(&set, i));
        }
    }

    #[test]
    fn a_slow_endpoint_gets_less_and_a_refusing_one_nothing() {
        let set = set(3);
        set.endpoints[0].state.answered(Duration::from_millis(8));
        assert!(share(&set, 0) < 200);
        set.endpoints[0].state.unreachable(Instant::now());
        assert_eq!(share(&set, 0), 0);
    }

    #[test]
    fn tried_endpoints_come_last() {
        let set = set(2);
        let first = set.endpoints[0].address;
        for _ in 0..50 {
            assert_ne!(pick(&set, &[first], Instant::now()).unwrap().address, first);
        }
        let both = [first, set.endpoints[1].address];
        assert!(pick(&set, &both, Instant::now()).is_some());
        assert!(pick(&EndpointSet::default(), &[], Instant::now()).is_none());
    }
}
