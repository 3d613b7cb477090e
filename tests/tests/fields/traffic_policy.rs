//! TrafficPolicy.

use std::{sync::atomic::Ordering::SeqCst, thread::sleep, time::Duration};

use serde_json::{Value, json};
use weir_tests::is_root;

use crate::{
    ask::{Ask, Probe, call, get},
    document,
    mesh::{BLACK_HOLE, GRPC, HTTP, Mesh, SERVICE, listed},
    objects::{and, backend, grpc, http, object, policy, route},
    table::Table,
};

/// Requests of which so many are sent again that the savings of the budget are used up.
const SPENDING: usize = 150;

#[test]
fn traffic_policy() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("TrafficPolicy") else { return };
    let mesh = Mesh::new("fields-policy");
    targets(&mut table, &mesh);
    faults(&mut table, &mesh);
    limits(&mut table, &mesh);
    checks(&mut table, &mesh);
    what_is_asked(&mut table, &mesh);
    retries(&mut table, &mesh);
    table.finish();
}

/// Requests of the target fail.
fn targets(table: &mut Table, mesh: &Mesh) {
    const ROUTES: &str = "gateway.networking.k8s.io";
    let one = || json!({"backendRefs": [backend("one", HTTP)]});
    let routes = [
        route(
            "HTTPRoute",
            HTTP,
            json!([
                and(one(), json!({"name": "a", "matches": [{"path": {"value": "/a"}}]})),
                and(one(), json!({"name": "b"}))
            ]),
        ),
        grpc(json!({"backendRefs": [backend("one", GRPC)]})),
    ];
    let of = |target: Value| {
        let spec = json!({"targetRefs": [target], "fault": {"abort": {"httpStatus": 418}}});
        let [http, grpc] = routes.clone();
        [http, grpc, object("weir.dev/v1alpha1", "TrafficPolicy", "policy", spec)]
    };
    let target = |group: &str, kind: &str, name: &str| of(json!({"group": group, "kind": kind, "name": name}));
    let service = target("", "Service", SERVICE);
    for other in [target("apps", "Service", SERVICE), target("", "ConfigMap", SERVICE), target("", "Service", "one")] {
        table.acts(mesh, &get("/").status(), (&service, "418"), (&other, "200"));
    }
    let of_http = target(ROUTES, "HTTPRoute", "rules");
    let of_grpc = target(ROUTES, "GRPCRoute", "rules");
    table.acts(mesh, &get("/").status(), (&of_http, "418"), (&of_grpc, "200"));
    table.acts(mesh, &call("/a.S/M").status(), (&of_grpc, "grpc-status 2"), (&of_http, "grpc-status 0"));
    let of_rule = of(json!({"group": ROUTES, "kind": "HTTPRoute", "name": "rules", "sectionName": "a"}));
    table.acts(mesh, &get("/b").status(), (&of_rule, "200"), (&of_http, "418"));
}

/// How many of ten requests are as said.
fn how_many(what: &str, is_so: impl Fn(&Mesh, std::net::Ipv4Addr) -> bool + 'static) -> Probe {
    Probe::new(format!("10 times `GET /`: how many {what}"), move |mesh, service| {
        match (0..10).filter(|_| is_so(mesh, service)).count() {
            0 => "none".into(),
            10 => "all".into(),
            _ => "some".into(),
        }
    })
}

