//! Real servers that fail under load, and what the rules for it are worth: the share of failed requests without them and with them.
//!
//! The servers are nginx, one of three each time, and Kubernetes is never told: the endpoint stays in the list. A request has failed
//! if it has no answer with 200 within [`PATIENCE`]. What was measured is printed; docs/resilience.md has it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    stat::{major, minor},
};
use serde_json::{Value, json};
use weir_tests::{App, Flow, Load, Outcome, Pod, PodSpec, Process, World, at, is_root, nginx, until};

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a server is not well.
const SICK: Duration = Duration::from_secs(4);

/// Answers with a document. POST is answered like GET: what counts is who answers.
const DOCUMENT: &str = "server { listen 8080; root ROOT; error_page 405 =200 $uri; add_header x-pod NAME; SETTINGS
    location / { try_files /index.html =404; } }";

/// Servers behind one Service.
struct Shop {
    client: Pod,
    pods: Vec<Pod>,
    servers: Vec<Process>,
    address: SocketAddr,
    /// nginx's `server` blocks, where `NAME` is the pod's.
    blocks: String,
    world: World,
}

impl Shop {
    fn new(name: &str, servers: usize, blocks: String) -> Self {
        let world = World::new(name);
        let pod = |number| {
            let spec = PodSpec::new(&format!("server-{number}")).label("app", "shop").port("http", 8080);
            world.pod_unready(spec)
        };
        let pods: Vec<Pod> = (0..servers).map(pod).collect();
        let address = at(world.service("shop", 10, &json!({"app": "shop"}), &[("http", 80, 8080)]), 80);
        let client = world.pod(PodSpec::new("client"));
        let mut shop = Self { client, pods, servers: Vec::new(), address, blocks, world };
        shop.servers = (0..servers).map(|number| shop.serve(number)).collect();
        shop.pods.iter().for_each(Pod::wait_ready);
        shop
    }

    fn folder(&self, number: usize) -> PathBuf {
        self.world.path(&format!("nginx-{number}"))
    }

    fn serve(&self, number: usize) -> Process {
        let pod = &self.pods[number];
        nginx::start(&pod.netns, &self.folder(number), &self.blocks.replace("NAME", &pod.name), 8080)
    }

    /// Writes what a user would, and waits until it is in force.
    fn rules(&self, timeouts: Value, traffic_policy: Value) {
        let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"host": "shop", "trafficPolicy": traffic_policy}});
        self.world.write("rule", &rule.to_string());
        // More retries than the usual fifth: a third of the servers may fail at once.
        let budget = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "shop"}], "retryBudget": {"percent": 50}}});
        self.world.write("budget", &budget.to_string());
        // Last, so that it is not in force before the others.
        self.world.route(
            "shop",
            &json!([{
                "backendRefs": [{"name": "shop", "port": 80}],
                "timeouts": timeouts,
                "retry": {"codes": [500, 502, 503, 504], "attempts": 2, "backoff": "10ms"},
            }]),
        );
        until("the rules are in force", || {
            let _ = self.client.try_connect(self.address).and_then(|mut connection| connection.try_get("/warm"));
            self.client.admin("/config_dump").contains("HTTPRoute/shop/shop/0/0").then_some(())
        });
    }

    /// What comes of requests while `harm` is done to a server.
    fn under_load(&mut self, threads: usize, harm: impl FnOnce(&mut Self)) -> Outcome {
        let load = Load::within(&self.client, self.address, threads, PATIENCE);
        load.more(threads * 20);
        harm(self);
        load.more(threads * 5);
        load.stop()
    }

    /// Waits until everybody answers again.
    fn well(&self) {
        until("all servers answer", || {
            let load = Load::within(&self.client, self.address, 4, PATIENCE);
            load.more(100);
            let outcome = load.stop();
            (outcome.failed.is_empty() && outcome.answered.len() == self.pods.len()).then_some(())
        });
    }
}

/// The same harm without rules and with them; both shares, in percent.
fn compare(
    what: &str,
    shop: &mut Shop,
    threads: usize,
    rules: impl FnOnce(&Shop),
    harm: impl Fn(&mut Shop),
) -> (f64, f64) {
    shop.well();
    let without = shop.under_load(threads, &harm);
    shop.well();
    rules(shop);
    shop.well();
    let with = shop.under_load(threads, &harm);
    let example = with.failed.first().map(String::as_str).unwrap_or_default();
    println!(
        "{what}: {:.2} % of {} requests failed without rules, {:.2} % of {} with them {example}",
        without.failed_percent(),
        without.total() + without.failed.len(),
        with.failed_percent(),
        with.total() + with.failed.len(),
    );
    (without.failed_percent(), with.failed_percent())
}

fn document(settings: &str) -> String {
    DOCUMENT.replace("SETTINGS", settings)
}

fn outliers() -> Value {
    json!({"outlierDetection": {"consecutiveGatewayErrors": 3, "interval": "1s", "baseEjectionTime": "2s", "maxEjectionPercent": 50}})
}

