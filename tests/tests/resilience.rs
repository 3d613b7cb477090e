//! What rules do with requests that fail, are slow, or are to go elsewhere: real proxies, real servers, rules by Envoy's resources.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

use serde_json::json;
use weir_tests::{App, Flow, Patched, Pod, PodSpec, Response, World, app::Request, at, each_with, until};
use weir_xds::envoy::{
    self,
    cluster::{
        self,
        circuit_breakers::{Thresholds, thresholds::RetryBudget},
    },
    protobuf::{self, UInt32Value},
    route::{self, RetryPolicy, Route, RouteAction},
};

/// A client whose proxy can be told anything, and a Service of some pods with servers.
struct Shop {
    patched: Patched,
    client: Pod,
    apps: Vec<App>,
    to: SocketAddr,
    _pods: Vec<Pod>,
    _world: World,
}

type Answer = fn(usize, &Request, &mut TcpStream) -> std::io::Result<Flow>;

impl Shop {
    /// With so many servers, which answer by their number.
    fn new(name: &str, servers: usize, workers: usize, answer: Answer) -> Self {
        Self::with(name, servers, workers, answer, false, |_| {})
    }

    /// The same; the servers may be outside of the mesh, and there may be more in the world.
    fn with(
        name: &str,
        servers: usize,
        workers: usize,
        answer: Answer,
        outside: bool,
        more: impl FnOnce(&World),
    ) -> Self {
        let world = World::new(name);
        let patched = Patched::new(&world);
        let pods: Vec<Pod> = (0..servers)
            .map(|number| {
                let spec =
                    PodSpec::new(&format!("server-{number}")).label("app", "shop").label("number", &number.to_string());
                let spec = spec.port("http", 8080);
                world.pod_unready(if outside { spec.outside() } else { spec })
            })
            .collect();
        let apps = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| App::http(&pod.netns, 8080, move |request, stream| answer(number, request, stream)))
            .collect();
        let ip: Ipv4Addr = world.service("shop", 10, &json!({"app": "shop"}), &[("http", 80, 8080)]);
        more(&world);
        let client = world.pod(PodSpec::new("client").workers(workers).told_by(&patched));
        pods.iter().for_each(Pod::wait_ready);
        let shop = Self { patched, client, apps, to: at(ip, 80), _pods: pods, _world: world };
        assert_eq!(shop.get("/hello").status, 200, "the rules are there");
        shop
    }

    /// The only route gets this.
    fn rule(&self, change: impl Fn(&mut Route) + Send + Sync + 'static) {
        self.patched.reset();
        self.patched.routes(move |routes| routes.virtual_hosts[0].routes.iter_mut().for_each(&change));
        assert_eq!(self.patched.refusals(), Vec::<String>::new());
    }

    /// The only route's action gets this.
    fn action(&self, change: impl Fn(&mut RouteAction) + Send + Sync + 'static) {
        self.rule(move |route| match &mut route.action {
            Some(route::route::Action::Route(action)) => change(action),
            other => panic!("{other:?}"),
        });
    }

    fn get(&self, path: &str) -> Response {
        self.client.connect(self.to).get(path)
    }

    fn post(&self, path: &str, body: &[u8]) -> Response {
        self.client.connect(self.to).try_post(path, body).unwrap()
    }

    /// Requests that came to any server with this path.
    fn came(&self, path: &str) -> usize {
        let of = |app: &App| app.requests.lock().unwrap().iter().filter(|request| request.path == path).count();
        self.apps.iter().map(of).sum()
    }

    /// The flags and the reason of a request with this path, as the log has them.
    fn logged(&self, path: &str) -> (String, String) {
        let line = self.client.logged(path, |line| line["path"] == path);
        assert!(line["route_name"].as_str().is_some_and(|name| !name.is_empty()), "{line}");
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        (text("response_flags"), text("reason"))
    }
}

