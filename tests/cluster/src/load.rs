//! A service under load: `app serve` behind a Service, and clients on every node that go on asking and count (`app load`).
//!
//! The server is as plain as servers are: it accepts no more at SIGTERM, answers what is open, has no `preStop`. The clients never ask
//! twice. What was served is written down on the nodes, so that a request that arrived twice is found.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::ListParams};
use serde::Deserialize;

use crate::{case::Case, is_ready};

/// Requests a second of all clients together.
pub const RATE: f64 = 200.0;
/// Of which at least so many must come, on a machine as busy as this.
const LEAST: f64 = 0.9;
/// Clients on each node.
const CLIENTS: [&str; 2] = ["load", "more"];
/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where servers write down what they served.
const SERVED: &str = "/var/lib/weir-served";

/// What clients have counted.
#[derive(Debug, Default, Deserialize)]
pub struct Totals {
    /// Requests that were to be sent.
    pub sent: u64,
    /// Answered as they should be.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// The first failures.
    pub reasons: Vec<serde_json::Value>,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Answers by method and kind of connection.
    pub by_kind: BTreeMap<String, u64>,
    /// Longest time of a request.
    pub slowest_ms: u64,
    /// For how long it was counted.
    pub seconds: f64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.reasons.extend(other.reasons);
        for (pod, count) in other.by_pod {
            *self.by_pod.entry(pod).or_default() += count;
        }
        for (kind, count) in other.by_kind {
            *self.by_kind.entry(kind).or_default() += count;
        }
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        self.seconds = self.seconds.max(other.seconds);
    }

    fn posts(&self) -> u64 {
        self.by_kind.iter().filter(|(kind, _)| kind.starts_with("POST")).map(|(_, count)| count).sum()
    }

    /// Panics if the load did not run throughout: a rest proves nothing.
    pub fn assert_ran(&self, what: &str) {
        let rate = self.sent as f64 / self.seconds.max(0.001);
        let least = RATE * LEAST;
        assert!(rate >= least, "{what}: only {rate:.0} requests a second instead of {RATE}: {self:?}");
        let kinds: Vec<&str> = self.by_kind.keys().map(String::as_str).collect();
        assert_eq!(kinds, ["GET fresh", "GET kept", "POST fresh", "POST kept"], "{what}");
    }

    /// Prints a line of what was counted.
    pub fn say(&self, what: &str) {
        println!(
            "  {what}: {} requests in {:.0} s to {} pods, {} failed, slowest {} ms",
            self.sent,
            self.seconds,
            self.by_pod.len(),
            self.failed,
            self.slowest_ms
        );
    }

    /// Panics if a request failed, or the load did not run.
    pub fn assert_nothing_lost(&self, what: &str) {
        self.assert_none_failed(what);
        self.assert_ran(what);
    }

    /// Panics if a request failed.
    pub fn assert_none_failed(&self, what: &str) {
        self.say(what);
        if self.failed > 0 {
            for reason in &self.reasons {
                println!("    {reason}");
            }
        }
        assert_eq!(self.failed, 0, "{what}: requests were lost");
    }
}

/// A service under load.
pub struct Load<'a> {
    case: &'a Case<'a>,
    clients: Vec<String>,
    /// POST requests answered in windows that are over.
    posts: u64,
}

impl<'a> Load<'a> {
    /// Starts `replicas` servers, and then the clients; returns when all are asking.
    ///
    /// # Panics
    /// When they do not become ready.
    pub async fn start(case: &'a Case<'a>, replicas: usize) -> Self {
        case.apply(&servers(case.namespace, replicas));
        case.ready_with("app=server", replicas).await;
        for name in CLIENTS {
            case.apply(&clients(name, RATE / (CLIENTS.len() * case.cluster.nodes().count()) as f64));
        }
        let expected = CLIENTS.len() * case.cluster.nodes().count();
        let pods = case.ready_with("role=client", expected).await;
        let mut load = Self { case, clients: pods.iter().map(|pod| pod.name_any()).collect(), posts: 0 };
        load.window();
        load
    }

    /// Names of the clients' pods.
    pub fn clients(&self) -> &[String] {
        &self.clients
    }

    /// Names of the servers' pods that are ready.
    pub async fn servers(&self) -> BTreeSet<String> {
        self.pods().await.iter().filter(|pod| is_ready(pod)).map(|pod| pod.name_any()).collect()
    }

