//! Who may call whom: PeerAuthentication and AuthorizationPolicy, from the object to the refused connection.
//!
//! Each refusal stands beside the same call without the rule, which is answered.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use serde_json::{Value, json};
use weir_tests::{App, Client, Flow, Pod, PodSpec, Response, World, at, certs, is_root, until};

/// Ports of the server: HTTP by name, opaque by name, undeclared.
const PORTS: [(&str, u16); 3] = [("http", 8080), ("tcp", 7000), ("", 9000)];
/// A port of the server that no object names.
const UNLISTED: u16 = 9500;

struct Mesh {
    /// May be allowed.
    friend: Pod,
    /// Another caller of the mesh.
    other: Pod,
    /// Has no proxy.
    stranger: Pod,
    server: Pod,
    _apps: Vec<App>,
    world: World,
}

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Answer(u16),
    Cut,
}

impl Mesh {
    fn new(name: &str, workers: usize) -> Self {
        let world = World::new(name);
        let mut spec = PodSpec::new("server").label("tier", "back").workers(workers);
        for (name, port) in PORTS {
            spec = spec.port(name, port);
        }
        let server = world.pod_unready(spec);
        // Two ports without a name are no valid Service: one Service for each.
        for (n, (name, port)) in (0_u8..).zip(PORTS) {
            world.service(&format!("server-{n}"), 10 + n, &json!({"app": "server"}), &[(name, port, port)]);
        }
        let other = world.pod_unready(PodSpec::new("other").workers(workers));
        let stranger = world.pod(PodSpec::new("stranger").outside());
        let friend = world.pod(PodSpec::new("friend").workers(workers));
        [&server, &other].into_iter().for_each(Pod::wait_ready);
        let ports = PORTS.iter().map(|(_, port)| *port).chain([UNLISTED]);
        let apps = ports.map(|port| App::echo(&server.netns, port, "server")).collect();
        Self { friend, other, stranger, server, _apps: apps, world }
    }

    fn to(&self, port: u16) -> SocketAddr {
        at(self.server.ip, port)
    }

    fn call(&self, from: &Pod, port: u16) -> Came {
        match from.try_connect(self.to(port)).and_then(|mut connection| connection.try_get("/")) {
            Ok(response) => Came::Answer(response.status),
            Err(_) => Came::Cut,
        }
    }

    /// Waits until a call comes out like this: changes take a moment to arrive.
    fn comes(&self, from: &Pod, port: u16, came: Came) {
        let mut last = None;
        until(&format!("{} to {port}: {came:?}", from.name), || {
            let now = self.call(from, port);
            let done = now == came;
            if !done && last.as_ref() != Some(&now) {
                eprintln!("{} to {port}: {now:?}, waiting for {came:?}", from.name);
                last = Some(now);
            }
            done.then_some(())
        });
    }

    fn apply(&self, kind: &str, namespace: &str, name: &str, spec: &Value) {
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        self.world.write(&format!("{kind}-{namespace}-{name}"), &object.to_string());
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.world.remove(&format!("{kind}-{namespace}-{name}"));
    }

    fn mtls(&self, namespace: &str, name: &str, spec: &Value) {
        self.apply("PeerAuthentication", namespace, name, spec);
    }

    fn access(&self, namespace: &str, name: &str, spec: &Value) {
        self.apply("AuthorizationPolicy", namespace, name, spec);
    }

    /// Waits until the server's log and metric name who refused.
    fn told(&self, reason: &str, policy: &str, rule: &str) {
        until(&format!("{reason} of {policy} is logged"), || {
            let texts = [reason, policy, "access refused"];
            (!self.server.log(&texts).is_empty()).then_some(())
        });
        let labels = [("policy", policy), ("rule", rule), ("reason", reason)];
        assert!(self.server.metric("weir_access_refused_total", &labels) > 0.9, "{labels:?}");
        assert!(self.server.metric("weir_connections_refused_total", &[("reason", reason)]) > 0.9);
    }
}

fn strict() -> Value {
    json!({"mtls": {"mode": "STRICT"}})
}

fn permissive() -> Value {
    json!({"mtls": {"mode": "PERMISSIVE"}})
}

/// For the server only.
fn selecting(mut spec: Value) -> Value {
    spec["selector"] = json!({"matchLabels": {"app": "server"}});
    spec
}

fn each_number_of_workers(test: impl Fn(usize)) {
    if is_root() {
        [1, 4].into_iter().for_each(test);
    }
}

