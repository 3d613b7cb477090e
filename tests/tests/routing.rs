//! Which endpoint a request reaches: by rules, while they change, and while endpoints come, go and refuse.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde_json::{Value, json};
use weir_tests::{App, Load, Pod, PodSpec, World, at, each_with, until};

/// Two pods of v1, one of v2, and a Service for each version and one for both.
struct Shop {
    world: World,
    client: Pod,
    pods: Vec<Pod>,
    apps: Vec<App>,
    catalog: Ipv4Addr,
}

impl Shop {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let pod = |name: &str, version: &str| {
            let spec = PodSpec::new(name).label("app", "catalog").label("version", version).port("http", 8080);
            world.pod_unready(spec.workers(workers))
        };
        let pods = vec![pod("v1-a", "v1"), pod("v1-b", "v1"), pod("v2-a", "v2")];
        let apps = pods.iter().map(|pod| App::echo(&pod.netns, 8080, &pod.name)).collect();
        let ports = [("http", 80, 8080)];
        let catalog = world.service("catalog", 10, &json!({"app": "catalog"}), &ports);
        world.service("v1", 11, &json!({"app": "catalog", "version": "v1"}), &ports);
        world.service("v2", 12, &json!({"app": "catalog", "version": "v2"}), &ports);
        let client = world.pod(PodSpec::new("client").workers(workers));
        pods.iter().for_each(Pod::wait_ready);
        Self { world, client, pods, apps, catalog }
    }

    /// This share to v1 and v2, and everything with `x-canary: yes` to v2.
    fn weights(&self, v1: u32, v2: u32) {
        self.world.route(
            "catalog",
            &json!([
                {"matches": [{"headers": [{"name": "x-canary", "value": "yes"}]}], "backendRefs": [{"name": "v2", "port": 80}]},
                {"backendRefs": [{"name": "v1", "port": 80, "weight": v1}, {"name": "v2", "port": 80, "weight": v2}]},
            ]),
        );
    }

    /// Who answers so many requests.
    fn share(&self, requests: usize) -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        let mut connection = self.client.connect(at(self.catalog, 80));
        for _ in 0..requests {
            let response = connection.get("/");
            assert_eq!(response.status, 200, "{response:?}");
            *seen.entry(response.header("x-pod").unwrap().to_owned()).or_default() += 1;
        }
        seen
    }

    fn wait_for_share(&self, v2: std::ops::RangeInclusive<usize>) {
        until("the new weights", || v2.contains(self.share(20).get("v2-a").unwrap_or(&0)).then_some(()));
    }
}

#[test]
fn weights_hold_exactly_and_a_header_rule_wins() {
    each_with(&[1], |workers| {
        let shop = Shop::new("split", workers);
        shop.weights(90, 10);
        shop.wait_for_share(2..=2);
        let seen = shop.share(1000);
        let v2 = seen["v2-a"];
        assert!((80..=120).contains(&v2), "{seen:?}");
        assert!(seen["v1-a"] > 200 && seen["v1-b"] > 200, "{seen:?}");
        let mut connection = shop.client.connect(at(shop.catalog, 80));
        for _ in 0..20 {
            let response = connection.ask("GET / HTTP/1.1\r\nhost: catalog\r\nx-canary: yes\r\n\r\n").unwrap();
            assert_eq!(response.header("x-pod"), Some("v2-a"));
        }
        let line = shop.client.logged("the rule", |line| line["route_name"] == "HTTPRoute/shop/catalog/0/0");
        assert_eq!(line["route_object"], "HTTPRoute/shop/catalog", "{line}");
    });
}

#[test]
fn weights_change_under_load_and_nothing_fails() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("weights", workers);
        shop.weights(90, 10);
        shop.wait_for_share(2..=2);
        let load = Load::start(&shop.client, at(shop.catalog, 80), 4);
        for (v1, v2, wanted) in [(50, 50, 9..=11), (0, 100, 20..=20), (100, 0, 0..=0)] {
            load.more(200);
            shop.weights(v1, v2);
            shop.wait_for_share(wanted);
        }
        load.more(200);
        let outcome = load.stop();
        assert!(outcome.failed.is_empty(), "{workers} workers: {:?} of {}", outcome.failed, outcome.total());
        assert_eq!(outcome.answered.len(), 3, "{:?}", outcome.answered);
    });
}

#[test]
fn endpoints_come_and_go_under_load_and_nothing_fails() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("endpoints", workers);
        let load = Load::start(&shop.client, at(shop.catalog, 80), 4);
        load.more(200);
        for round in 0..3 {
            // As a roll-out does: out of the endpoints first, then the application ends.
            if round == 1 {
                shop.pods[1].forget()
            } else {
                shop.pods[1].set_ready(false)
            }
            until("v1-b gets nothing more", || {
                let before = shop.apps[1].count();
                load.more(100);
                (shop.apps[1].count() == before).then_some(())
            });
            shop.pods[1].set_ready(true);
            let before = shop.apps[1].count();
            until("v1-b is back", || (shop.apps[1].count() > before + 10).then_some(()));
        }
        let outcome = load.stop();
        assert!(outcome.failed.is_empty(), "{workers} workers: {:?} of {}", outcome.failed, outcome.total());
    });
}

