//! Who is chosen, how often.

use super::*;
use crate::{
    net::hash64,
    telemetry::Peer,
    upstream::{Locality, Standing, Workload},
};

pub(in crate::upstream) fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        address: ([198, 18, 0, last], 80).into(),
        mesh: None,
        weight: 1,
        priority: 0,
        locality: Arc::new(Locality::default()),
        healthy: true,
        workload: Workload { pod: "".into(), identity: None, peer: Peer::unknown(), mesh: false },
        state: Arc::default(),
        standing: Arc::new(Standing::default()),
    }
}

pub(in crate::upstream) fn endpoints(count: u8) -> Vec<Arc<Endpoint>> {
    (1..=count).map(endpoint).map(Arc::new).collect()
}

fn by(method: Method) -> Balancing {
    Balancing { method, ..Balancing::default() }
}

fn least(count: u8) -> EndpointSet {
    EndpointSet::new(endpoints(count), &Balancing::default(), false)
}

fn pick<'a>(set: &'a EndpointSet, tried: &[SocketAddr], now: Instant) -> Option<&'a Arc<Endpoint>> {
    set.pick(&Ask { tried, hash: None, now })
}

/// How many of a thousand requests each endpoint gets.
fn shares(set: &EndpointSet, now: Instant) -> Vec<usize> {
    let mut shares = vec![0; set.endpoints.len()];
    for _ in 0..1000 {
        let picked = pick(set, &[], now).unwrap().address;
        shares[set.endpoints.iter().position(|one| one.address == picked).unwrap()] += 1;
    }
    shares
}

fn share(set: &EndpointSet, of: usize) -> usize {
    shares(set, Instant::now())[of]
}