fn milliseconds(number: u64) -> Option<protobuf::Duration> {
    let time = Duration::from_millis(number);
    Some(protobuf::Duration {
        seconds: time.as_secs().try_into().unwrap(),
        nanos: time.subsec_nanos().try_into().unwrap(),
    })
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn say(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> std::io::Result<Flow> {
    write!(stream, "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())?;
    Ok(Flow::Keep)
}

/// Server 0 fails in the way that the path names; all others answer.
fn first_fails(server: usize, request: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
    let path = request.path.split('?').next().unwrap_or_default();
    match path.strip_prefix("/fail/").filter(|_| server == 0) {
        None => say(stream, 200, &format!("x-server: {server}\r\nx-length: {}\r\n", request.body.len()), "ok"),
        Some("close") => Ok(Flow::Close),
        Some("slow") => {
            std::thread::sleep(Duration::from_secs(2));
            say(stream, 200, "", "late")
        }
        Some(status) => say(stream, status.parse().unwrap_or(500), "", "failed"),
    }
}

fn retry(on: &'static str, retries: u32) -> RetryPolicy {
    RetryPolicy { retry_on: on.into(), num_retries: number(retries), ..RetryPolicy::default() }
}

#[test]
fn what_fails_is_asked_of_another_server_where_the_rule_says_so() {
    each_with(&[1, 4], |workers| {
        // A server's own proxy tells the caller's what its server does: it is the same with one as without.
        let outside = workers == 1;
        let shop = Shop::with("retries", 2, workers, first_fails, outside, |_| {});
        // Without a rule nothing that was sent is sent again.
        let mut failed = 0;
        for round in 0..40 {
            failed += usize::from(shop.post(&format!("/fail/503?none-{round}"), b"x").status == 503);
        }
        assert!(failed > 0 && failed < 40, "both servers take part: {failed}");
        let with = |on: &'static str| {
            shop.action(move |action| {
                let per_try = (on == "5xx").then(|| milliseconds(300)).flatten();
                action.retry_policy =
                    Some(RetryPolicy { per_try_timeout: per_try, retriable_status_codes: vec![418], ..retry(on, 2) });
            });
            // Retries are not what is missing, whoever gets how many of the requests.
            shop.patched.clusters("shop", |cluster| {
                let budget = RetryBudget { min_retry_concurrency: number(3), ..Default::default() };
                let thresholds = vec![Thresholds { retry_budget: Some(budget), ..Default::default() }];
                cluster.circuit_breakers = Some(cluster::CircuitBreakers { thresholds, ..Default::default() });
            });
        };
        for (on, fails, all) in [
            ("5xx", &["503", "500", "close", "slow"][..], true),
            ("gateway-error", &["502", "504"], true),
            ("gateway-error", &["500"], false),
            ("reset", &["close"], true),
            ("connect-failure,refused-stream", &["close", "503"], false),
            ("retriable-status-codes", &["418"], true),
            ("retriable-status-codes", &["500"], false),
            ("retriable-4xx", &["409"], true),
        ] {
            with(on);
            for fail in fails {
                // One of two gets a quarter of the requests at least.
                let rounds = if *fail == "slow" { 6 } else { 40 };
                let good = (0..rounds).filter(|round| {
                    let answer = shop.post(&format!("/fail/{fail}?{on}-{round}"), b"some body");
                    if answer.status == 200 {
                        assert_eq!(answer.header("x-length"), Some("9"), "all of the body came: {answer:?}");
                    }
                    answer.status == 200
                });
                let good = good.count();
                assert_eq!(good == rounds, all, "{workers} workers, {on}, {fail}: {good} of {rounds}");
                assert!(good > 0, "{on}, {fail}");
            }
        }
        assert!(shop.client.metric("weir_retries_total", &[("reason", "answer")]) > 0.0);
        assert!(shop.client.metric("weir_retries_total", &[("reason", "no_answer")]) > 0.0);
        assert!(shop.client.metric("weir_retries_total", &[("reason", "budget_exhausted")]) < 0.5);
    });
}

/// Everything fails: so often and no more, with the last answer for the caller, and flags that say it.
#[test]
fn retries_have_an_end_and_a_pause() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("end", 1, workers, first_fails);
        shop.action(|action| {
            let pauses =
                route::retry_policy::RetryBackOff { base_interval: milliseconds(200), max_interval: milliseconds(300) };
            action.retry_policy = Some(RetryPolicy { retry_back_off: Some(pauses), ..retry("5xx", 3) });
        });
        let start = Instant::now();
        let answer = shop.get("/fail/503");
        assert_eq!((answer.status, answer.text()), (503, "failed".into()));
        assert!(start.elapsed() >= Duration::from_millis(200 + 300 + 300), "{:?}", start.elapsed());
        assert_eq!(shop.came("/fail/503"), 4);
        assert_eq!(shop.logged("/fail/503").0, "URX");
        // Nothing that the server did not get whole counts, and a body that is too much is sent once.
        shop.action(|action| action.retry_policy = Some(retry("5xx", 1)));
        let chunk = |stream: &mut weir_tests::Client, size: usize| {
            stream.send(format!("{size:x}\r\n{}\r\n", "x".repeat(size)).as_bytes()).unwrap();
        };
        for (path, chunks, times) in [("/fail/501", 3, 2), ("/fail/505", 8, 1)] {
            let mut client = shop.client.connect(shop.to);
            let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
            client.send(head.as_bytes()).unwrap();
            for _ in 0..chunks {
                chunk(&mut client, 10_000);
                std::thread::sleep(Duration::from_millis(5)); // in pieces
            }
            client.send(b"0\r\n\r\n").unwrap();
            assert_eq!(client.response().unwrap().status, path[6..].parse::<u16>().unwrap());
            assert_eq!(shop.came(path), times, "{path}");
            let requests = shop.apps[0].requests.lock().unwrap().clone();
            let bodies = requests.iter().filter(|request| request.path == path).map(|request| request.body.len());
            assert!(bodies.into_iter().all(|length| length == chunks * 10_000));
        }
        assert!(shop.client.metric("weir_retries_total", &[("reason", "body_too_large")]) > 0.5);
    });
}

