//! The mesh that rows are shown in: pods `one` and `two`, a Service for each of them, and for each look a new Service for both, with which
//! nothing of what was before counts.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weir_config::{Manifest, Problem, manifest::Source};
use weir_tests::{App, Pod, PodSpec, World, at, http2::H2App, until_within};

use crate::{
    answers::{self, Well},
    ask::Probe,
};

/// Port of every Service that speaks HTTP, and one more.
pub(crate) const HTTP: u16 = 80;
pub(crate) const MORE_HTTP: u16 = 81;
/// The port that speaks gRPC.
pub(crate) const GRPC: u16 = 90;
/// A declared stream.
pub(crate) const STREAM: u16 = 70;
/// Not declared.
pub(crate) const ANY: u16 = 71;
/// A stream that no row has rules for: it tells that a Service is known.
const KNOWN: u16 = 79;
/// An address that nothing comes back from.
pub(crate) const BLACK_HOLE: Ipv4Addr = Ipv4Addr::new(198, 18, 9, 9);
/// Names, ports and target ports of every Service.
const PORTS: [(&str, u16, u16); 6] = [
    ("http", HTTP, 8080),
    ("http-more", MORE_HTTP, 8080),
    ("grpc", GRPC, 9090),
    ("tcp", STREAM, 7000),
    ("any", ANY, 7001),
    ("tcp-known", KNOWN, 7000),
];

/// The name in a row's objects that stands for the Service of the moment.
pub(crate) const SERVICE: &str = "catalog";
/// How long a row may take to see what it is to see.
const PATIENCE: Duration = Duration::from_secs(15);
/// One that is known answers as soon as that; a call to an address that is not known yet leads nowhere.
const SOON: Duration = Duration::from_millis(100);
/// Services have addresses from here on, in turns.
const FIRST: u16 = 20;
const ADDRESSES: u16 = 230;

/// See above. What is looked at is dropped before the world.
pub(crate) struct Mesh {
    pub(crate) client: Pod,
    pub(crate) pods: [Pod; 2],
    http: [App; 2],
    grpc: [H2App; 2],
    _streams: Vec<App>,
    /// Pod `one` says that it is well.
    pub(crate) well: Well,
    looks: AtomicU16,
    pub(crate) world: World,
}

impl Mesh {
    /// Everybody has a proxy.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |spec| spec)
    }

    /// The servers have none: what they see is what the caller's proxy does.
    pub(crate) fn without_servers_proxies(name: &str) -> Self {
        Self::with(name, PodSpec::outside)
    }

    fn with(name: &str, change: impl Fn(PodSpec) -> PodSpec) -> Self {
        let world = World::new(name);
        world.node.ip(&format!("route add blackhole {BLACK_HOLE}"));
        let pods = ["one", "two"].map(|name| {
            let spec = PodSpec::new(name).label("tier", "back").port("http", 8080).port("grpc", 9090).port("tcp", 7000);
            world.pod_unready(change(spec.port("", 7001).node(name)))
        });
        let well = [Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true))];
        let app = |number: usize| (&pods[number].netns, pods[number].name.as_str(), &well[number]);
        let http = [0, 1].map(app).map(|(netns, name, well)| answers::http(netns, 8080, name, well));
        let grpc = [0, 1].map(app).map(|(netns, name, well)| answers::grpc(netns, 9090, name, well));
        let streams = [(0, 7000), (0, 7001), (1, 7000), (1, 7001)];
        let streams = streams.map(|(number, port)| answers::stream(&pods[number].netns, port, &pods[number].name));
        for (last, name) in [(11, "one"), (12, "two")] {
            world.service(name, last, &json!({"app": name}), &PORTS);
        }
        let client = world.pod(PodSpec::new("client").workers(1).node("client"));
        pods.iter().for_each(Pod::wait_ready);
        let [one, _] = well;
        Self { client, pods, http, grpc, _streams: streams.into(), well: one, looks: AtomicU16::new(0), world }
    }

    /// Puts these objects in force for a new Service, and waits until the probe sees there what it is to see.
    ///
    /// # Errors
    /// What it saw last.
    pub(crate) fn shows(&self, objects: &[Value], probe: &Probe, wanted: &str) -> Result<(), String> {
        let service = self.put(objects);
        if !objects.iter().any(|object| object["kind"] == "EndpointSlice") {
            self.until("the Service is known", || {
                let connection = self.client.try_connect(at(service, KNOWN));
                connection
                    .and_then(|mut connection| {
                        connection.patience(SOON);
                        connection.send(b"x")?;
                        connection.exactly(3)
                    })
                    .is_ok()
            });
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = probe.see(self, service);
            if seen == wanted {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(seen);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for something on the way to a row.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        until_within(PATIENCE, what, || is_so().then_some(()));
    }

    /// Requests that came to a pod so far, of all versions.
    pub(crate) fn requests(&self, pod: &str) -> usize {
        let number = usize::from(pod == "two");
        self.http[number].count() + self.grpc[number].requests.load(SeqCst)
    }

    /// Writes the objects, for a new Service that takes the place of the last one. What is refused is left out: no API server would
    /// have stored it.
    fn put(&self, objects: &[Value]) -> Ipv4Addr {
        let look = self.looks.fetch_add(1, SeqCst);
        let address = Ipv4Addr::new(198, 19, 0, u8::try_from(FIRST + look % ADDRESSES).unwrap());
        let mut all: Vec<Value> = objects.iter().filter(|object| parsed(object).is_ok()).cloned().collect();
        if !all.iter().any(|object| object["kind"] == "Service") {
            all.push(service(json!({"tier": "back"})));
        }
        for object in all.iter_mut().filter(|object| object["kind"] == "Service") {
            object["spec"]["clusterIP"] = json!(address);
        }
        let text: Vec<String> = all.iter().map(Value::to_string).collect();
        self.world.write("row", &text.join("\n---\n").replace(SERVICE, &format!("{SERVICE}-{look}")));
        address
    }
}

/// The row's Service, whose endpoints for HTTP are these.
pub(crate) fn listed(addresses: &[Ipv4Addr]) -> Vec<Value> {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    let labels = json!({"kubernetes.io/service-name": SERVICE});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": SERVICE, "namespace": "shop", "labels": labels}, "addressType": "IPv4",
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
    });
    vec![service(json!({})), slice]
}

/// The row's Service, for pods with these labels.
pub(crate) fn service(selector: Value) -> Value {
    let ports = PORTS.map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}));
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "namespace": "shop"},
        "spec": {"selector": selector, "ports": Value::from(ports.to_vec())},
    })
}

/// An object as the webhook reads it.
pub(crate) fn parsed(object: &Value) -> Result<Manifest, Vec<Problem>> {
    weir_config::parse_value(object.clone(), Source::named("row"))
}
