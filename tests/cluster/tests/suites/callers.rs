//! Callers of the roll-outs' service: two that go on asking and count, and one for single requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a step that fails is a failed test

use std::time::Duration;

use serde_json::{Value, json};
use weir_cluster::{
    Case,
    pods::{self, Wanted},
};

/// Who asks all the time, one on each node, and so many times a second each.
pub(crate) const CALLERS: [&str; 2] = ["load-1", "load-2"];
pub(crate) const RATE: u32 = 50;

/// Starts them, and waits until they know the service.
pub(crate) async fn start(case: &Case<'_>) {
    let load = format!("{{name: app, image: 'weir.test/app:1', args: [load, --url=http://catalog, --rate={RATE}]}}");
    for (name, node) in CALLERS.iter().zip(["node1", "node2"]) {
        case.apply(&Wanted::new(name, node).with(std::slice::from_ref(&load)));
    }
    case.apply(&Wanted::new("client", "node2").waiting());
    for name in CALLERS.iter().chain(&["client"]) {
        case.ready(name).await;
    }
    pods::known(case, "client", &[&format!("catalog.{}.svc.cluster.local", case.namespace)]).await;
}

/// What the callers have counted together, as they say it at this path: requests sent, answered as they should be, and failed.
pub(crate) fn asked(case: &Case<'_>, path: &str) -> (u64, u64, u64) {
    let url = format!("http://127.0.0.1:8081{path}");
    let of = |name: &str| -> Value {
        let said: Value = serde_json::from_str(&case.exec(name, &["/app", "fetch", "--seconds=30", &url])).unwrap();
        if said["failed"] != 0 {
            println!("    {name}: {}", said["reasons"][0]);
        }
        said
    };
    let all = CALLERS.map(of);
    let sum = |key: &str| all.iter().map(|one| one[key].as_u64().unwrap()).sum();
    (sum("sent"), sum("ok"), sum("failed"))
}

/// A version of which 60 % of the requests fail got 5 % of them and was turned back: so much has failed, and nothing does any more.
pub(crate) async fn saw_little_of_it(case: &Case<'_>) {
    let (sent, _, failed) = asked(case, "/reset");
    println!("  {failed} of {sent} requests failed until it was turned back");
    // Some came before and after.
    assert!(failed > 0 && failed * 100 <= sent * 5, "{failed} of {sent}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (sent, _, failed) = asked(case, "/stop");
    assert!(sent > u64::from(RATE) && failed == 0, "{failed} of {sent} failed afterwards");
}

/// Requests from the client's pod: who answered them.
pub(crate) fn requests(case: &Case<'_>, more: &[&str]) -> Value {
    serde_json::from_str(&case.exec("client", &[&["/app", "fetch", "http://catalog/"], more].concat())).unwrap()
}

pub(crate) fn answers(said: &Value, version: &str) -> u64 {
    said["versions"][version]["count"].as_u64().unwrap_or(0)
}

/// The same of so many requests that are all answered.
pub(crate) fn share(case: &Case<'_>, of: u64, version: &str) -> u64 {
    let said = requests(case, &[&format!("--count={of}")]);
    assert_eq!(said["statuses"], json!({"200": of}), "{said}");
    answers(&said, version)
}