#[test]
fn time_that_the_rule_gives_ends_the_request() {
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    fn slow(_: usize, request: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
        match &*request.path {
            "/whole" => {
                std::thread::sleep(Duration::from_secs(3));
                say(stream, 200, "", "late")
            }
            "/half" | "/quiet" => {
                BEGUN.fetch_add(1, SeqCst);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")?;
                std::thread::sleep(Duration::from_secs(3));
                Ok(Flow::Close)
            }
            _ => say(stream, 200, "", "ok"),
        }
    }
    each_with(&[1, 4], |workers| {
        BEGUN.store(0, SeqCst);
        let shop = Shop::new("time", 1, workers, slow);
        let in_time = |work: &dyn Fn()| {
            let start = Instant::now();
            work();
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(290) && took < Duration::from_millis(2500), "{took:?}");
        };
        shop.action(|action| action.timeout = milliseconds(300));
        in_time(&|| {
            let answer = shop.get("/whole");
            assert_eq!(answer.status, 504);
            assert!(answer.text().contains("did not answer in time"), "{answer:?}");
        });
        assert_eq!(shop.logged("/whole").0, "UT");
        in_time(&|| assert!(shop.client.connect(shop.to).try_get("/half").is_err()));
        assert_eq!((BEGUN.load(SeqCst), shop.logged("/half").0), (1, "UT".into()));
        shop.action(|action| action.idle_timeout = milliseconds(300));
        in_time(&|| assert!(shop.client.connect(shop.to).try_get("/quiet").is_err()));
        assert_eq!(shop.logged("/quiet").0, "SI");
        // 0 is none.
        shop.action(|action| action.timeout = milliseconds(0));
        assert_eq!(shop.get("/whole").status, 200);
        assert_eq!(shop.get("/").status, 200);
    });
}

