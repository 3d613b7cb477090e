//! Memory taken from the allocator for one look at the access rules.
#![allow(unsafe_code, reason = "a counting allocator is an unsafe trait; it only counts and passes on")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use weir_mesh::Identity;
use weir_proxy::policy::{Access, Condition, Facts, Rule, Rules, Text};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

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