#[test]
fn strict_refuses_plaintext_at_each_level_and_the_nearer_level_wins() {
    each_number_of_workers(|workers| {
        let mesh = Mesh::new("levels", workers);
        for (_, port) in PORTS {
            mesh.comes(&mesh.stranger, port, Came::Answer(200)); // without a rule: plaintext is accepted
        }
        let all = PORTS.iter().map(|(_, port)| *port).chain([UNLISTED]);
        mesh.mtls("weir-system", "default", &strict());
        for port in all.clone() {
            mesh.comes(&mesh.stranger, port, Came::Cut);
            assert_eq!(mesh.call(&mesh.friend, port), Came::Answer(200), "{port}");
        }
        mesh.told("plaintext_refused", "PeerAuthentication weir-system/default", "");
        mesh.mtls("shop", "default", &permissive());
        for port in all {
            mesh.comes(&mesh.stranger, port, Came::Answer(200));
        }
        mesh.mtls("shop", "server", &selecting(strict()));
        mesh.comes(&mesh.stranger, 8080, Came::Cut);
        mesh.told("plaintext_refused", "PeerAuthentication shop/server", "");
        // A port has the last word, in both directions; all others keep the workload's mode.
        let mut ports = strict();
        ports["portLevelMtls"] = json!({"9000": {"mode": "PERMISSIVE"}, "9500": {"mode": "PERMISSIVE"}});
        mesh.mtls("shop", "server", &selecting(ports));
        mesh.comes(&mesh.stranger, 9000, Came::Answer(200));
        mesh.comes(&mesh.stranger, UNLISTED, Came::Answer(200));
        assert_eq!(mesh.call(&mesh.stranger, 8080), Came::Cut);
        assert_eq!(mesh.call(&mesh.stranger, 7000), Came::Cut);
        let mut ports = json!({"mtls": {"mode": "UNSET"}});
        ports["portLevelMtls"] = json!({"7000": {"mode": "STRICT"}, "8080": {"mode": "UNSET"}});
        mesh.mtls("shop", "server", &selecting(ports));
        mesh.comes(&mesh.stranger, 8080, Came::Answer(200)); // as the namespace says
        assert_eq!(mesh.call(&mesh.stranger, 7000), Came::Cut);
        // The nearest is gone, then the next: the mesh's rule holds again.
        mesh.delete("PeerAuthentication", "shop", "server");
        mesh.comes(&mesh.stranger, 7000, Came::Answer(200));
        mesh.delete("PeerAuthentication", "shop", "default");
        mesh.comes(&mesh.stranger, 7000, Came::Cut);
        mesh.delete("PeerAuthentication", "weir-system", "default");
        mesh.comes(&mesh.stranger, 7000, Came::Answer(200));
    });
}

#[test]
fn under_strict_nothing_of_the_application_is_heard_in_plaintext_and_its_own_calls_and_probes_work() {
    each_number_of_workers(|workers| {
        let mesh = Mesh::new("heard", workers);
        let accepted = |stream: &mut std::net::TcpStream| {
            let mut greeting = [0; 5];
            stream.read_exact(&mut greeting).map(|()| greeting)
        };
        let _first = App::raw(&mesh.server.netns, 9600, |mut stream| {
            let _ = stream.write_all(b"hello");
            let _ = stream.read(&mut [0; 1]);
        });
        let _tls = App::raw(&mesh.server.netns, 9700, |stream| {
            if let Ok(mut tls) = certs::accept(stream) {
                let mut text = [0; 5];
                while tls.read_exact(&mut text).is_ok() && tls.write_all(&text).is_ok() {}
            }
        });
        let own_tls = |from: &Pod| -> std::io::Result<[u8; 5]> {
            let mut tls = certs::call(from.netns.connect(mesh.to(9700))?, None, &[])?;
            tls.write_all(b"12345")?;
            let mut text = [0; 5];
            tls.read_exact(&mut text).map(|()| text)
        };
        // Without the rule all of it works.
        assert_eq!(&accepted(&mut mesh.stranger.netns.connect(mesh.to(9600)).unwrap()).unwrap(), b"hello");
        assert_eq!(&own_tls(&mesh.stranger).unwrap(), b"12345");
        mesh.mtls("shop", "default", &strict());
        mesh.comes(&mesh.stranger, 8080, Came::Cut);
        // A server that speaks first stays silent; whoever says a word that is no handshake is cut at once.
        let mut silent = mesh.stranger.netns.connect(mesh.to(9600)).unwrap();
        silent.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        assert!(accepted(&mut silent).is_err());
        let mut short = mesh.stranger.connect(mesh.to(8080));
        short.send(b"G").unwrap();
        short.patience(Duration::from_secs(5));
        assert!(short.is_closed(), "one byte in plaintext is enough to be refused");
        // TLS of the application's own proves nothing to the mesh.
        assert!(own_tls(&mesh.stranger).is_err());
        // Callers of the mesh hear everything, also through the application's own TLS.
        assert_eq!(&accepted(&mut mesh.friend.netns.connect(mesh.to(9600)).unwrap()).unwrap(), b"hello");
        assert_eq!(&own_tls(&mesh.friend).unwrap(), b"12345");
        // The pod's calls of itself go through both of its proxy's sides.
        let service = at([198, 19, 0, 10], 8080);
        assert_eq!(mesh.server.connect(service).get("/self").status, 200);
        assert_eq!(mesh.call(&mesh.server, 8080), Came::Answer(200));
        assert_eq!(mesh.server.readiness().unwrap().status, 200);
    });
}