fn faults(table: &mut Table, mesh: &Mesh) {
    let fault = |fault: Value| [policy(and(json!({"limits": {"requestBodyBytes": 1000}}), json!({"fault": fault})))];
    let plain = [policy(json!({"limits": {"requestBodyBytes": 1000}}))];
    let time = || get("/").takes(300);
    let late = fault(json!({"delay": {"fixedDelay": "300ms"}}));
    table.acts(mesh, &time(), (&late, "200 after more than 300 ms"), (&plain, "200 after less than 300 ms"));
    let (wait, some_wait) = (
        fault(json!({"delay": {"fixedDelay": "50ms"}})),
        fault(json!({"delay": {"fixedDelay": "50ms", "percent": 50}})),
    );
    let waits = how_many("take 50 ms", |mesh, service| {
        let start = std::time::Instant::now();
        get("/").send(mesh, service);
        start.elapsed() >= Duration::from_millis(50)
    });
    table.acts(mesh, &waits, (&some_wait, "some"), (&wait, "all"));
    let (fail, some_fail) =
        (fault(json!({"abort": {"httpStatus": 418}})), fault(json!({"abort": {"httpStatus": 418, "percent": 50}})));
    table.acts(mesh, &get("/").status(), (&fail, "418"), (&plain, "200"));
    table.acts(
        mesh,
        &how_many("fail", |mesh, service| !get("/").send(mesh, service).is_good),
        (&some_fail, "some"),
        (&fail, "all"),
    );
    let exhausted = fault(json!({"abort": {"grpcStatus": 8}}));
    table.acts(mesh, &call("/a.S/M").status(), (&exhausted, "grpc-status 8"), (&plain, "grpc-status 0"));
}

fn limits(table: &mut Table, mesh: &Mesh) {
    let rate = |rate: Value| [policy(json!({"rateLimit": rate}))];
    let passed = || {
        Probe::new("10 times `GET /`: how many are not answered with 429", |mesh, service| {
            let answers = (0..10).map(|_| get("/").send(mesh, service));
            answers.filter(|answer| answer.status == "200").count().to_string()
        })
    };
    let three = rate(json!({"requests": 3, "interval": "1h"}));
    table.acts(mesh, &passed(), (&three, "3"), (&rate(json!({"requests": 5, "interval": "1h"})), "5"));
    table.acts(mesh, &passed(), (&rate(json!({"requests": 3, "interval": "1h", "burst": 8})), "8"), (&three, "3"));
    let later = Probe::new("a second after requests were too many: status of `GET /`", |mesh, service| {
        while get("/").send(mesh, service).status == "200" {}
        sleep(Duration::from_millis(1200));
        get("/").send(mesh, service).status
    });
    table.acts(mesh, &later, (&three, "429"), (&rate(json!({"requests": 3})), "200"));
    let bytes = [policy(json!({"limits": {"requestBodyBytes": 10}}))];
    let more = [policy(json!({"limits": {"requestBodyBytes": 11}}))];
    table.acts(mesh, &get("/").body(11).status(), (&bytes, "413"), (&more, "200"));
}

fn check(check: Value) -> [Value; 1] {
    [policy(json!({"healthChecks": [check]}))]
}

/// Who answers after pod one was not well for a while, or again was.
fn after(well: bool) -> Probe {
    let (was, is) = if well { ("not well", "well") } else { ("well", "not well") };
    Probe::new(
        format!("after 0.8 s in which pod one is {is}, and was {was} before: who answers"),
        move |mesh, service| {
            let who = || get("/").pods().see(mesh, service);
            who();
            mesh.well.store(!well, SeqCst);
            for _ in 0..40 {
                sleep(Duration::from_millis(25));
                if well && who() == "two" {
                    break;
                }
            }
            mesh.well.store(well, SeqCst);
            sleep(Duration::from_millis(800));
            let seen = who();
            mesh.well.store(true, SeqCst);
            seen
        },
    )
}

/// When checks are made, and how many count.
fn checks(table: &mut Table, mesh: &Mesh) {
    let health =
        |more: Value| check(and(json!({"type": "HTTP", "interval": "100ms", "http": {"path": "/healthz"}}), more));
    let plain = health(json!({}));
    let often = health(json!({"unhealthyThreshold": 1}));
    let rarely = health(json!({"unhealthyThreshold": 1, "interval": "5s"}));
    table.acts(mesh, &after(false), (&often, "two"), (&rarely, "one and two"));
    table.acts(mesh, &after(false), (&health(json!({"unhealthyThreshold": 50})), "one and two"), (&plain, "two"));
    table.acts(mesh, &after(true), (&health(json!({"healthyThreshold": 50})), "two"), (&plain, "one and two"));
    let slow = |more: Value| {
        check(and(
            json!({"type": "HTTP", "interval": "100ms", "unhealthyThreshold": 1, "http": {"path": "/one-is-slow"}}),
            more,
        ))
    };
    table.acts(mesh, &get("/").pods(), (&slow(json!({"timeout": "100ms"})), "two"), (&slow(json!({})), "one and two"));
}