#[test]
fn other_paths_and_hosts_arrive_and_redirects_name_them() {
    fn echo(_: usize, request: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
        say(stream, 200, "", &request.head)
    }
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("rewrite", 1, workers, echo);
        shop.action(|action| {
            action.prefix_rewrite = "/new/".into();
            let host = route::route_action::HostRewriteSpecifier::HostRewriteLiteral("other.example:81".into());
            action.host_rewrite_specifier = Some(host);
        });
        let head = shop.get("/a/b?c=1").text();
        assert!(head.starts_with("GET /new/a/b?c=1 HTTP/1.1\r\n"), "{head}");
        assert_eq!(head.matches("host:").count(), 1);
        assert!(head.to_ascii_lowercase().contains("host: other.example:81"), "{head}");
        shop.rule(|route| {
            let redirect = route::RedirectAction {
                host_redirect: "elsewhere.example".into(),
                response_code: 3,
                ..Default::default()
            };
            route.action = Some(route::route::Action::Redirect(redirect));
        });
        let answer = shop.get("/a/b?c=1");
        assert_eq!((answer.status, answer.header("location")), (307, Some("http://elsewhere.example/a/b?c=1")));
        assert_eq!((answer.header("content-length"), answer.text()), (Some("0"), String::new()));
        let (flags, reason) = shop.logged("/a/b?c=1");
        assert_eq!(flags, "-");
        assert!(reason.is_empty() || reason.contains("redirects"), "{reason}");
    });
}

/// What a proxy does not understand it refuses by name, and what was in force stays.
#[test]
fn what_is_not_understood_is_refused_by_name() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("refused", 1, workers, first_fails);
        shop.patched.routes(|routes| {
            for route in &mut routes.virtual_hosts[0].routes {
                if let Some(route::route::Action::Route(action)) = &mut route.action {
                    action.retry_policy = Some(RetryPolicy { retry_on: "5xx,at-will".into(), ..Default::default() });
                }
            }
        });
        let refusals = shop.patched.refusals();
        assert!(refusals.iter().any(|reason| reason.contains("at-will")), "{refusals:?}");
        assert_eq!(shop.get("/").status, 200);
    });
}

/// What one of many servers does wrong is soon done no more, and it comes back.
#[test]
fn an_endpoint_that_fails_is_left_out_and_comes_back() {
    static WELL: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    fn one_fails(server: usize, _: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
        let status = if server == 0 && !WELL.load(SeqCst) { 500 } else { 200 };
        say(stream, status, &format!("x-server: {server}\r\n"), "")
    }
    each_with(&[1, 4], |workers| {
        WELL.store(true, SeqCst);
        let shop = Shop::new("outlier", 3, workers, one_fails);
        shop.patched.clusters("shop", |cluster| {
            cluster.lb_policy = cluster::cluster::LbPolicy::RoundRobin.into();
            cluster.outlier_detection = Some(cluster::OutlierDetection {
                consecutive_5xx: number(3),
                base_ejection_time: milliseconds(1500),
                max_ejection_percent: number(50),
                ..Default::default()
            });
        });
        assert_eq!(shop.patched.refusals(), Vec::<String>::new());
        WELL.store(false, SeqCst);
        let failed = (0..60).filter(|_| shop.get("/").status == 500).count();
        assert!((3..=5).contains(&failed), "{workers} workers: {failed} of 60, where a third would be 20");
        assert!(shop.client.metric("weir_ejections_total", &[("reason", "consecutive_5xx")]) > 0.5);
        assert!(shop.client.admin("/config_dump").contains("\"ejected\": true"));
        // One request shows that it is not well yet, and it is out for longer.
        until("the probation fails", || {
            shop.get("/");
            (shop.client.metric("weir_ejections_total", &[("reason", "probation")]) > 0.5).then_some(())
        });
        let failed = (0..60).filter(|_| shop.get("/").status == 500).count();
        assert_eq!(failed, 0, "one was enough");
        WELL.store(true, SeqCst);
        until("it is back", || (0..6).any(|_| shop.get("/").header("x-server") == Some("0")).then_some(()));
    });
}