#[test]
fn callers_are_allowed_and_denied_by_principal_namespace_address_and_port() {
    each_number_of_workers(|workers| {
        let mesh = Mesh::new("rules", workers);
        let friend = "cluster.local/ns/shop/sa/friend";
        let allow = |rules: Value| selecting(json!({"rules": rules}));
        let ports = [8080, 7000, 9000, UNLISTED];
        let allowed = |port| if port == 7000 { Came::Cut } else { Came::Answer(403) };
        for from in [&mesh.friend, &mesh.other, &mesh.stranger] {
            ports.iter().for_each(|port| mesh.comes(from, *port, Came::Answer(200)));
        }
        // Only one principal: other callers of the mesh get an answer where HTTP is spoken, all others a cut connection.
        mesh.access("shop", "friends", &allow(json!([{"from": [{"source": {"principals": [friend]}}]}])));
        for port in ports {
            mesh.comes(&mesh.other, port, allowed(port));
            assert_eq!(mesh.call(&mesh.stranger, port), Came::Cut, "{port}");
            assert_eq!(mesh.call(&mesh.friend, port), Came::Answer(200), "{port}");
        }
        mesh.told("allowed_by_no_rule", "AuthorizationPolicy shop/friends", "");
        assert!(!mesh.server.log(&["access refused", &mesh.other.identity()]).is_empty(), "the caller's principal");
        let refused: Response = mesh.other.connect(mesh.to(8080)).get("/secret");
        let id = refused.header("x-request-id").expect("an id").to_owned();
        assert_eq!(refused.text(), format!("weir: access denied, request id {id}\n"), "an id and no detail");
        let line = mesh.server.logged("the refusal", |line| line["request_id"] == json!(id));
        assert_eq!(line["response_code"], 403, "{line}");
        assert!(line.to_string().contains("shop/friends"), "{line}");
        // The pod itself is a caller as any other.
        mesh.comes(&mesh.server, 8080, Came::Answer(200)); // never leaves the pod: called by its own address
        assert_eq!(mesh.server.connect(at([198, 19, 0, 10], 8080)).get("/self").status, 403);

        // Rules of several policies add up: one more allows by address, for one port.
        let stranger = mesh.stranger.ip.to_string();
        let by_address =
            json!([{"from": [{"source": {"ipBlocks": [stranger]}}], "to": [{"operation": {"ports": ["8080"]}}]}]);
        mesh.access("shop", "by-address", &allow(by_address));
        mesh.comes(&mesh.stranger, 8080, Came::Answer(200));
        assert_eq!(mesh.call(&mesh.stranger, 7000), Came::Cut);
        assert_eq!(mesh.call(&mesh.other, 8080), Came::Answer(403));

        // A denial wins over whatever is allowed.
        let deny = json!([{"from": [{"source": {"notNamespaces": ["elsewhere"]}}], "to": [{"operation": {"ports": ["7000"]}}]}]);
        mesh.access("weir-system", "no-7000", &json!({"action": "DENY", "rules": deny}));
        mesh.comes(&mesh.friend, 7000, Came::Cut);
        mesh.told("denied_by_rule", "AuthorizationPolicy weir-system/no-7000", "0");
        assert_eq!(mesh.call(&mesh.friend, 8080), Came::Answer(200));
        mesh.delete("AuthorizationPolicy", "weir-system", "no-7000");
        mesh.comes(&mesh.friend, 7000, Came::Answer(200));

        // By namespace: everybody of the mesh, and nobody in plaintext.
        mesh.delete("AuthorizationPolicy", "shop", "by-address");
        mesh.access("shop", "friends", &allow(json!([{"from": [{"source": {"namespaces": ["sh*"]}}]}])));
        mesh.comes(&mesh.other, 8080, Came::Answer(200));
        assert_eq!(mesh.call(&mesh.stranger, 8080), Came::Cut);

        // No rules: nobody. No policy: everybody.
        mesh.access("shop", "friends", &json!({}));
        mesh.comes(&mesh.friend, 8080, Came::Answer(403));
        mesh.delete("AuthorizationPolicy", "shop", "friends");
        mesh.comes(&mesh.stranger, 8080, Came::Answer(200));
        mesh.comes(&mesh.other, 7000, Came::Answer(200));
    });
}

