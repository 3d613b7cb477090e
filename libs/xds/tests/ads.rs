//! Client and server against each other over gRPC and TLS on loopback, with the faults that a network has.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[allow(unreachable_pub)] // shared by the files of this folder
mod support;

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use support::{BlackHole, Memory, NODE, Proxy, Replica, TOKEN, Tls, quick, until};
use weir_xds::{Kind, MAX_NAME_BYTES, server::Limits};

fn pair(name: &str, body: &str) -> (String, String) {
    (name.into(), body.into())
}

#[tokio::test]
async fn known_changed_removed_unknown_and_known_again() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let replica = Replica::start(&memory, &tls, Limits::default()).await;
    let mut proxy = Proxy::start(replica.address, &tls.root);
    memory.set(Kind::Cluster, "a", "1");
    proxy.names.add(Kind::Cluster, "a");
    proxy.connected().await;
    assert_eq!(proxy.added().await, pair("a", "1"));

    proxy.names.add(Kind::Endpoints, "b");
    assert_eq!(proxy.removed().await, "b", "unknown is an answer");
    memory.set(Kind::Endpoints, "b", "1");
    assert_eq!(proxy.added().await, pair("b", "1"), "pushed when it becomes known");
    memory.set(Kind::Cluster, "a", "2");
    assert_eq!(proxy.added().await, pair("a", "2"));
    memory.remove(Kind::Cluster, "a");
    assert_eq!(proxy.removed().await, "a");
    memory.set(Kind::Cluster, "a", "2");
    assert_eq!(proxy.added().await, pair("a", "2"));

    // Given up, and asked for again: answered again, even with the version that was there before.
    proxy.names.remove(Kind::Cluster, "a");
    proxy.names.add(Kind::Cluster, "a");
    assert_eq!(proxy.added().await, pair("a", "2"));

    proxy.names.remove(Kind::Cluster, "a");
    until("the server forgets the name", || memory.watched() == 1).await;
    memory.set(Kind::Cluster, "a", "3");
    memory.set(Kind::Endpoints, "b", "2");
    assert_eq!(proxy.added().await, pair("b", "2"), "what is not asked for does not arrive");
    drop(proxy);
    until("a stream that ended leaves nothing behind", || memory.watched() == 0).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_refused_resource_is_told_and_the_rest_of_the_response_holds() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let replica = Replica::start(&memory, &tls, Limits::default()).await;
    memory.set(Kind::Listener, "good", "1");
    memory.set(Kind::Listener, "broken", "bad");
    let mut proxy = Proxy::start(replica.address, &tls.root);
    proxy.names.add(Kind::Listener, "good");
    proxy.names.add(Kind::Listener, "broken");
    proxy.connected().await;
    assert_eq!(proxy.added().await, pair("good", "1"));
    until("the refusal arrives", || !memory.nacks.lock().unwrap().is_empty()).await;
    assert_eq!(*memory.nacks.lock().unwrap(), ["broken: is not understood"]);
    memory.set(Kind::Listener, "broken", "2");
    assert_eq!(proxy.added().await, pair("broken", "2"), "mended");
    replica.stop().await;
}

#[tokio::test]
async fn another_replica_resends_nothing_and_tells_what_changed_meanwhile() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let first = Replica::start(&memory, &tls, Limits::default()).await;
    for i in 0..500 {
        memory.set(Kind::Endpoints, &format!("e{i}"), "1");
    }
    let address = Arc::new(Mutex::new(first.address));
    let mut proxy = Proxy::with(address.clone(), &tls.root, NODE, TOKEN, quick());
    for i in 0..500 {
        proxy.names.add(Kind::Endpoints, format!("e{i}"));
    }
    proxy.connected().await;
    proxy.collect(500).await;
    assert_eq!(memory.sent.load(Ordering::SeqCst), 500);

    let second = Replica::start(&memory, &tls, Limits::default()).await;
    *address.lock().unwrap() = second.address;
    first.stop().await;
    let reason = proxy.lost().await;
    assert!(reason.contains("shuts down"), "{reason}");
    memory.set(Kind::Endpoints, "e7", "2");
    memory.remove(Kind::Endpoints, "e8");
    // Given up and asked for again while there may be no stream: answered again.
    proxy.names.remove(Kind::Endpoints, "e9");
    proxy.names.add(Kind::Endpoints, "e9");
    proxy.connected().await;
    let names = proxy.collect(3).await;
    assert_eq!(names, ["e7", "e8", "e9"].map(String::from).into());
    assert_eq!(memory.sent.load(Ordering::SeqCst), 502, "content that the client has is not sent again");
    assert_eq!(memory.removed.load(Ordering::SeqCst), 1);
    second.stop().await;
}