#[test]
fn limits_of_a_cluster_hold_for_all_workers() {
    fn slow(_: usize, request: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
        if request.path == "/slow" {
            std::thread::sleep(Duration::from_millis(400));
        }
        say(stream, 200, "", "ok")
    }
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("breaker", 1, workers, slow);
        let limited = |thresholds: Thresholds| {
            shop.patched.reset();
            shop.patched.clusters("shop", move |cluster| {
                cluster.circuit_breakers =
                    Some(cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
            });
            assert_eq!(shop.patched.refusals(), Vec::<String>::new());
        };
        let at_once = |count: usize| -> Vec<Response> {
            std::thread::scope(|scope| {
                let asks: Vec<_> = (0..count).map(|_| scope.spawn(|| shop.get("/slow"))).collect();
                asks.into_iter().map(|ask| ask.join().unwrap()).collect()
            })
        };
        limited(Thresholds { max_requests: number(2), ..Default::default() });
        let answers = at_once(8);
        let good = answers.iter().filter(|answer| answer.status == 200).count();
        assert!((2..=6).contains(&good), "{workers} workers: {good}");
        let refused = answers.iter().find(|answer| answer.status == 503).unwrap();
        assert_eq!(refused.header("x-envoy-overloaded"), Some("true"));
        let line = shop.client.logged("the limit", |line| line["response_flags"] == "UO");
        assert!(line["reason"].as_str().unwrap().contains("max_requests"), "{line}");
        let labels = [("response_flags", "UO")];
        assert!(shop.client.metric("weir_rule_answers_total", &labels) > 1.5);
        assert!(shop.client.metric("istio_requests_total", &labels) > 1.5);
        assert_eq!(shop.get("/").status, 200, "it is over");
        // Connections: the others wait, and all are served by two.
        limited(Thresholds { max_connections: number(2), ..Default::default() });
        let before = shop.apps[0].connections.load(SeqCst);
        assert!(at_once(6).iter().all(|answer| answer.status == 200), "{workers} workers");
        assert!(workers > 1 || shop.apps[0].connections.load(SeqCst) - before <= 2);
        limited(Thresholds { max_connections: number(1), max_pending_requests: number(1), ..Default::default() });
        // Not all begin in the same moment where the machine is busy.
        let good = at_once(16).iter().filter(|answer| answer.status == 200).count();
        assert!((1..16).contains(&good), "{workers} workers: {good}");
    });
}

fn filter<M: weir_xds::prost::Message + weir_xds::prost::Name>(route: &mut Route, name: &str, message: &M) {
    let any = protobuf::Any { type_url: envoy::type_url::<M>(), value: message.encode_to_vec() };
    route.typed_per_filter_config.insert(name.into(), any);
}

fn percent(numerator: u32) -> Option<envoy::kinds::FractionalPercent> {
    Some(envoy::kinds::FractionalPercent { numerator, denominator: 0 })
}

#[test]
fn injected_faults_come_by_percent_and_say_what_they_are() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("faults", 1, workers, first_fails);
        let inject = |delay: u32, abort: u32| {
            shop.rule(move |route| {
                let fault = envoy::fault::HttpFault {
                    delay: Some(envoy::common_fault::FaultDelay {
                        percentage: percent(delay),
                        fault_delay_secifier: Some(envoy::common_fault::fault_delay::FaultDelaySecifier::FixedDelay(
                            milliseconds(300).unwrap(),
                        )),
                    }),
                    abort: Some(envoy::fault::FaultAbort {
                        percentage: percent(abort),
                        error_type: Some(envoy::fault::fault_abort::ErrorType::HttpStatus(418)),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                filter(route, envoy::FAULT, &fault);
            });
        };
        inject(100, 0);
        let start = Instant::now();
        assert_eq!(shop.get("/late").status, 200);
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert_eq!(shop.logged("/late").0, "DI");
        inject(0, 100);
        let answer = shop.get("/never");
        assert_eq!((answer.status, shop.came("/never")), (418, 0));
        assert!(answer.text().contains("a rule lets this request fail"), "{answer:?}");
        assert_eq!(shop.logged("/never").0, "FI");
        inject(0, 25);
        let mut client = shop.client.connect(shop.to);
        let aborted = (0..1000).filter(|_| client.get("/some").status == 418).count();
        assert!((190..310).contains(&aborted), "{aborted}");
    });
}