/// Requests that it was answering are lost with it: a rule that allows it sends them again.
#[test]
fn a_server_that_is_killed() {
    if !is_root() {
        return;
    }
    let mut shop = Shop::new("killed", 3, document(""));
    let rules = |shop: &Shop| shop.rules(json!({}), outliers());
    let (without, with) = compare("killed", &mut shop, 8, rules, |shop| {
        for _ in 0..10 {
            shop.servers[2].kill();
            std::thread::sleep(SICK / 10);
            shop.servers[2] = shop.serve(2);
        }
    });
    assert!(without < 5.0, "what was not delivered is sent to another without any rule: {without} %");
    assert_eq!(with, 0.0);
}

/// It takes connections and never answers.
#[test]
fn a_server_that_hangs() {
    if !is_root() {
        return;
    }
    let mut shop = Shop::new("hangs", 3, document(""));
    let rules = |shop: &Shop| shop.rules(json!({"request": "900ms", "backendRequest": "300ms"}), outliers());
    let (without, with) = compare("paused", &mut shop, 8, rules, |shop| {
        shop.servers[2].signal(Signal::SIGSTOP);
        std::thread::sleep(SICK);
        shop.servers[2].signal(Signal::SIGCONT);
    });
    assert!(without > 0.0, "callers wait for it");
    assert!(with < without / 4.0, "{with} % with rules, {without} % without");
}

/// It starts, answers for a moment, and ends.
#[test]
fn a_server_in_a_restart_loop() {
    if !is_root() {
        return;
    }
    let mut shop = Shop::new("loop", 3, document(""));
    let rules = |shop: &Shop| shop.rules(json!({}), outliers());
    let (without, with) = compare("restarted in a loop", &mut shop, 8, rules, |shop| {
        let end = Instant::now() + SICK;
        while Instant::now() < end {
            shop.servers[2].kill();
            shop.servers[2] = shop.serve(2);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(without < 5.0, "what was not delivered is sent to another without any rule: {without} %");
    assert_eq!(with, 0.0);
}

/// It answers 503 to more requests at a time than it can do: waiting in front of it is better.
#[test]
fn a_server_at_its_limit() {
    if !is_root() {
        return;
    }
    let blocks = "limit_conn_zone $server_port zone=all:64k;
        server { listen 8080; add_header x-pod NAME; limit_conn all 4; location / { proxy_pass http://127.0.0.1:9090; } }";
    let mut shop = Shop::new("limit", 1, blocks.into());
    // Behind nginx is something slow, so that it has several requests at a time.
    let _slow = App::http(&shop.pods[0].netns, 9090, |_, stream| {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")?;
        Ok(Flow::Close)
    });
    let pool = json!({"connectionPool": {"tcp": {"maxConnections": 4}}});
    let rules = |shop: &Shop| shop.rules(json!({}), pool);
    let (without, with) = compare("at its limit of 4", &mut shop, 12, rules, |_| std::thread::sleep(SICK));
    assert!(without > 20.0, "{without} %");
    assert_eq!(with, 0.0);
}

/// What it reads comes slowly: by the kernel's limit for a control group.
#[test]
fn a_server_with_a_slow_disk() {
    if !is_root() {
        return;
    }
    // Read from the disk each time, not from memory, in parts of 32 KiB.
    let mut shop = Shop::new("disk", 3, document("directio 512;"));
    for number in 0..3 {
        fs::write(shop.folder(number).join("index.html"), "x".repeat(64 * 1024)).unwrap();
    }
    let Some(slow) = SlowDisk::new(&shop.folder(2)) else { return };
    let rules = |shop: &Shop| shop.rules(json!({"request": "900ms", "backendRequest": "300ms"}), outliers());
    let (without, with) = compare("slow disk", &mut shop, 8, rules, |shop| {
        slow.takes(shop.servers[2].pid());
        std::thread::sleep(SICK);
        slow.frees(shop.servers[2].pid());
    });
    assert!(without > 0.0, "callers wait for it");
    assert!(with < without / 4.0, "{with} % with rules, {without} % without");
}

/// A control group whose processes read 16 KiB a second from the disk.
struct SlowDisk {
    group: PathBuf,
    parent: PathBuf,
}

impl SlowDisk {
    /// For the disk of a folder; nothing, and a word why, where the kernel or the file system can not do it.
    fn new(folder: &Path) -> Option<Self> {
        let device = fs::metadata(folder).unwrap().dev();
        let number = format!("{}:{}", major(device), minor(device));
        // The limit is for a whole disk, and the folder may be on a part of one.
        let whole = fs::read_to_string(format!("/sys/dev/block/{number}/partition"))
            .and_then(|_| fs::read_to_string(format!("/sys/dev/block/{number}/../dev")));
        let device = whole.map_or(number, |whole| whole.trim().to_owned());
        let name = format!("weir-test-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let (parent, file, line) = if v1.is_dir() {
            (v1, "blkio.throttle.read_bps_device", format!("{device} 16384"))
        } else {
            (Path::new("/sys/fs/cgroup"), "io.max", format!("{device} rbps=16384"))
        };
        let group = parent.join(name);
        let made = fs::create_dir(&group).and_then(|()| fs::write(group.join(file), line));
        if let Err(error) = made {
            eprintln!("skipped: reads from {device} can not be slowed down here: {error}");
            let _ = fs::remove_dir(&group);
            return None;
        }
        Some(Self { group, parent: parent.into() })
    }

    fn takes(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn frees(&self, pid: u32) {
        fs::write(self.parent.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}