#[tokio::test]
async fn a_server_that_was_restarted_is_found_again() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let replica = Replica::start(&memory, &tls, Limits::default()).await;
    let address = replica.address;
    let mut proxy = Proxy::start(address, &tls.root);
    proxy.names.add(Kind::Route, "r");
    proxy.connected().await;
    assert_eq!(proxy.removed().await, "r");
    replica.stop().await;
    proxy.lost().await;
    memory.set(Kind::Route, "r", "1");
    let replica = Replica::start_at(&memory, &tls, Limits::default(), address).await;
    proxy.connected().await;
    assert_eq!(proxy.added().await, pair("r", "1"));
    replica.stop().await;
}

#[tokio::test]
async fn a_black_holed_port_is_noticed_and_left() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let replica = Replica::start(&memory, &tls, Limits::default()).await;
    let hole = BlackHole::before(replica.address).await;
    let mut proxy = Proxy::start(hole.address, &tls.root);
    proxy.names.add(Kind::Cluster, "a");
    proxy.connected().await;
    assert_eq!(proxy.removed().await, "a");

    hole.silence(true);
    let start = Instant::now();
    proxy.lost().await;
    assert!(start.elapsed() < Duration::from_secs(5), "noticed after {:?}", start.elapsed());
    memory.set(Kind::Cluster, "a", "1");
    hole.silence(false);
    proxy.connected().await;
    assert_eq!(proxy.added().await, pair("a", "1"));
    replica.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let replica = Replica::start(&memory, &tls, Limits::default()).await;
    let address = || Arc::new(Mutex::new(replica.address));
    let mut proxy = Proxy::with(address(), &tls.root, NODE, "wrong", quick());
    assert!(proxy.lost().await.contains("no such token"));
    let mut proxy = Proxy::with(address(), &tls.root, "other.pod", TOKEN, quick());
    proxy.names.add(Kind::Cluster, "a");
    proxy.connected().await;
    assert!(proxy.lost().await.contains("another pod"));
    let mut proxy = Proxy::with(address(), &Tls::new().root, NODE, TOKEN, quick());
    let reason = proxy.lost().await;
    assert!(reason.contains("certificate"), "{reason}");
    drop(proxy);
    until("no stream is left", || memory.watched() == 0).await;
    replica.stop().await;
}

#[tokio::test]
async fn names_are_bounded_on_both_sides() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let limits = Limits { names: 1000, ..Limits::default() };
    let replica = Replica::start(&memory, &tls, limits).await;
    let mut proxy = Proxy::start(replica.address, &tls.root);
    assert!(!proxy.names.add(Kind::Cluster, "n".repeat(MAX_NAME_BYTES + 1)));
    let mut taken = 0;
    for i in 0..100_000 {
        taken +=
            usize::from(proxy.names.add(Kind::Cluster, format!("outbound|80||service-{i}.shop.svc.cluster.local")));
    }
    assert_eq!(taken, weir_xds::client::MAX_SUBSCRIPTIONS);
    proxy.connected().await;
    proxy.collect(1000).await;
    until("the rest is refused", || memory.refused.load(Ordering::SeqCst) == taken - 1000).await;
    assert_eq!(memory.watched(), 1000);
    replica.stop().await;
}

#[tokio::test]
async fn many_changes_of_a_slow_client_are_few_responses() {
    let (memory, tls) = (Arc::new(Memory::default()), Tls::new());
    let replica = Replica::start(&memory, &tls, Limits::default()).await;
    let mut proxy = Proxy::start(replica.address, &tls.root);
    proxy.names.add(Kind::Endpoints, "e");
    proxy.connected().await;
    assert_eq!(proxy.removed().await, "e");
    for i in 0..10_000 {
        memory.set(Kind::Endpoints, "e", &i.to_string());
    }
    while proxy.added().await.1 != "9999" {}
    assert!(memory.sent.load(Ordering::SeqCst) < 5000, "{} responses", memory.sent.load(Ordering::SeqCst));
    replica.stop().await;
}