    async fn pods(&self) -> Vec<Pod> {
        let params = ListParams::default().labels("app=server");
        self.case.api::<Pod>().list(&params).await.map(|list| list.items).unwrap_or_default()
    }

    /// Waits until there are so many servers, ready, none ends any more, and each has served.
    ///
    /// # Panics
    /// When that is not so in time.
    pub async fn settled(&self, replicas: usize) -> BTreeSet<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let pods = self.pods().await;
            let (ready, all) = (self.servers().await, pods.len());
            if ready.len() == replicas && all == replicas {
                let served = self.ask("/").by_pod;
                let idle: Vec<_> = ready.iter().filter(|pod| !served.contains_key(*pod)).collect();
                if idle.is_empty() {
                    return ready;
                }
                assert!(Instant::now() < end, "{idle:?} have not served, only {served:?}");
            }
            assert!(Instant::now() < end, "{} of {all} servers are ready, and not {replicas}", ready.len());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// What was counted since the last time; counts begin anew.
    ///
    /// # Panics
    /// When a client can not be asked.
    pub fn window(&mut self) -> Totals {
        let totals = self.ask("/reset");
        self.posts += totals.posts();
        totals
    }

    /// Ends asking; what was counted since the last window, with everything that was under way.
    ///
    /// # Panics
    /// When a client can not be asked.
    pub fn stop(&mut self) -> Totals {
        let totals = self.ask("/stop");
        self.posts += totals.posts();
        totals
    }

    fn ask(&self, path: &str) -> Totals {
        let url = format!("http://127.0.0.1:8081{path}");
        let ask = |client: &str| -> Totals {
            let said = self.case.exec(client, &["/app", "fetch", "--seconds=30", &url]);
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{client}: {error}: {said}"))
        };
        let (ask, mut totals) = (&ask, Totals::default());
        thread::scope(|scope| {
            let asked: Vec<_> = self.clients.iter().map(|client| scope.spawn(move || ask(client))).collect();
            for asked in asked {
                match asked.join() {
                    Ok(one) => totals.add(one),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        totals
    }

    /// To be called after [`Load::stop`] where nothing has failed: every POST request was served, and none twice.
    ///
    /// # Panics
    /// When one was.
    pub fn assert_posted_once(&self) {
        let script = format!("cat {SERVED}/{}/* 2>/dev/null || true", self.case.namespace);
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        let mut gets = 0_u64;
        for node in self.case.cluster.nodes() {
            let served = node.shell(&script).unwrap_or_else(|error| panic!("{error:#}"));
            for line in served.lines() {
                match line.strip_prefix("POST ") {
                    Some(id) => *times.entry(id.to_owned()).or_default() += 1,
                    None => gets += 1,
                }
            }
        }
        let twice: Vec<_> = times.iter().filter(|(_, count)| **count > 1).take(10).collect();
        assert!(twice.is_empty(), "POST requests were served more than once: {twice:?}");
        // Those answered before the first window are among the served.
        let served = times.len() as u64;
        assert!(served >= self.posts && self.posts > 0, "{} POST requests answered, {served} served", self.posts);
        println!("  {served} POST requests were served, each once; {gets} GET requests");
    }
}

fn servers(namespace: &str, replicas: usize) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: server}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: server}}}}
  template:
    metadata: {{labels: {{app: server}}}}
    spec:
      topologySpreadConstraints:
      - topologyKey: kubernetes.io/hostname
        maxSkew: 1
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: server}}}}
      containers:
      - name: app
        image: weir.test/app:1
        args: [serve, --record=/served]
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        volumeMounts: [{{name: served, mountPath: /served}}]
      volumes:
      - {{name: served, hostPath: {{path: {SERVED}/{namespace}, type: DirectoryOrCreate}}}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: server}}
spec:
  minAvailable: 1
  selector: {{matchLabels: {{app: server}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: server}}
spec:
  selector: {{app: server}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"
    )
}

/// Of a DaemonSet: a drain leaves them where they are.
fn clients(name: &str, rate: f64) -> String {
    format!(
        "
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, role: client}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: weir.test/app:1
        args: [load, --url=http://server, --rate={rate:.0}]
        readinessProbe: {{httpGet: {{path: /, port: 8081}}, periodSeconds: 1}}
"
    )
}