fn what_is_asked(table: &mut Table, mesh: &Mesh) {
    let asks = |check: Value| {
        self::check(and(json!({"interval": "100ms", "timeout": "200ms", "unhealthyThreshold": 1}), check))
    };
    let http = |http: Value| asks(json!({"type": "HTTP", "http": http}));
    let (both, pods) = ("one and two", || get("/").pods());
    let other = || [policy(json!({"retryBudget": {}}))];
    table.acts(mesh, &pods(), (&http(json!({"path": "/one-is-sick"})), "two"), (&other(), both));
    table.acts(mesh, &pods(), (&http(json!({"path": "/one-is-sick"})), "two"), (&http(json!({"path": "/"})), both));
    let host = json!({"path": "/one-is-sick-for-a-host", "host": "sick.example"});
    table.acts(mesh, &pods(), (&http(host), "two"), (&http(json!({"path": "/one-is-sick-for-a-host"})), both));
    let teapot = |more: Value| http(and(json!({"path": "/one-is-a-teapot"}), more));
    table.acts(mesh, &pods(), (&teapot(json!({"statuses": [200, 418]})), both), (&teapot(json!({})), "two"));
    let grpc = |grpc: Value| asks(json!({"type": "GRPC", "grpc": grpc}));
    let calls = || call("/a.S/M").pods();
    let sick = grpc(json!({"service": "sick"}));
    table.acts(mesh, &calls(), (&sick, "two"), (&other(), both));
    table.acts(mesh, &calls(), (&sick, "two"), (&grpc(json!({})), both));
    // An address that nothing comes back from. Without a check each connection to it is tried until its time is over.
    let service = || listed(&[mesh.pods[1].ip, BLACK_HOLE]);
    let tcp = asks(json!({"type": "TCP"}));
    let slowest =
        Probe::new("the slowest of 8 times `GET /`, where one of two addresses does not answer", |mesh, service| {
            let times = (0..8).map(|_| get("/").takes(500).see(mesh, service));
            times.max().unwrap_or_default() // "less" comes before "more"
        });
    let with = |policy: &[Value]| [policy.to_vec(), service()].concat();
    table.acts(
        mesh,
        &slowest,
        (&with(&tcp), "200 after less than 500 ms"),
        (&with(&other()), "200 after more than 500 ms"),
    );
}

/// Requests fail everywhere, and are sent again as far as the budget goes.
fn retries(table: &mut Table, mesh: &Mesh) {
    let route = http(json!({"backendRefs": [backend(SERVICE, HTTP)], "retry": {"codes": [503], "attempts": 1}}));
    let budget = |budget: Value| [policy(json!({"retryBudget": budget})), route.clone()];
    let again =
        Probe::new(format!("{SPENDING} failing requests with one retry: how many are sent again"), |mesh, service| {
            let before = mesh.requests("one") + mesh.requests("two");
            let ask: Ask = get("/").with("x-status", "503");
            (0..SPENDING).for_each(|_| drop(ask.send(mesh, service)));
            let came = mesh.requests("one") + mesh.requests("two") - before;
            if came == 2 * SPENDING { "all".into() } else { "some".into() }
        });
    let all = budget(json!({"percent": 100, "minConcurrency": 0}));
    let fifth = budget(json!({"minConcurrency": 0}));
    table.acts(mesh, &again, (&all, "all"), (&fifth, "some"));
    table.acts(mesh, &again, (&fifth, "some"), (&budget(json!({})), "all"));
}