#[test]
fn copies_go_out_and_nobody_waits_for_them() {
    fn second_is_slow(server: usize, request: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
        if server == 1 && request.path == "/stuck" {
            std::thread::sleep(Duration::from_secs(3));
        }
        say(stream, if server == 1 { 500 } else { 200 }, &format!("x-server: {server}\r\n"), "ok")
    }
    each_with(&[1, 4], |workers| {
        let shop = Shop::with("mirror", 2, workers, second_is_slow, false, |world| {
            for (number, last) in [(0, 11), (1, 12)] {
                let name = format!("only-{number}");
                world.service(&name, last, &json!({"number": number.to_string()}), &[("http", 80, 8080)]);
            }
            world.route(
                "shop",
                &json!([{"backendRefs": [
                {"name": "only-0", "port": 80, "weight": 1}, {"name": "only-1", "port": 80, "weight": 0}]}]),
            );
        });
        shop.action(|action| {
            let copy = route::route_action::RequestMirrorPolicy {
                cluster: "outbound|80||only-1.shop.svc.cluster.local".into(),
                ..Default::default()
            };
            action.request_mirror_policies = vec![copy];
        });
        // A share of nothing is not told to the proxy: it asks for the cluster now, and has the rule in force once that is known.
        until("the rule is in force", || {
            shop.get("/first");
            (shop.client.metric("weir_mirrored_requests_total", &[]) > 0.5).then_some(())
        });
        let start = Instant::now();
        for path in ["/stuck", "/a", "/b"] {
            let answer = shop.post(path, b"some body");
            assert_eq!((answer.status, answer.header("x-server")), (200, Some("0")));
        }
        assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
        let posted = || -> Vec<Request> {
            let all = shop.apps[1].requests.lock().unwrap();
            all.iter().filter(|request| request.path != "/first").cloned().collect()
        };
        let copies = until("the copies have come", || Some(posted()).filter(|copies| copies.len() >= 3));
        assert!(copies.iter().all(|copy| copy.body == b"some body" && copy.method() == "POST"));
        assert!(copies.iter().all(|copy| copy.header("host") == Some("localhost-shadow")), "{copies:?}");
        until("all are counted", || {
            (shop.client.metric("weir_mirrored_requests_total", &[("result", "answered")]) > 2.5).then_some(())
        });
        // What looks on may be gone.
        shop.apps[1].stop();
        for _ in 0..20 {
            assert_eq!(shop.get("/c").status, 200);
        }
    });
}