#[test]
fn a_rule_that_can_not_be_enforced_is_refused_whole_and_closed() {
    each_number_of_workers(|workers| {
        let mesh = Mesh::new("closed", workers);
        let anybody = json!([{"from": [{"source": {"principals": ["*"]}}]}]);
        mesh.access("shop", "partly", &selecting(json!({"rules": anybody})));
        mesh.comes(&mesh.stranger, 8080, Came::Cut);
        assert_eq!(mesh.call(&mesh.friend, 8080), Came::Answer(200));
        // The second rule asks for more than can be enforced: the first one is not in force either.
        let http = json!([anybody[0], {"to": [{"operation": {"paths": ["/public"]}}]}]);
        mesh.access("shop", "partly", &selecting(json!({"rules": http})));
        mesh.comes(&mesh.friend, 8080, Came::Answer(403));
        mesh.told("allowed_by_no_rule", "AuthorizationPolicy shop/partly", "");
        let said = ["AuthorizationPolicy shop/partly", "spec.rules[1].to[0].operation.paths", "is not supported"];
        until("the control plane says what is wrong", || (!mesh.world.control_log(&said).is_empty()).then_some(()));
        until("and counts it", || (mesh.world.control_metric("weir_control_refused_policies") > 0.9).then_some(()));
        // It allows nobody; who is allowed by another policy still is.
        mesh.access(
            "shop",
            "friends",
            &selecting(json!({"rules": [{"from": [{"source": {"serviceAccounts": ["friend"]}}]}]})),
        );
        mesh.comes(&mesh.friend, 8080, Came::Answer(200));
        assert_eq!(mesh.call(&mesh.other, 8080), Came::Answer(403));
        // A denial that can not be enforced denies everybody, also after the control plane has started anew.
        let deny = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["DELETE"]}}]}]});
        mesh.access("shop", "partly", &selecting(deny));
        mesh.comes(&mesh.friend, 8080, Came::Answer(403));
        mesh.told("denied_by_rule", "AuthorizationPolicy shop/partly", "refused");
        mesh.world.stop_control();
        mesh.world.start_control();
        let late = mesh.world.pod(PodSpec::new("late"));
        mesh.comes(&late, 8080, Came::Answer(403));
        assert_eq!(mesh.call(&mesh.friend, 8080), Came::Answer(403));
        // So does a mode that is not supported, where plaintext is concerned.
        mesh.delete("AuthorizationPolicy", "shop", "partly");
        mesh.delete("AuthorizationPolicy", "shop", "friends");
        mesh.comes(&mesh.stranger, 8080, Came::Answer(200));
        mesh.mtls("shop", "default", &json!({"mtls": {"mode": "DISABLE"}}));
        mesh.comes(&mesh.stranger, 8080, Came::Cut);
        assert_eq!(mesh.call(&mesh.friend, 8080), Came::Answer(200));
        mesh.mtls("shop", "default", &permissive());
        mesh.comes(&mesh.stranger, 8080, Came::Answer(200));
        until("nothing is refused any more", || {
            (mesh.world.control_metric("weir_control_refused_policies") < 0.1).then_some(())
        });
    });
}

