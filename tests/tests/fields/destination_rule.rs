//! DestinationRule, but for outlier detection. The servers have no proxies: what they see is what the caller's proxy does.

use std::{net::Ipv4Addr, thread, time::Duration};

use serde_json::{Value, json};
use weir_tests::is_root;

use crate::{
    ask::{self, Answer, Ask, Probe, get},
    document,
    mesh::{BLACK_HOLE, HTTP, MORE_HTTP, Mesh, SERVICE, listed, service},
    objects::{and, backend, destination, http, object},
    outliers,
    table::Table,
};

/// Where a policy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// For all ports.
    All,
    /// For the port that is asked.
    Port,
}

impl Place {
    /// The policy in this place.
    pub(crate) fn rule(self, policy: Value) -> Value {
        match self {
            Self::All => destination(policy),
            Self::Port => destination(json!({"portLevelSettings": [and(json!({"port": {"number": HTTP}}), policy)]})),
        }
    }

    fn balanced(self, balancer: Value) -> [Value; 1] {
        [self.rule(json!({"loadBalancer": balancer}))]
    }
}

#[test]
fn destination_rule() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("DestinationRule") else { return };
    let mesh = Mesh::without_servers_proxies("fields-destination");
    for place in [Place::All, Place::Port] {
        simple(&mut table, &mesh, place);
        hashes(&mut table, &mesh, place);
        warm_up(&mut table, &mesh, place);
        places(&mut table, &mesh, place);
        connections(&mut table, &mesh, place);
        requests(&mut table, &mesh, place);
        outliers::show(&mut table, &mesh, place);
    }
    let keys = json!({"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}});
    let of = |host: &str| {
        object("networking.istio.io/v1", "DestinationRule", "calls", json!({"host": host, "trafficPolicy": keys}))
    };
    let user = |user: usize| get("/").with("x-user", &user.to_string());
    table.acts(&mesh, &by_key("x-user", user), (&[of(SERVICE)], "always the same pod"), (&[of("one")], "any pod"));
    let port = |number: u16| {
        destination(json!({"portLevelSettings": [and(json!({"port": {"number": number}}), keys.clone())]}))
    };
    table.acts(&mesh, &by_key("x-user", user), (&[port(HTTP)], "always the same pod"), (&[port(MORE_HTTP)], "any pod"));
    refused(&mut table);
    table.finish();
}

fn simple(table: &mut Table, mesh: &Mesh, place: Place) {
    let by = |name: &str| place.balanced(json!({"simple": name}));
    let turns = || {
        Probe::new("20 times `GET /`: who answers", |mesh, service| {
            let all: Vec<String> = (0..20).map(|_| get("/").send(mesh, service).pod()).collect();
            if all.windows(2).all(|pair| pair[0] != pair[1]) { "in turns".into() } else { "not in turns".into() }
        })
    };
    let slow = || {
        Probe::new("200 times `GET /`, where pod one takes 5 ms longer: who answers", |mesh, service| {
            let ask = get("/").with("x-at", "one").with("x-wait", "5");
            let shares = ask::shares((0..200).map(|_| ask.send(mesh, service).pod()));
            if shares.get("one").is_some_and(|one| *one > 73) { "both alike".into() } else { "mostly pod two".into() }
        })
    };
    let (random, least) = (by("RANDOM"), by("LEAST_REQUEST"));
    table.acts(mesh, &turns(), (&by("ROUND_ROBIN"), "in turns"), (&random, "not in turns"));
    table.acts(mesh, &slow(), (&random, "both alike"), (&least, "mostly pod two"));
    for name in ["LEAST_REQUEST", "LEAST_CONN", "UNSPECIFIED"] {
        table.acts(mesh, &slow(), (&by(name), "mostly pod two"), (&random, "both alike"));
    }
}

/// Whether requests with the same key meet the same pod.
fn by_key(key: &str, ask: impl Fn(usize) -> Ask + 'static) -> Probe {
    Probe::new(format!("requests with the same `{key}`, of 12 values: who answers"), move |mesh, service| {
        let of = |value| ask(value).send(mesh, service).pod();
        let stays = (0..12).all(|value| {
            let first = of(value);
            (0..4).all(|_| of(value) == first)
        });
        if stays { "always the same pod".into() } else { "any pod".into() }
    })
}

/// How keys are shared out.
fn spread() -> Probe {
    Probe::new("200 values of `x-user`: whose they are", |mesh, service| {
        let of = |user: usize| get("/").with("x-user", &user.to_string()).send(mesh, service).pod();
        let shares = ask::shares((0..200).map(of));
        if shares.values().all(|count| (80..=120).contains(count)) {
            "half each".into()
        } else {
            "more of one pod".into()
        }
    })
}

fn hashes(table: &mut Table, mesh: &Mesh, place: Place) {
    let hash = |hash: Value| place.balanced(json!({"consistentHash": hash}));
    let none = hash(json!({"httpHeaderName": "x-none"}));
    let same = "always the same pod";
    let header = |user: usize| get("/").with("x-user", &user.to_string());
    let query = |user: usize| get(&format!("/?user={user}"));
    let cookie = |user: usize| get("/").with("cookie", &format!("user={user}"));
    table.acts(mesh, &by_key("x-user", header), (&hash(json!({"httpHeaderName": "x-user"})), same), (&none, "any pod"));
    let of_query = hash(json!({"httpQueryParameterName": "user"}));
    table.acts(mesh, &by_key("user in the query", query), (&of_query, same), (&none, "any pod"));
    let by_cookie = |more: Value| hash(json!({"httpCookie": and(json!({"name": "user"}), more)}));
    table.acts(mesh, &by_key("cookie user", cookie), (&by_cookie(json!({})), same), (&none, "any pod"));
    let all = by_key("source address", |_| get("/"));
    table.acts(mesh, &all, (&hash(json!({"useSourceIp": true})), same), (&none, "any pod"));
    let given = || {
        Probe::new("`GET /`: the cookie of the answer, without its value", |mesh, service| {
            let cookie = get("/").send(mesh, service).header("set-cookie");
            let parts: Vec<&str> = cookie
                .split("; ")
                .filter(|part| ["Max-Age", "Path"].iter().any(|name| part.starts_with(name)))
                .collect();
            if parts.is_empty() { "none".into() } else { parts.join("; ") }
        })
    };
    let lasts = by_cookie(json!({"ttl": "60s"}));
    table.acts(mesh, &given(), (&lasts, "Max-Age=60"), (&by_cookie(json!({})), "none"));
    let below = by_cookie(json!({"ttl": "60s", "path": "/a"}));
    table.acts(mesh, &given(), (&below, "Max-Age=60; Path=/a"), (&lasts, "Max-Age=60"));
    let user = |more: Value| hash(and(json!({"httpHeaderName": "x-user"}), more));
    for size in [json!({"ringHash": {"minimumRingSize": 2}}), json!({"minimumRingSize": 2})] {
        table.acts(mesh, &spread(), (&user(size), "more of one pod"), (&user(json!({})), "half each"));
    }
    let table_of = |size: u64| user(json!({"maglev": {"tableSize": size}}));
    table.acts(mesh, &spread(), (&table_of(3), "more of one pod"), (&table_of(251), "half each"));
}

/// How much pod two gets at first, where it was away and the other one has been there for long.
fn newcomer() -> Probe {
    Probe::new("40 times `GET /` once pod two is back: how many are pod two's", |mesh, service| {
        let who = || get("/").send(mesh, service).pod();
        let since = std::time::Instant::now();
        who();
        mesh.pods[1].set_ready(false);
        mesh.until("pod two is away", || (0..8).all(|_| who() == "one"));
        thread::sleep(Duration::from_millis(1700).saturating_sub(since.elapsed()));
        mesh.pods[1].set_ready(true);
        mesh.until("pod two is back", || who() == "two");
        match (0..40).filter(|_| who() == "two").count() {
            0..=5 => "few".into(),
            6..=15 => "some".into(),
            _ => "half".into(),
        }
    })
}

fn warm_up(table: &mut Table, mesh: &Mesh, place: Place) {
    let warm = |more: Value| place.balanced(and(json!({"simple": "ROUND_ROBIN"}), more));
    let cold = warm(json!({}));
    let plain = warm(json!({"warmup": {"duration": "1.5s"}}));
    table.acts(mesh, &newcomer(), (&plain, "few"), (&cold, "half"));
    table.acts(mesh, &newcomer(), (&warm(json!({"warmupDurationSecs": "1.5s"})), "few"), (&cold, "half"));
    let half = warm(json!({"warmup": {"duration": "1.5s", "minimumPercent": 50}}));
    table.acts(mesh, &newcomer(), (&half, "some"), (&plain, "few"));
    let soon = warm(json!({"warmup": {"duration": "1.5s", "aggression": 100}}));
    table.acts(mesh, &newcomer(), (&soon, "half"), (&plain, "few"));
}

/// Machines of the caller and of both pods.
fn nodes(places: [&str; 3]) -> Vec<Value> {
    let node = |(name, place): (&str, &str)| {
        let (region, zone) = place.split_once('/').unwrap();
        let labels = json!({"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    };
    ["client", "one", "two"].into_iter().zip(places).map(node).collect()
}

fn places(table: &mut Table, mesh: &Mesh, place: Place) {
    let with = |places: [&str; 3], setting: Value| {
        let rule = place.rule(json!({"loadBalancer": {"localityLbSetting": setting}}));
        [nodes(places), vec![rule]].concat()
    };
    let pods = |places: [&str; 3]| {
        let [client, one, two] = places;
        let text =
            format!("12 times `GET /` from {client}, where pod one is in {one}, and pod two in {two}: who answers");
        Probe::new(text, |mesh, service| get("/").pods().see(mesh, service))
    };
    let home = ["us/a", "us/b", "asia/a"];
    let at_home = |setting: Value| with(home, setting);
    table.acts(
        mesh,
        &pods(home),
        (&at_home(json!({"enabled": false})), "one and two"),
        (&at_home(json!({"enabled": true})), "one"),
    );
    let spread = |from: &str, to: &str| at_home(json!({"distribute": [{"from": from, "to": {to: 100}}]}));
    let far = spread("us/*", "asia/*");
    table.acts(mesh, &pods(home), (&far, "two"), (&spread("eu/*", "asia/*"), "one and two"));
    table.acts(mesh, &pods(home), (&far, "two"), (&spread("us/*", "us/*"), "one"));
    let away = ["eu/a", "us/b", "asia/a"];
    let next = |from: &str, to: &str| with(away, json!({"failover": [{"from": from, "to": to}]}));
    let asia = next("eu", "asia");
    table.acts(mesh, &pods(away), (&asia, "two"), (&next("us", "asia"), "one and two"));
    table.acts(mesh, &pods(away), (&asia, "two"), (&next("eu", "us"), "one"));
}

/// Over how many connections these requests come to the server.
fn connections_of(text: &str, work: impl Fn(&Mesh, Ipv4Addr) -> Vec<Answer> + 'static) -> Probe {
    Probe::new(format!("{text}: connections that they come to the server by"), move |mesh, service| {
        ask::shares(work(mesh, service).iter().map(|answer| answer.header("x-connection"))).len().to_string()
    })
}

/// Answers to so many requests at once.
fn at_once(mesh: &Mesh, service: Ipv4Addr, count: usize) -> Vec<Answer> {
    let ask = get("/").with("x-wait", "200");
    thread::scope(|scope| {
        let asks: Vec<_> = (0..count).map(|_| scope.spawn(|| ask.send(mesh, service))).collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    })
}

/// What follows is shown by a Service of one pod.
fn only_one(rule: Value) -> Vec<Value> {
    vec![rule, service(json!({"app": "one"}))]
}

fn connections(table: &mut Table, mesh: &Mesh, place: Place) {
    let pool = |tcp: Value, http: Value| only_one(place.rule(json!({"connectionPool": {"tcp": tcp, "http": http}})));
    let plain = pool(json!({}), json!({}));
    let many = connections_of("4 times `GET /` at once, of 200 ms", |mesh, service| at_once(mesh, service, 4));
    table.acts(mesh, &many, (&pool(json!({"maxConnections": 1}), json!({})), "1"), (&plain, "4"));
    let series =
        connections_of("4 times `GET /`", |mesh, service| (0..4).map(|_| get("/").send(mesh, service)).collect());
    table.acts(mesh, &series, (&pool(json!({}), json!({"maxRequestsPerConnection": 1})), "4"), (&plain, "1"));
    let pause = connections_of("two times `GET /` with 0.4 s between", |mesh, service| {
        let first = get("/").send(mesh, service);
        thread::sleep(Duration::from_millis(400));
        vec![first, get("/").send(mesh, service)]
    });
    table.acts(mesh, &pause, (&pool(json!({}), json!({"idleTimeout": "100ms"})), "2"), (&plain, "1"));
    let nowhere = |tcp: Value| {
        let rule = place.rule(json!({"connectionPool": {"tcp": tcp}}));
        [vec![rule], listed(&[BLACK_HOLE])].concat()
    };
    let time = get("/").takes(900);
    table.acts(
        mesh,
        &time,
        (&nowhere(json!({"connectTimeout": "50ms"})), "503 after less than 900 ms"),
        (&nowhere(json!({})), "503 after more than 900 ms"),
    );
}

fn requests(table: &mut Table, mesh: &Mesh, place: Place) {
    let pool = |pool: Value| only_one(place.rule(json!({"connectionPool": pool})));
    let refused = || {
        Probe::new("6 times `GET /` at once, of 200 ms: status", |mesh, service| {
            let statuses = ask::shares(at_once(mesh, service, 6).into_iter().map(|answer| answer.status));
            statuses.into_keys().collect::<Vec<_>>().join(" and ")
        })
    };
    let one = pool(json!({"tcp": {"maxConnections": 1}}));
    let none_waits = pool(json!({"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}));
    table.acts(mesh, &refused(), (&none_waits, "200 and 503"), (&one, "200"));
    table.acts(
        mesh,
        &refused(),
        (&pool(json!({"http": {"http2MaxRequests": 1}})), "200 and 503"),
        (&pool(json!({})), "200"),
    );
    let route = http(json!({"backendRefs": [backend(SERVICE, HTTP)], "retry": {"codes": [503]}}));
    let retries = |http: Value| [pool(json!({"http": http})), vec![route.clone()]].concat();
    let attempts = crate::requests::attempts(get("/").with("x-status", "503"));
    table.acts(mesh, &attempts, (&retries(json!({"maxRetries": 0})), "1"), (&retries(json!({})), "3"));
}

/// What Istio has besides.
fn refused(table: &mut Table) {
    let plain = destination(json!({"loadBalancer": {"simple": "RANDOM"}}));
    for (field, value) in [
        ("exportTo[]", json!({"exportTo": ["."]})),
        ("workloadSelector", json!({"workloadSelector": {"matchLabels": {"app": "client"}}})),
        ("subsets[]", json!({"subsets": [{"name": "v1", "labels": {"version": "v1"}}]})),
    ] {
        let mut with = plain.clone();
        with["spec"] = and(with["spec"].clone(), value);
        table.refused(&[&format!("spec.{field}")], &with, &plain);
    }
    for (field, value) in [
        ("proxyProtocol", json!({"proxyProtocol": {"version": "V1"}})),
        ("retryBudget", json!({"retryBudget": {"percent": 20}})),
        ("tunnel", json!({"tunnel": {"targetHost": "a.example", "targetPort": 80}})),
    ] {
        table.refused(&[&format!("spec.trafficPolicy.{field}")], &destination(value), &destination(json!({})));
    }
    for place in [Place::All, Place::Port] {
        let at = match place {
            Place::All => "spec.trafficPolicy",
            Place::Port => "spec.trafficPolicy.portLevelSettings[]",
        };
        let hash = |more: Value| json!({"loadBalancer": {"consistentHash": more}});
        let (tcp, http) = (
            |tcp: Value| json!({"connectionPool": {"tcp": tcp}}),
            |http: Value| json!({"connectionPool": {"http": http}}),
        );
        let cookie = json!({"name": "a", "attributes": [{"name": "a", "value": "b"}]});
        let places = |more: Value| json!({"loadBalancer": {"localityLbSetting": more}});
        for (field, with, without) in [
            ("tls", json!({"tls": {"mode": "DISABLE"}}), json!({})),
            ("loadBalancer.simple=PASSTHROUGH", json!({"loadBalancer": {"simple": "PASSTHROUGH"}}), json!({})),
            (
                "loadBalancer.backendUtilization",
                json!({"loadBalancer": {"backendUtilization": {"weightUpdatePeriod": "1s"}}}),
                json!({}),
            ),
            (
                "loadBalancer.zoneAwareLbSetting",
                json!({"loadBalancer": {"zoneAwareLbSetting": {"enabled": true}}}),
                json!({}),
            ),
            (
                "loadBalancer.localityLbSetting.failoverPriority[]",
                places(json!({"failoverPriority": ["a"]})),
                json!({}),
            ),
            (
                "loadBalancer.consistentHash.httpCookie.attributes",
                hash(json!({"httpCookie": cookie})),
                hash(json!({"httpCookie": {"name": "a"}})),
            ),
            ("connectionPool.tcp.idleTimeout", tcp(json!({"idleTimeout": "1s"})), json!({})),
            ("connectionPool.tcp.maxConnectionDuration", tcp(json!({"maxConnectionDuration": "1s"})), json!({})),
            ("connectionPool.tcp.tcpKeepalive", tcp(json!({"tcpKeepalive": {"time": "1s"}})), json!({})),
            ("connectionPool.http.h2UpgradePolicy", http(json!({"h2UpgradePolicy": "UPGRADE"})), json!({})),
            ("connectionPool.http.useClientProtocol", http(json!({"useClientProtocol": true})), json!({})),
            ("connectionPool.http.maxConcurrentStreams", http(json!({"maxConcurrentStreams": 1})), json!({})),
            ("connectionPool.http.http2KeepAlive", http(json!({"http2KeepAlive": {"interval": "1s"}})), json!({})),
            ("outlierDetection.consecutiveErrors", json!({"outlierDetection": {"consecutiveErrors": 1}}), json!({})),
            (
                "outlierDetection.failurePercentageThreshold",
                json!({"outlierDetection": {"failurePercentageThreshold": 1}}),
                json!({}),
            ),
            (
                "outlierDetection.outlierDetectionHttpErrorCodes[]",
                json!({"outlierDetection": {"outlierDetectionHttpErrorCodes": ["500"]}}),
                json!({}),
            ),
        ] {
            table.refused(&[&format!("{at}.{field}")], &place.rule(with), &place.rule(without));
        }
    }
}