#[test]
fn an_application_that_refuses_is_replaced_by_another_without_a_failed_request() {
    each_with(&[1, 4], |workers| {
        let mut shop = Shop::new("refuses", workers);
        let all_went_well = |load: Load| {
            let outcome = load.stop();
            assert!(outcome.failed.is_empty(), "{workers} workers: {:?} of {}", outcome.failed, outcome.total());
        };
        let load = Load::start(&shop.client, at(shop.catalog, 80), 4);
        load.more(300);
        // Nobody tells the control plane: the endpoint stays in the list. What is open to it stays usable; a connection more is refused.
        // One that the kernel has made and the application has not accepted would be reset, with the request on it: there is none now.
        all_went_well(load);
        shop.apps[2].stop_accepting();
        let load = Load::start(&shop.client, at(shop.catalog, 80), 4);
        let not_delivered = || shop.client.metric("weir_retries_total", &[("reason", "not_delivered")]);
        // More at once than there were before: what is open does not suffice.
        let more = Load::start(&shop.client, at(shop.catalog, 80), 16);
        until("the peer's proxy says that nothing was delivered", || (not_delivered() >= 1.0).then_some(()));
        load.more(500);
        // The old one lives on: requests that it has taken are its own to answer.
        let again = App::echo(&shop.pods[2].netns, 8080, "v2-a");
        let _old = std::mem::replace(&mut shop.apps[2], again);
        let most = Load::start(&shop.client, at(shop.catalog, 80), 32);
        until("the application is used again", || (shop.apps[2].count() > 10).then_some(()));
        [most, more, load].into_iter().for_each(all_went_well);
        let line = shop.pods[2].logged("the refusal", |line| line["response_code"] == 503);
        assert!(line["response_flags"].as_str().unwrap().contains("UF"), "{line}");
    });
}

#[test]
fn without_endpoints_the_answer_is_503_with_an_id_and_the_reason_is_in_the_log() {
    each_with(&[1], |workers| {
        let shop = Shop::new("gone", workers);
        let mut connection = shop.client.connect(at(shop.catalog, 80));
        assert_eq!(connection.get("/").status, 200);
        let say = |what: &str, flag: &str, connection: &mut weir_tests::Client| {
            let line = until(what, || {
                let response = Some(connection.get("/none")).filter(|response| response.status == 503)?;
                let id = response.header("x-request-id").expect("a request id").to_owned();
                assert!(response.text().contains(&id), "{response:?}");
                assert!(!response.text().contains("198.18"), "addresses are nobody's business: {response:?}");
                let line = shop.client.logged(what, |line| line["request_id"] == id.as_str());
                Some(line).filter(|line| line["response_flags"].as_str().unwrap().contains(flag))
            });
            assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
        };
        shop.apps.iter().for_each(App::stop);
        say("all applications refuse", "UF", &mut connection);
        shop.pods.iter().for_each(|pod| pod.set_ready(false));
        say("no endpoint is ready", "UH", &mut connection);
        let labels: &[(&str, &str)] =
            &[("response_code", "503"), ("reporter", "source"), ("destination_service_name", "catalog")];
        assert!(shop.client.metric("istio_requests_total", labels) >= 2.0);
    });
}

/// An application can not make the mesh believe that it got nothing, and a caller does not hear the mesh's own words.
#[test]
fn the_marker_of_the_mesh_is_neither_believed_nor_passed_on() {
    each_with(&[1], |_| {
        let world = World::new("marker");
        let answer = |request: &weir_tests::app::Request, stream: &mut std::net::TcpStream| {
            use std::io::Write as _;
            let seen = request.header("x-weir-fault").is_some();
            write!(
                stream,
                "HTTP/1.1 503 No\r\nx-weir-fault: not-delivered\r\nx-seen: {seen}\r\ncontent-length: 0\r\n\r\n"
            )?;
            Ok(weir_tests::Flow::Keep)
        };
        let inside = world.pod(PodSpec::new("inside").port("http", 8080));
        let plain = world.pod(PodSpec::new("plain").outside().port("http", 8080));
        let apps = [App::http(&inside.netns, 8080, answer), App::http(&plain.netns, 8080, answer)];
        let ports = [("http", 80, 8080)];
        let services = [
            world.service("inside", 10, &json!({"app": "inside"}), &ports),
            world.service("plain", 11, &json!({"app": "plain"}), &ports),
        ];
        let client = world.pod(PodSpec::new("client"));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        let request = "GET / HTTP/1.1\r\nhost: x\r\nx-weir-fault: not-delivered\r\n\r\n";
        let calls: [(&Pod, Value, std::net::SocketAddr); 3] = [
            (&client, json!("inside"), at(services[0], 80)),
            (&client, json!("plain"), at(services[1], 80)),
            (&stranger, json!("inside, from outside"), at(inside.ip, 8080)),
        ];
        for (from, what, to) in calls {
            let response = from.connect(to).ask(request).unwrap();
            assert_eq!((response.status, response.header("x-seen")), (503, Some("false")), "{what}: {response:?}");
            assert_eq!(response.header("x-weir-fault"), None, "{what}");
        }
        assert_eq!((apps[0].count(), apps[1].count()), (2, 1), "something was sent twice");
        assert!(client.metric("weir_retries_total", &[]) < 0.1);
        // Where it is true it is for proxies alone.
        apps[0].stop();
        until("a stranger hears 503", || {
            let response = stranger.connect(at(inside.ip, 8080)).ask(request).ok()?;
            assert_eq!((response.status, response.header("x-weir-fault")), (503, None), "{response:?}");
            Some(())
        });
    });
}
