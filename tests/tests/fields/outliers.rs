//! Outlier detection of a DestinationRule: pod one fails, and pod two does not.

use std::{net::Ipv4Addr, thread::sleep, time::Duration};

use serde_json::{Value, json};

use crate::{
    ask::{Probe, get},
    destination_rule::Place,
    mesh::Mesh,
    objects::and,
    table::Table,
};

/// How many of 20 requests fail, of which pod one gets every other one unless it is left out.
fn failures(text: &str, header: &'static str, value: &'static str) -> Probe {
    Probe::new(format!("20 times `POST /`, where pod one {text}: how many fail"), move |mesh, service| {
        let ask = get("/").body(1).with("x-at", "one").with(header, value);
        (0..20).filter(|_| !ask.send(mesh, service).is_good).count().to_string()
    })
}

/// Pod one fails until it is left out.
fn fail(mesh: &Mesh, service: Ipv4Addr) {
    let ask = get("/").with("x-at", "one").with("x-status", "500");
    for _ in 0..4 {
        ask.send(mesh, service);
    }
}

/// Whether pod one is asked again so many milliseconds after it was left out.
fn is_back(mesh: &Mesh, service: Ipv4Addr, after: u64) -> String {
    sleep(Duration::from_millis(after));
    if get("/").pods().see(mesh, service) == "one and two" {
        "it is asked again".into()
    } else {
        "it is left out".into()
    }
}

pub(crate) fn show(table: &mut Table, mesh: &Mesh, place: Place) {
    let detect = |detection: Value| {
        [place.rule(json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": detection}))]
    };
    let answers = |status: &'static str| failures(&format!("answers {status}"), "x-status", status);
    let closes = || failures("closes the connection", "x-close", "1");
    let two = || json!({"consecutive5xxErrors": 2});
    let plain = detect(two());
    table.acts(mesh, &answers("500"), (&plain, "2"), (&detect(json!({})), "5"));
    let gateway = |more: Value| detect(and(json!({"consecutive5xxErrors": 0}), more));
    table.acts(
        mesh,
        &answers("503"),
        (&gateway(json!({"consecutiveGatewayErrors": 2})), "2"),
        (&gateway(json!({})), "10"),
    );
    let apart = detect(and(two(), json!({"splitExternalLocalOriginErrors": true})));
    table.acts(mesh, &closes(), (&apart, "5"), (&plain, "2"));
    let three =
        detect(and(two(), json!({"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 3})));
    table.acts(mesh, &closes(), (&three, "3"), (&apart, "5"));
    table.acts(mesh, &answers("500"), (&detect(and(two(), json!({"maxEjectionPercent": 0}))), "10"), (&plain, "2"));
    table.acts(mesh, &answers("500"), (&detect(and(two(), json!({"minHealthPercent": 60}))), "10"), (&plain, "2"));
    let once = |more: Value| detect(and(json!({"consecutive5xxErrors": 1}), more));
    let short = once(json!({"baseEjectionTime": "300ms"}));
    let later = Probe::new("0.45 s after pod one has failed: whether it is asked again", |mesh, service| {
        fail(mesh, service);
        is_back(mesh, service, 450)
    });
    table.acts(mesh, &later, (&short, "it is asked again"), (&once(json!({})), "it is left out"));
    let twice =
        Probe::new("0.45 s after pod one has failed a second time, and was well for 0.3 s between", |mesh, service| {
            fail(mesh, service);
            is_back(mesh, service, 450);
            sleep(Duration::from_millis(300));
            fail(mesh, service);
            is_back(mesh, service, 450)
        });
    let often = once(json!({"baseEjectionTime": "300ms", "interval": "100ms"}));
    table.acts(mesh, &twice, (&often, "it is asked again"), (&short, "it is left out"));
}
