//! The node, the control plane, and what the cluster holds.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU32, Ordering::Relaxed},
    },
};

use serde_json::{Value, json};
use weir_sandbox::tap::{FlowReport, Tap};

use crate::{
    http::Client,
    netns::Netns,
    pod::{Pod, PodSpec},
    process::{Process, binary},
    tokens::{self, Issuer},
    until,
};

/// The node's address, where the control plane listens.
pub const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The same in IPv6.
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// Ranges that the proxies know as the mesh's; 198.18.9.0/24 and others are outside.
pub const MESH_CIDRS: &str = "198.18.0.0/24,198.19.0.0/24,fd00::/112";
/// Namespace of the pods.
pub const NAMESPACE: &str = "shop";
/// Name in the control plane's certificate.
pub const CONTROL_NAME: &str = "control.test";
/// Trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// A mesh of its own.
pub struct World {
    /// The node's network.
    pub node: Netns,
    /// Everything on disk.
    pub dir: PathBuf,
    /// Signs pods' tokens.
    pub issuer: Arc<Issuer>,
    control: Mutex<Option<Process>>,
    control_flags: Vec<String>,
    pods: AtomicU8,
}

impl World {
    /// With a running control plane and no pods.
    pub fn new(name: &str) -> Self {
        Self::with_control(name, &[])
    }

    /// The same; the control plane gets these flags besides the usual ones.
    pub fn with_control(name: &str, flags: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let dir = std::env::temp_dir().join(format!("weir-tests-{}-{number}-{name}", std::process::id()));
        for part in ["config", "ca", "pods", "bin"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let issuer = Arc::new(Issuer::new());
        fs::write(dir.join("token.pub"), issuer.public_pem()).unwrap();
        let world = Self {
            node: Netns::new(),
            dir,
            issuer,
            control: Mutex::default(),
            control_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            pods: AtomicU8::new(0),
        };
        world.node.ip(&format!("address add {NODE}/32 dev lo"));
        world.node.ip(&format!("address add {NODE6}/128 dev lo nodad"));
        world.start_control();
        world
    }

    /// A program of this workspace where every user can run it, wherever the checkout lies.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let path = self.dir.join("bin").join(name);
        if !path.exists() {
            let built = binary(name);
            if fs::hard_link(&built, &path).is_err() {
                fs::copy(&built, &path).unwrap();
            }
        }
        path
    }

    /// Address of the control plane.
    pub fn control_address() -> SocketAddr {
        (NODE, weir_mesh::ports::CONTROL).into()
    }

    /// Starts the control plane and waits until it serves.
    pub fn start_control(&self) {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let process = Process::start(
            "weir-control",
            self.node
                .command("setpriv")
                .arg("--pdeathsig=KILL")
                .arg(self.program("weir-control"))
                .args(["--listen", &Self::control_address().to_string(), "--admin", "127.0.0.1:15014"])
                .args(["--config-dir", &path("config"), "--ca-dir", &path("ca"), "--trust-domain", TRUST_DOMAIN])
                .args(["--token-key", &path("token.pub"), "--token-issuer", tokens::ISSUER])
                .args(["--server-name", CONTROL_NAME, "--log", "info,weir_control=debug"])
                .args(&self.control_flags),
        );
        until("the control plane serves", || (!process.err.with(&["serving"]).is_empty()).then_some(()));
        *self.control.lock().unwrap() = Some(process);
    }

    /// Ends the control plane at once.
    pub fn stop_control(&self) {
        self.control.lock().unwrap().take();
    }

    /// Lines of the control plane's log with these texts.
    pub fn control_log(&self, texts: &[&str]) -> Vec<String> {
        self.control.lock().unwrap().as_ref().map(|process| process.err.with(texts)).unwrap_or_default()
    }

    /// A metric of the control plane, summed over its labels.
    pub fn control_metric(&self, name: &str) -> f64 {
        let stream = self.node.connect(([127, 0, 0, 1], 15014).into()).unwrap();
        let response = Client::new(stream).get("/metrics");
        crate::pod::sum(&response.text(), name, &[])
    }

    /// PEM of the roots.
    pub fn root(&self) -> String {
        fs::read_to_string(self.dir.join("ca/root-cert.pem")).unwrap()
    }