#[test]
fn keys_meet_one_server_and_sessions_stay() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("keys", 3, workers, first_fails);
        shop.action(|action| {
            let header =
                route::route_action::hash_policy::Header { header_name: "x-user".into(), ..Default::default() };
            action.hash_policy = vec![route::route_action::HashPolicy {
                terminal: false,
                policy_specifier: Some(route::route_action::hash_policy::PolicySpecifier::Header(header)),
            }];
        });
        for policy in [cluster::cluster::LbPolicy::RingHash, cluster::cluster::LbPolicy::Maglev] {
            shop.patched.clusters("shop", move |cluster| cluster.lb_policy = policy.into());
            let mut servers = std::collections::BTreeSet::new();
            for user in 0..12 {
                let ask = |_| {
                    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-user: {user}\r\n\r\n");
                    let answer = shop.client.connect(shop.to).ask(&request).unwrap();
                    answer.header("x-server").unwrap().to_owned()
                };
                let all: Vec<String> = (0..5).map(ask).collect();
                assert!(all.iter().all(|server| *server == all[0]), "{policy:?}: {all:?}");
                servers.insert(all[0].clone());
            }
            assert!(servers.len() > 1, "{policy:?}: {servers:?}");
        }
        shop.rule(|route| {
            let cookie = envoy::http_kinds::Cookie { name: "shop".into(), path: "/".into(), ..Default::default() };
            let state = envoy::cookie_session::CookieBasedSessionState { cookie: Some(cookie) };
            let config = protobuf::Any {
                type_url: envoy::type_url::<envoy::cookie_session::CookieBasedSessionState>(),
                value: weir_xds::prost::Message::encode_to_vec(&state),
            };
            let session = envoy::stateful_session::StatefulSession {
                session_state: Some(weir_xds::envoy::core::TypedExtensionConfig {
                    name: "cookie".into(),
                    typed_config: Some(config),
                }),
                ..Default::default()
            };
            let over = envoy::stateful_session::stateful_session_per_route::Override::StatefulSession(session);
            let session = envoy::stateful_session::StatefulSessionPerRoute { r#override: Some(over) };
            filter(route, envoy::STATEFUL_SESSION, &session);
        });
        for _ in 0..6 {
            let first = shop.get("/");
            let server = first.header("x-server").unwrap().to_owned();
            let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
            for _ in 0..6 {
                let request = format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n");
                let answer = shop.client.connect(shop.to).ask(&request).unwrap();
                assert_eq!((answer.header("x-server"), answer.header("set-cookie")), (Some(&*server), None));
            }
        }
        // A made-up one leads nowhere else.
        let request = "GET / HTTP/1.1\r\nhost: a\r\ncookie: shop=\"3132372e302e302e313a3830\"\r\n\r\n";
        let answer = shop.client.connect(shop.to).ask(request).unwrap();
        assert!(answer.status == 200 && answer.header("set-cookie").is_some(), "{answer:?}");
    });
}

