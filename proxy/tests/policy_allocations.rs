//! Memory taken from the allocator for one look at the access rules.
#![allow(clippy::unwrap_used, reason = "test code")]

mod counting;

use std::sync::Arc;

use counting::ALLOCATIONS;
use weir_mesh::Identity;
use weir_proxy::policy::{Access, Condition, Facts, Rule, Rules, Text};

fn rule(when: Condition) -> Rule {
    Rule { policy: "shop/p".into(), index: "0".into(), when }
}

#[test]
fn judging_an_allowed_connection_allocates_nothing() {
    let never = || {
        Condition::All(
            [
                Condition::Namespace(Text::Prefix("other-".into())),
                Condition::Not(Box::new(Condition::From("10.0.0.0/8".parse().unwrap()))),
            ]
            .into(),
        )
    };
    let friend = Condition::Principal(Text::Exact("spiffe://cluster.local/ns/shop/sa/friend".into()));
    let deny = (0..50).map(|_| rule(never())).collect();
    let allow = (0..50).map(|_| rule(never())).chain([rule(friend)]).collect();
    let access = Access {
        strict: Some("PeerAuthentication shop/default".into()),
        rules: Arc::new(Rules { deny, allow: Some(allow) }),
    };
    let principal: Identity = "spiffe://cluster.local/ns/shop/sa/friend".parse().unwrap();
    let facts =
        Facts { principal: Some(&principal), from: "10.1.2.3".parse().unwrap(), to: "10.9.9.9:80".parse().unwrap() };
    let before = ALLOCATIONS.get();
    assert!((0..1000).all(|_| access.judge(&facts).is_ok()));
    assert_eq!(ALLOCATIONS.get(), before);
    // The counter counts: a refusal is told with names, which are put together.
    assert!(access.judge(&Facts { principal: None, ..facts }).is_err());
    let other: Identity = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
    let before = ALLOCATIONS.get();
    assert!(access.judge(&Facts { principal: Some(&other), ..facts }).is_err());
    assert!(ALLOCATIONS.get() > before);
}
