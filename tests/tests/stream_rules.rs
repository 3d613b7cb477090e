//! Databases and a proxy of other people behind a TCPRoute: a version beside another, a switch under open connections, and back.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use weir_tests::{Netns, Pod, PodSpec, Process, World, at, is_root, servers, tool, until};

/// Two pods with a server each, a Service of each pod, and one of none that a TCPRoute makes of both.
struct Pair {
    client: Pod,
    pods: Vec<Pod>,
    servers: Vec<Process>,
    host: String,
    world: World,
}

/// Connections before a whole turn of the weights: shares hold exactly over any of them.
const TURN: usize = 8;

impl Pair {
    /// `port_name` declares what the port speaks.
    fn new(name: &str, port_name: &str, start: impl Fn(&Netns, &Path, &str) -> Process) -> Self {
        let world = World::new(name);
        let pods: Vec<Pod> = ["old", "new"]
            .map(|name| world.pod_unready(PodSpec::new(name).label("tier", "back").port(port_name, 7000)))
            .into();
        let ports = [(port_name, 7000, 7000)];
        let address = world.service("all", 10, &json!({"tier": "back"}), &ports);
        for (last, name) in [(11, "old"), (12, "new")] {
            world.service(name, last, &json!({"app": name}), &ports);
        }
        let servers = pods.iter().map(|pod| start(&pod.netns, &world.path(&pod.name), &pod.name)).collect();
        let client = world.pod(PodSpec::new("client"));
        for pod in &pods {
            pod.wait_ready();
            until("the server listens", || pod.try_connect(at([127, 0, 0, 1], 7000)).ok());
        }
        Self { client, pods, servers, host: address.to_string(), world }
    }

    fn shares(&self, old: u32, new: u32) {
        let backends =
            [("old", old), ("new", new)].map(|(name, weight)| json!({"name": name, "port": 7000, "weight": weight}));
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "TCPRoute", "metadata": {"name": "versions", "namespace": "shop"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "all"}], "rules": [{"backendRefs": Value::from(backends.to_vec())}]},
        });
        self.world.write("versions", &route.to_string());
    }

    fn ask(&self, program: &str, words: &[&str]) -> String {
        servers::ask(&self.client.netns, program, words)
    }

    /// Who answers so many connections of `ask`, once a turn went as the weights say.
    fn settles(&self, ask: &dyn Fn() -> String, wanted: &[(&str, usize)]) {
        let wanted: BTreeMap<String, usize> = wanted.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        until(&format!("connections go as {wanted:?}"), || {
            let mut seen = BTreeMap::new();
            for _ in 0..TURN {
                *seen.entry(ask()).or_default() += 1;
            }
            (seen == wanted).then_some(())
        });
    }
}

/// The same way of every server: all to the old one, a share to the new one, everything, nobody, and back.
fn roll_out(pair: &Pair, ask: &dyn Fn() -> String) {
    pair.shares(1, 0);
    pair.settles(ask, &[("old", TURN)]);
    pair.shares(3, 1);
    pair.settles(ask, &[("old", 6), ("new", 2)]);
    pair.shares(0, 1);
    pair.settles(ask, &[("new", TURN)]);
    pair.shares(1, 0);
    pair.settles(ask, &[("old", TURN)]);
}

#[test]
fn redis_is_replaced_by_weight() {
    if !is_root() {
        return;
    }
    let pair = Pair::new("redis-route", "redis", |netns, folder, _| servers::redis(netns, folder, 7000));
    for (pod, name) in pair.pods.iter().zip(["old", "new"]) {
        assert_eq!(servers::ask(&pod.netns, "redis-cli", &["-p", "7000", "SET", "who", name]).trim(), "OK");
    }
    let ask = || pair.ask("redis-cli", &["-h", &pair.host, "-p", "7000", "GET", "who"]).trim().to_owned();
    roll_out(&pair, &ask);
}

#[test]
fn mariadb_is_replaced_by_weight_and_open_connections_stay() {
    if !is_root() || tool::debian("mariadbd").is_none() || tool::debian("mariadb").is_none() {
        return;
    }
    let pair = Pair::new("mariadb-route", "mysql", |netns, folder, name| {
        servers::mariadb(netns, folder, 7000, &[format!("--report-host={name}")])
    });
    let host = format!("--host={}", pair.host);
    let words = |query| {
        [
            "--no-defaults",
            host.as_str(),
            "--port=7000",
            "--skip-ssl",
            "--batch",
            "--skip-column-names",
            "--execute",
            query,
        ]
    };
    let ask = || pair.ask("mariadb", &words("select @@report_host")).trim().to_owned();
    pair.shares(1, 0);
    pair.settles(&ask, &[("old", TURN)]);
    // A session that lasts until the other version has everything.
    let long = std::thread::scope(|scope| {
        let long = scope.spawn(|| pair.ask("mariadb", &words("select sleep(5); select @@report_host")));
        until("the long session is there", || {
            let count = "select count(*) from information_schema.processlist where info like 'select sleep%'";
            let mut words = words(count);
            words[1] = "--host=127.0.0.1";
            (servers::ask(&pair.pods[0].netns, "mariadb", &words).trim() == "1").then_some(())
        });
        pair.shares(0, 1);
        pair.settles(&ask, &[("new", TURN)]);
        long.join().unwrap()
    });
    assert_eq!(long.split_whitespace().collect::<Vec<_>>(), ["0", "old"]);
    roll_out(&pair, &ask);
}

#[test]
fn haproxy_is_replaced_by_weight() {
    if !is_root() || tool::debian("haproxy").is_none() {
        return;
    }
    let mut pair = Pair::new("haproxy-route", "tcp", |netns, folder, name| {
        let configuration = format!(
            "global\n maxconn 100\ndefaults\n mode http\n timeout client 10s\n timeout server 10s\n timeout connect 2s\n\
             frontend web\n bind 0.0.0.0:7000\n http-request return status 200 content-type text/plain string {name}\n"
        );
        servers::haproxy(netns, folder, &configuration)
    });
    let url = format!("http://{}:7000/", pair.host);
    {
        let ask = || pair.ask("curl", &["-sS", "--max-time", "10", &url]);
        roll_out(&pair, &ask);
        pair.shares(0, 1);
        pair.settles(&ask, &[("new", TURN)]);
    }
    // Its end is seen as what it is: without its server a version has nobody, and the connection ends.
    pair.servers[1].kill();
    let output = pair.client.netns.command("curl").args(["-sS", "--max-time", "10", &url]).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
}