    /// Writes an object (or several) as the API server would hold it.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.dir.join("config").join(format!(".{name}.new"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.dir.join("config").join(format!("{name}.yaml"))).unwrap();
    }

    /// Takes an object away.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join("config").join(format!("{name}.yaml"))).unwrap();
    }

    /// A Service `198.19.0.LAST` for pods with these labels; ports are `(name, port, target port)`. The name may be empty, and
    /// `NAME@PROTOCOL` sets `appProtocol`.
    pub fn service(&self, name: &str, last: u8, selector: &Value, ports: &[(&str, u16, u16)]) -> Ipv4Addr {
        let ip = Ipv4Addr::new(198, 19, 0, last);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x1000 + u16::from(last));
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port, target)| {
                let mut value = json!({"port": port, "targetPort": target});
                let (name, protocol) = name.split_once('@').map_or((*name, None), |(name, said)| (name, Some(said)));
                if !name.is_empty() {
                    value["name"] = json!(name);
                }
                if let Some(protocol) = protocol {
                    value["appProtocol"] = json!(protocol);
                }
                value
            })
            .collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"clusterIP": ip, "clusterIPs": [ip, v6], "selector": selector, "ports": ports},
        });
        self.write(&format!("service-{name}"), &object.to_string());
        ip
    }

    /// An HTTPRoute on a Service.
    pub fn route(&self, service: &str, rules: &Value) {
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": service, "namespace": NAMESPACE},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": service}], "rules": rules},
        });
        self.write(&format!("route-{service}"), &object.to_string());
    }

    /// Starts a pod; one in the mesh is ready when this returns.
    pub fn pod(&self, spec: PodSpec) -> Pod {
        let pod = self.pod_unready(spec);
        pod.wait_ready();
        pod
    }

    /// Starts a pod and does not wait for its proxy.
    pub fn pod_unready(&self, spec: PodSpec) -> Pod {
        Pod::start(self, spec, self.pods.fetch_add(1, Relaxed))
    }

    /// A network for a pod: its namespace, linked to the node's.
    pub(crate) fn link(&self, number: u8) -> (Netns, Ipv4Addr, Ipv6Addr) {
        let netns = Netns::new();
        let ip = Ipv4Addr::new(198, 18, 0, 10 + number);
        let ip6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(number));
        let path = netns.path();
        self.node.ip(&format!("link add {} type veth peer name eth0 netns {}", veth(number), path.display()));
        self.node.ip(&format!("link set {} up", veth(number)));
        netns.ip("link set eth0 up");
        netns.ip(&format!("address add {ip}/32 dev eth0"));
        netns.ip(&format!("route add {NODE} dev eth0 scope link"));
        netns.ip(&format!("route add default via {NODE} src {ip}"));
        netns.ip(&format!("address add {ip6}/128 dev eth0 nodad"));
        netns.ip(&format!("-6 route add {NODE6} dev eth0"));
        netns.ip(&format!("-6 route add default via {NODE6} src {ip6}"));
        self.node.ip(&format!("route add {ip} dev {}", veth(number)));
        self.node.ip(&format!("-6 route add {ip6} dev {}", veth(number)));
        (netns, ip, ip6)
    }

    /// Captures what passes a pod's link.
    pub fn tap(&self, pod: &Pod) -> Tap {
        self.node.run(|| Tap::start(&veth(pod.number))).unwrap()
    }

    /// What a tap saw between pods: everything but the control plane's own connections.
    pub fn between_pods(tap: Tap) -> Vec<FlowReport> {
        let mut flows = tap.stop();
        flows.retain(|flow| flow.server.ip() != NODE && flow.client.ip() != NODE);
        flows
    }

    /// A folder of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What `weir-init show` prints for a network namespace.
    pub(crate) fn rules(program: &Path, netns: &Netns) -> String {
        let output = Command::new(program).arg("show").arg("--netns").arg(netns.path()).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }
}

/// Name of a pod's link on the node.
fn veth(number: u8) -> String {
    format!("pod{number}")
}

/// An address of a pod or Service with a port.
pub fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    (ip.into(), port).into()
}

impl Drop for World {
    fn drop(&mut self) {
        if let Ok(mut control) = self.control.lock() {
            control.take();
        }
        if std::thread::panicking() {
            eprintln!("the test's files were in {}", self.dir.display());
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}