#[test]
fn a_changed_rule_ends_what_it_refuses_now_and_leaves_everything_else() {
    each_number_of_workers(|workers| {
        let mesh = Mesh::new("changed", workers);
        let talk = |client: &mut Client| client.try_get("/again").map(|response| response.status);
        // Kept connections and streams of everybody, by HTTP and opaque.
        let mut kept: Vec<(&Pod, u16, Client)> = Vec::new();
        for (from, port) in [(&mesh.friend, 7000), (&mesh.other, 7000), (&mesh.stranger, 7000), (&mesh.stranger, 8080)]
        {
            let mut client = from.connect(mesh.to(port));
            assert_eq!(talk(&mut client).unwrap(), 200);
            kept.push((from, port, client));
        }
        // A request in flight: its answer never ends by itself.
        let _slow = App::http(&mesh.server.netns, 9800, |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")?;
            let _ = stream.read(&mut [0; 1]);
            Ok(Flow::Close)
        });
        let mut flights: Vec<Client> = [&mesh.friend, &mesh.other]
            .map(|from| {
                let mut client = from.connect(mesh.to(9800));
                client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
                assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
                assert_eq!(client.exactly(7).unwrap(), b"2\r\nab\r\n");
                client
            })
            .into();
        // A rule that refuses nobody of them ends nothing.
        mesh.access(
            "shop",
            "deny",
            &json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["elsewhere"]}}]}]}),
        );
        until("the rule has arrived", || mesh.server.admin("/config_dump").contains("shop/deny").then_some(()));
        for (from, port, client) in &mut kept {
            assert_eq!(talk(client).unwrap(), 200, "{} {port}", from.name);
        }
        // One that refuses all but the friend ends exactly the others, without a word from them.
        let rule = json!([{"from": [{"source": {"notPrincipals": ["cluster.local/ns/shop/sa/friend"]}}]}]);
        mesh.access("shop", "deny", &json!({"action": "DENY", "rules": rule}));
        for (from, port, client) in kept.iter_mut().skip(1) {
            client.patience(Duration::from_secs(20));
            assert!(client.is_closed(), "{} {port} was not ended", from.name);
        }
        let cut = flights.pop().unwrap();
        cut.patience(Duration::from_secs(20));
        let mut cut = cut;
        assert!(cut.is_closed(), "the request in flight was not ended");
        mesh.told("denied_by_rule", "AuthorizationPolicy shop/deny", "0");
        assert_eq!(talk(&mut kept[0].2).unwrap(), 200, "the friend's stream was ended");
        flights[0].patience(Duration::from_millis(300));
        assert!(!flights[0].is_closed(), "the friend's request was ended");
        // New ones are refused, until the rule is gone.
        assert_eq!(mesh.call(&mesh.other, 7000), Came::Cut);
        assert_eq!(mesh.call(&mesh.other, 8080), Came::Answer(403));
        mesh.delete("AuthorizationPolicy", "shop", "deny");
        for (from, port) in [(&mesh.other, 7000), (&mesh.other, 8080), (&mesh.stranger, 8080)] {
            mesh.comes(from, port, Came::Answer(200));
        }
        // The same for plaintext that was accepted before.
        let mut plain = mesh.stranger.connect(mesh.to(7000));
        let mut meshed = mesh.friend.connect(mesh.to(7000));
        assert_eq!((talk(&mut plain).unwrap(), talk(&mut meshed).unwrap()), (200, 200));
        mesh.mtls("shop", "default", &strict());
        plain.patience(Duration::from_secs(20));
        assert!(plain.is_closed());
        assert_eq!(talk(&mut meshed).unwrap(), 200);
    });
}

#[test]
fn a_kept_connection_between_proxies_follows_the_rules_of_the_moment() {
    each_number_of_workers(|workers| {
        let mesh = Mesh::new("kept", workers);
        let mut client = mesh.friend.connect(mesh.to(8080));
        assert_eq!(client.get("/").status, 200);
        for _ in 0..3 {
            mesh.access("shop", "nobody", &selecting(json!({"action": "DENY", "rules": [{}]})));
            until("the rule holds", || (client.get("/").status == 403).then_some(()));
            mesh.delete("AuthorizationPolicy", "shop", "nobody");
            until("the rule is gone", || (client.get("/").status == 200).then_some(()));
        }
    });
}

#[test]
fn redis_is_guarded_like_everything_else() {
    if !is_root() {
        return;
    }
    let mesh = Mesh::new("redis", 1);
    let _redis = weir_tests::Process::start(
        "redis",
        mesh.server.netns.command("setpriv").args(["--pdeathsig=KILL", "redis-server"]).args([
            "--port",
            "6379",
            "--bind",
            &mesh.server.ip.to_string(),
            "--save",
            "",
            "--protected-mode",
            "no",
        ]),
    );
    let ping = |from: &Pod| -> std::io::Result<[u8; 7]> {
        let mut stream = from.netns.connect(mesh.to(6379))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).map(|()| answer)
    };
    until("redis answers", || ping(&mesh.friend).ok());
    assert_eq!(&ping(&mesh.other).unwrap(), b"+PONG\r\n");
    let rules = json!([{"from": [{"source": {"principals": ["*/sa/friend"]}}], "when": [{"key": "destination.port", "values": ["6379"]}]}]);
    mesh.access("shop", "redis", &selecting(json!({"rules": rules})));
    until("the rule holds", || ping(&mesh.other).is_err().then_some(()));
    assert_eq!(&ping(&mesh.friend).unwrap(), b"+PONG\r\n");
    assert!(ping(&mesh.stranger).is_err());
    mesh.delete("AuthorizationPolicy", "shop", "redis");
    until("the rule is gone", || ping(&mesh.stranger).ok());
}