#[test]
fn a_browser_is_answered_and_limits_of_a_route_hold() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("edge", 1, workers, first_fails);
        shop.rule(|route| {
            let matcher = envoy::matcher::StringMatcher {
                match_pattern: Some(envoy::matcher::string_matcher::MatchPattern::Exact("https://page.example".into())),
                ..Default::default()
            };
            let cors = envoy::cors::CorsPolicy {
                allow_origin_string_match: vec![matcher],
                allow_methods: "GET, PUT".into(),
                max_age: "600".into(),
                ..Default::default()
            };
            filter(route, envoy::CORS, &cors);
            let rate = envoy::local_ratelimit::LocalRateLimit {
                stat_prefix: "x".into(),
                token_bucket: Some(envoy::kinds::TokenBucket {
                    max_tokens: 5,
                    tokens_per_fill: number(5),
                    fill_interval: milliseconds(3_600_000),
                }),
                ..Default::default()
            };
            filter(route, envoy::LOCAL_RATE_LIMIT, &rate);
            let buffer = envoy::buffer::Buffer { max_request_bytes: number(1000) };
            let over = envoy::buffer::buffer_per_route::Override::Buffer(buffer);
            filter(route, envoy::BUFFER, &envoy::buffer::BufferPerRoute { r#override: Some(over) });
        });
        let ask = |method: &str, more: &str| {
            let origin = "origin: https://page.example\r\n";
            let request = format!("{method} /page HTTP/1.1\r\nhost: a\r\n{origin}{more}\r\n");
            shop.client.connect(shop.to).ask(&request).unwrap()
        };
        let preflight = ask("OPTIONS", "access-control-request-method: PUT\r\n");
        assert_eq!((preflight.status, shop.came("/page")), (200, 0));
        assert_eq!(preflight.header("access-control-allow-methods"), Some("GET, PUT"));
        for _ in 0..5 {
            let answer = ask("GET", "");
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example"));
        }
        let refused = ask("GET", "");
        assert_eq!((refused.status, shop.came("/page")), (429, 5));
        assert!(refused.header("access-control-allow-origin").is_some(), "the page may read it: {refused:?}");
        assert_eq!(shop.client.logged("the limit", |line| line["response_code"] == 429)["response_flags"], "RL");
        // Another rule changes, and the tokens are as gone as before.
        shop.patched.routes(|routes| {
            for route in &mut routes.virtual_hosts[0].routes {
                if let Some(route::route::Action::Route(action)) = &mut route.action {
                    action.timeout = milliseconds(9000);
                }
            }
        });
        assert_eq!(ask("GET", "").status, 429);
        shop.rule(|route| {
            let buffer = envoy::buffer::Buffer { max_request_bytes: number(1000) };
            let over = envoy::buffer::buffer_per_route::Override::Buffer(buffer);
            filter(route, envoy::BUFFER, &envoy::buffer::BufferPerRoute { r#override: Some(over) });
        });
        assert_eq!(shop.post("/small", &[b'x'; 1000]).status, 200);
        assert_eq!(shop.post("/large", &[b'x'; 1001]).status, 413);
        let mut client = shop.client.connect(shop.to);
        client.send(b"POST /chunks HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        for _ in 0..4 {
            client.send(format!("fa\r\n{}\r\n", "x".repeat(250)).as_bytes()).ok();
            std::thread::sleep(Duration::from_millis(20)); // in pieces
        }
        assert_eq!(client.response().unwrap().status, 413);
        assert_eq!((shop.came("/large"), shop.came("/chunks")), (0, 0));
    });
}

#[test]
fn checks_find_out_who_is_not_well() {
    static WELL: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);
    fn says_so(server: usize, request: &Request, stream: &mut TcpStream) -> std::io::Result<Flow> {
        let status = if request.path == "/healthz" && server == 0 && !WELL.load(SeqCst) { 503 } else { 200 };
        say(stream, status, &format!("x-server: {server}\r\n"), "")
    }
    each_with(&[1, 4], |workers| {
        WELL.store(true, SeqCst);
        let shop = Shop::new("checks", 2, workers, says_so);
        shop.patched.clusters("shop", |cluster| {
            let http = weir_xds::envoy::core::health_check::HttpHealthCheck {
                path: "/healthz".into(),
                host: "check.example".into(),
                ..Default::default()
            };
            cluster.health_checks = vec![weir_xds::envoy::core::HealthCheck {
                timeout: milliseconds(1000),
                interval: milliseconds(100),
                unhealthy_threshold: number(2),
                healthy_threshold: number(1),
                health_checker: Some(weir_xds::envoy::core::health_check::HealthChecker::HttpHealthCheck(http)),
                ..Default::default()
            }];
        });
        assert_eq!(shop.patched.refusals(), Vec::<String>::new());
        until("both are checked", || shop.apps.iter().all(|app| app.count() > 3).then_some(()));
        let last = shop.apps[0].last().unwrap();
        assert_eq!((&*last.path, last.header("host")), ("/healthz", Some("check.example")));
        WELL.store(false, SeqCst);
        until("one is found not to be well", || {
            shop.client.admin("/config_dump").contains("\"well\": false").then_some(())
        });
        assert!((0..40).all(|_| shop.get("/").header("x-server") == Some("1")), "{workers} workers");
        WELL.store(true, SeqCst);
        until("it is back", || (shop.get("/").header("x-server") == Some("0")).then_some(()));
        // Nobody checks any more.
        shop.patched.reset();
        until("no more checks come", || {
            let before = shop.came("/healthz");
            std::thread::sleep(Duration::from_millis(400));
            (shop.came("/healthz") == before).then_some(())
        });
    });
}