#[test]
fn equal_endpoints_share_equally() {
    for method in [Method::LeastRequest, Method::RoundRobin, Method::Random, Method::Maglev(65_537)] {
        let set = EndpointSet::new(endpoints(4), &by(method), false);
        for got in shares(&set, Instant::now()) {
            assert!((150..350).contains(&got), "{method:?}: {got}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_less_and_a_refusing_one_nothing() {
    let set = least(3);
    set.endpoints[0].state.answered(Duration::from_millis(8));
    assert!(share(&set, 0) < 200);
    for method in [Method::LeastRequest, Method::RoundRobin, Method::Random, Method::Ring { least: 1024, most: 4096 }] {
        let set = EndpointSet::new(endpoints(3), &by(method), false);
        set.endpoints[0].state.unreachable(Instant::now());
        assert_eq!(share(&set, 0), 0, "{method:?}");
    }
}

#[test]
fn tried_endpoints_come_last() {
    for method in [Method::LeastRequest, Method::RoundRobin, Method::Random, Method::Maglev(101)] {
        let set = EndpointSet::new(endpoints(2), &by(method), false);
        let first = set.endpoints[0].address;
        for _ in 0..50 {
            assert_ne!(pick(&set, &[first], Instant::now()).unwrap().address, first);
        }
        let both = [first, set.endpoints[1].address];
        assert!(pick(&set, &both, Instant::now()).is_some());
    }
    assert!(pick(&EndpointSet::default(), &[], Instant::now()).is_none());
}

#[test]
fn turns_are_exact_also_with_weights_and_four_threads() {
    let mut members = endpoints(3);
    members[0] = Arc::new(Endpoint { weight: 3, ..endpoint(1) });
    let set = Arc::new(EndpointSet::new(members, &by(Method::RoundRobin), false));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let set = set.clone();
            std::thread::spawn(move || shares(&set, Instant::now()))
        })
        .collect();
    let all = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .fold(vec![0; 3], |all, one| all.iter().zip(one).map(|(all, one)| all + one).collect());
    assert_eq!(all, [2400, 800, 800]);
    let mut far = endpoints(2);
    far[1] = Arc::new(Endpoint { weight: u32::MAX, ..endpoint(2) });
    assert!(turns(&far).len() <= 4096 && turns(&far).contains(&0));
}

#[test]
fn one_key_meets_one_endpoint_until_that_is_out() {
    for method in [Method::Ring { least: 1024, most: MAX }, Method::Maglev(65_537)] {
        let set = EndpointSet::new(endpoints(5), &by(method), true);
        let now = Instant::now();
        let of =
            |key: u64| set.pick(&Ask { tried: &[], hash: Some(hash64(&[&key.to_le_bytes()])), now }).unwrap().address;
        let before: Vec<SocketAddr> = (0..500).map(of).collect();
        assert_eq!(before, (0..500).map(of).collect::<Vec<_>>());
        set.endpoints[2].standing.eject(now, Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(COUNT + 5));
        let gone = set.endpoints[2].address;
        for (key, before) in (0..).zip(&before) {
            if *before == gone {
                assert_ne!(of(key), gone);
            } else {
                assert_eq!(of(key), *before, "{method:?}: a key moved that had no reason to");
            }
        }
    }
}

const MAX: u64 = crate::upstream::hashing::MAX_PLACES;

#[test]
fn what_was_ejected_gets_nothing_then_one_request_and_panic_uses_all() {
    let now = Instant::now();
    let set = EndpointSet::new(endpoints(4), &Balancing::default(), true);
    set.endpoints[0].standing.eject(now, Duration::from_secs(1));
    assert_eq!(shares(&set, now)[0], 0);
    let later = now + Duration::from_secs(2);
    assert_eq!(shares(&set, later)[0], 1, "one on probation");
    for one in &set.endpoints[..3] {
        one.standing.eject(later, Duration::from_secs(9));
    }
    let panic = shares(&set, later + Duration::from_secs(1));
    assert!(panic.iter().all(|got| *got > 100), "{panic:?}");
    let never = Balancing { panic: 0, ..Balancing::default() };
    let never = EndpointSet::new(set.endpoints.clone(), &never, true);
    assert_eq!(shares(&never, later + Duration::from_secs(2)), [0, 0, 0, 1000]);
    // Nobody is well: better than nothing.
    set.endpoints[3].standing.eject(later, Duration::from_secs(9));
    assert_eq!(shares(&never, later + Duration::from_secs(3)).iter().sum::<usize>(), 1000);
}

#[test]
fn the_next_priority_takes_what_the_first_can_not() {
    let mut members = endpoints(10);
    for (at, member) in members.iter_mut().enumerate().skip(5) {
        *member = Arc::new(Endpoint { priority: 1, ..endpoint(20 + u8::try_from(at).unwrap()) });
    }
    let set = EndpointSet::new(members, &Balancing::default(), true);
    let second = |now| shares(&set, now)[5..].iter().sum::<usize>();
    let mut now = Instant::now();
    assert_eq!(second(now), 0);
    let mut out = |count: usize| {
        now += Duration::from_secs(1);
        set.endpoints[..count].iter().for_each(|one| one.standing.eject(now, Duration::from_secs(3600)));
        now
    };
    assert_eq!(second(out(1)), 0, "four of five can do it");
    let some = second(out(3));
    assert!((360..520).contains(&some), "two of five can do 56 %: {some}");
    assert_eq!(second(out(5)), 1000);
    let now = out(8);
    let shares = shares(&set, now);
    assert!(shares[5..].iter().all(|got| *got > 0), "too few are left of the second: {shares:?}");
    assert_eq!(shares[..5].iter().sum::<usize>(), 0, "none is left of the first");
}

#[test]
fn places_have_weights() {
    let place = |name: &str, weight| Arc::new(Locality { name: name.into(), weight });
    let (near, far) = (place("near", 3), place("far", 1));
    let members: Vec<Arc<Endpoint>> = (1..=4)
        .map(|last| {
            Arc::new(Endpoint { locality: if last == 1 { near.clone() } else { far.clone() }, ..endpoint(last) })
        })
        .collect();
    let balancing = Balancing { by_locality: true, ..Balancing::default() };
    let set = EndpointSet::new(members.clone(), &balancing, true);
    let now = Instant::now();
    let near = shares(&set, now)[0];
    assert!((680..820).contains(&near), "{near}");
    members[0].standing.eject(now, Duration::from_secs(60));
    assert_eq!(shares(&set, now + Duration::from_secs(1))[0], 0);
}

#[test]
fn what_is_new_begins_with_less() {
    for method in [Method::LeastRequest, Method::RoundRobin] {
        let slow = SlowStart { window: Duration::from_secs(10), least: 0.1, aggression: 1.0 };
        let balancing = Balancing { slow_start: Some(slow), ..by(method) };
        let set = EndpointSet::new(endpoints(2), &balancing, true);
        let now = Instant::now() + Duration::from_secs(60);
        set.endpoints[1].standing.eject(now, Duration::ZERO);
        set.endpoints[1].standing.readmit(now);
        // Requests that stay, so that load counts.
        let mut held = Vec::new();
        let mut got = [0_usize; 2];
        for _ in 0..400 {
            let one = pick(&set, &[], now).unwrap();
            got[usize::from(one.address == set.endpoints[1].address)] += 1;
            held.push(one.state.enter());
        }
        assert!(got[1] < 130, "{method:?}: {got:?}");
        drop(held);
        let later = shares(&set, now + Duration::from_secs(20));
        assert!(later[1] > 300, "{method:?}: {later:?}");
    }
}

/// What is watched is looked at through atomics that all workers share, and the configuration's word counts like an ejection.
#[test]
fn the_configuration_says_who_is_not_well() {
    let mut members = endpoints(3);
    members[0] = Arc::new(Endpoint { healthy: false, ..endpoint(1) });
    let set = EndpointSet::new(members, &Balancing::default(), false);
    assert_eq!(share(&set, 0), 0);
}
