//! Pods: a network namespace, an entry in the cluster's state, and in the mesh the redirect and a proxy.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use serde_json::{Value, json};
use weir_init::RuleSet;
use weir_mesh::{CaptureSettings, bootstrap::env, ports};

use crate::{
    http::{Client, Response},
    netns::Netns,
    patched::Patched,
    process::Process,
    tokens::Issuer,
    until,
    world::{CONTROL_NAME, MESH_CIDRS, NAMESPACE, TRUST_DOMAIN, World, at},
};

/// What a pod shall be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    name: String,
    labels: Value,
    annotations: Value,
    ports: Vec<(String, u16)>,
    outside: bool,
    foreign: bool,
    redirect: bool,
    token: Option<String>,
    env: Vec<(String, String)>,
    nofile: Option<u32>,
    node: Option<String>,
}

impl PodSpec {
    /// A pod of the mesh with the label `app=NAME` and the service account `NAME`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            labels: json!({"app": name}),
            annotations: json!({}),
            ports: Vec::new(),
            outside: false,
            foreign: false,
            redirect: true,
            token: None,
            env: Vec::new(),
            nofile: None,
            node: None,
        }
    }

    /// Has this label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels[name] = json!(value);
        self
    }

    /// Has this annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations[name] = json!(value);
        self
    }

    /// Declares a port; the name may be empty.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.into(), port));
        self
    }

    /// Has no proxy.
    #[must_use]
    pub fn outside(mut self) -> Self {
        self.outside = true;
        self
    }

    /// Is of the mesh, with its redirect, by a proxy that is not Weir's: the test starts it.
    #[must_use]
    pub fn foreign(mut self) -> Self {
        self.foreign = true;
        self
    }

    /// Its redirect is forgotten.
    #[must_use]
    pub fn without_redirect(mut self) -> Self {
        self.redirect = false;
        self
    }

    /// Has this text as its token; empty: no file.
    #[must_use]
    pub fn token(mut self, text: &str) -> Self {
        self.token = Some(text.into());
        self
    }

    /// Its proxy has this many workers.
    #[must_use]
    pub fn workers(self, workers: usize) -> Self {
        self.env(env::WORKERS, &workers.to_string())
    }

    /// Its proxy hears the control plane through this one.
    #[must_use]
    pub fn told_by(self, patched: &Patched) -> Self {
        self.env(env::CONTROL, &patched.address().to_string())
    }

    /// Its proxy has this variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs on this node, whose place counts.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = Some(name.into());
        self
    }

    /// Its proxy may have this many file descriptors.
    #[must_use]
    pub fn nofile(mut self, limit: u32) -> Self {
        self.nofile = Some(limit);
        self
    }
}

/// A pod.
pub struct Pod {
    /// Its name, which is also that of its service account.
    pub name: String,
    /// Its network.
    pub netns: Netns,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
    pub(crate) number: u8,
    spec: PodSpec,
    ready: AtomicBool,
    proxy: Mutex<Option<Process>>,
    programs: [PathBuf; 2],
    folder: PathBuf,
    config: PathBuf,
    issuer: Arc<Issuer>,
}

impl Pod {
    pub(crate) fn start(world: &World, spec: PodSpec, number: u8) -> Self {
        let (netns, ip, ip6) = world.link(number);
        let pod = Self {
            name: spec.name.clone(),
            netns,
            ip,
            ip6,
            number,
            spec,
            ready: AtomicBool::new(true),
            proxy: Mutex::default(),
            programs: [world.program("weir-proxy"), world.program("weir-init")],
            folder: world.dir.join("pods").join(format!("{number}")),
            config: world.dir.join("config"),
            issuer: world.issuer.clone(),
        };
        fs::create_dir_all(&pod.folder).unwrap();
        pod.write();
        if !pod.spec.outside && pod.spec.redirect {
            pod.apply_redirect();
        }
        if pod.has_proxy() {
            fs::write(pod.folder.join("root-cert.pem"), world.root()).unwrap();
            match &pod.spec.token {
                None => pod.set_token(&pod.own_token()),
                Some(text) if text.is_empty() => {}
                Some(text) => pod.set_token(text),
            }
            pod.start_proxy();
        }
        pod
    }

    fn has_proxy(&self) -> bool {
        !self.spec.outside && !self.spec.foreign
    }

    /// The token that the cluster would give to this pod.
    pub fn own_token(&self) -> String {
        self.issuer.token(NAMESPACE, &self.name, &self.name)
    }

    /// Replaces the token's file.
    pub fn set_token(&self, text: &str) {
        let temporary = self.folder.join("token.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.folder.join("token")).unwrap();
    }

    /// Replaces the file of root certificates.
    pub fn set_roots(&self, pem: &str) {
        let temporary = self.folder.join("root-cert.new");
        fs::write(&temporary, pem).unwrap();
        fs::rename(temporary, self.folder.join("root-cert.pem")).unwrap();
    }

    /// Starts the proxy anew, as a kubelet does with a container that has ended; one that still runs is killed.
    pub fn restart_proxy(&self) {
        self.proxy.lock().unwrap().take();
        self.start_proxy();
    }

    /// Puts the redirect in force.
    pub fn apply_redirect(&self) {
        weir_init::apply_in_netns(&self.netns.path(), &RuleSet::new(&CaptureSettings::default())).unwrap();
    }

    /// Identity of the pod.
    pub fn identity(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", self.name)
    }

    /// Environment of its proxy, as the webhook writes it.
    fn env(&self) -> Vec<(String, String)> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut all: Vec<(String, String)> = [
            (env::POD_NAME, self.name.clone()),
            (env::POD_NAMESPACE, NAMESPACE.into()),
            (env::POD_UID, format!("uid-{}", self.name)),
            (env::POD_IPS, format!("{},{}", self.ip, self.ip6)),
            (env::SERVICE_ACCOUNT, self.name.clone()),
            (env::TRUST_DOMAIN, TRUST_DOMAIN.into()),
            (env::CONTROL, World::control_address().to_string()),
            (env::CONTROL_NAME, CONTROL_NAME.into()),
            (env::MESH_CIDRS, MESH_CIDRS.into()),
            (env::CAPTURE, CaptureSettings::default().to_json()),
            (env::ACCESS_LOG, "all".into()),
            (env::LOG, "info,weir_proxy=debug".into()),
            (env::DRAIN_SECONDS, "10".into()),
            ("WEIR_TOKEN_FILE", path("token")),
            ("WEIR_ROOT_FILE", path("root-cert.pem")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        if let Some(ports) = self.spec.annotations["weir.dev/opaque-ports"].as_str() {
            all.push((env::OPAQUE_PORTS.into(), ports.into()));
        }
        all.extend(self.spec.env.iter().cloned());
        all
    }

    fn start_proxy(&self) {
        let mut command = self.netns.command("setpriv");
        command.args(["--reuid=1337", "--regid=1337", "--clear-groups", "--pdeathsig=KILL", "--no-new-privs"]);
        if let Some(limit) = self.spec.nofile {
            command.args(["prlimit", &format!("--nofile={limit}:{limit}")]);
        }
        command.arg(&self.programs[0]).arg("run").env_clear().envs(self.env());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        *self.proxy.lock().unwrap() = Some(Process::start(format!("proxy of {}", self.name), &mut command));
    }

    /// Runs `weir-proxy wait` beside the proxy: exit code and what it said.
    pub fn wait_command(&self, seconds: u32) -> (Option<i32>, String) {
        let mut command = self.netns.command("setpriv");
        command.args(["--reuid=1337", "--regid=1337", "--clear-groups"]).arg(&self.programs[0]);
        let output = command.args(["wait", "--timeout", &seconds.to_string()]).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Works with the proxy's process.
    pub fn proxy<T>(&self, work: impl FnOnce(&mut Process) -> T) -> T {
        work(self.proxy.lock().unwrap().as_mut().expect("a proxy"))
    }

    /// What the readiness port says.
    pub fn readiness(&self) -> Option<Response> {
        let stream = self.netns.connect(at(Ipv4Addr::LOCALHOST, ports::READINESS)).ok()?;
        Some(Client::new(stream).get("/healthz/ready"))
    }

    /// Waits until the proxy is ready; nothing to wait for where there is none of ours.
    pub fn wait_ready(&self) {
        if self.has_proxy() {
            until(&format!("{} is ready", self.name), || {
                assert!(self.proxy(Process::is_running), "the proxy of {} ended", self.name);
                self.readiness().filter(|response| response.status == 200)
            });
        }
    }

    /// Connects from inside the pod, as its application does.
    pub fn connect(&self, to: SocketAddr) -> Client {
        self.try_connect(to).unwrap_or_else(|error| panic!("{} connects to {to}: {error}", self.name))
    }

    /// The same, where it may fail.
    pub fn try_connect(&self, to: SocketAddr) -> std::io::Result<Client> {
        Ok(Client::new(self.netns.connect(to)?))
    }

    /// Asks the admin interface.
    pub fn admin(&self, path: &str) -> String {
        self.connect(at(Ipv4Addr::LOCALHOST, ports::ADMIN)).get(path).text()
    }

    /// Sum of a metric's series that have all these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.admin("/stats/prometheus"), name, labels)
    }

    /// Lines of the access log.
    pub fn access_log(&self) -> Vec<Value> {
        let lines = self.proxy(|proxy| proxy.out.all());
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of the access log.
    pub fn logged(&self, what: &str, mut matches: impl FnMut(&Value) -> bool) -> Value {
        until(&format!("{} logs {what}", self.name), || self.access_log().into_iter().find(|line| matches(line)))
    }

    /// Lines of the proxy's own log with these texts.
    pub fn log(&self, texts: &[&str]) -> Vec<String> {
        self.proxy(|proxy| proxy.err.with(texts))
    }

    /// Says in the cluster's state whether the pod is ready.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
        self.write();
    }

    /// Takes the pod out of the cluster's state; its processes stay.
    pub fn forget(&self) {
        fs::remove_file(self.config.join(format!("pod-{}.yaml", self.name))).unwrap();
    }

    fn write(&self) {
        let ports: Vec<Value> = self
            .spec
            .ports
            .iter()
            .map(|(name, port)| {
                if name.is_empty() {
                    json!({"containerPort": port})
                } else {
                    json!({"name": name, "containerPort": port})
                }
            })
            .collect();
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": NAMESPACE, "uid": format!("uid-{}", self.name),
                "labels": self.spec.labels, "annotations": self.spec.annotations},
            "spec": {"serviceAccountName": self.name, "containers": [{"name": "app", "image": "a", "ports": ports}]},
            "status": {"phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}, {"ip": self.ip6}],
                "conditions": [{"type": "Ready", "status": if self.ready.load(Relaxed) { "True" } else { "False" }}]},
        });
        if let Some(node) = &self.spec.node {
            object["spec"]["nodeName"] = json!(node);
        }
        if !self.spec.outside {
            object["spec"]["initContainers"] = json!([{"name": "weir-proxy", "image": "p", "restartPolicy": "Always"}]);
        }
        let temporary = self.config.join(format!(".pod-{}.new", self.name));
        fs::write(&temporary, object.to_string()).unwrap();
        fs::rename(temporary, self.config.join(format!("pod-{}.yaml", self.name))).unwrap();
    }
}

/// Sum of the series of `name` with all these labels, in Prometheus' text form.
pub fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label.as_str())))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |sum, value| sum + value)
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.spec.outside {
            eprintln!("[rules of {}]\n{}", self.name, World::rules(&self.programs[1], &self.netns));
            if let Ok(mut client) = self.try_connect(at(Ipv4Addr::LOCALHOST, ports::ADMIN)) {
                client.send(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok();
                if let Ok(response) = client.response() {
                    eprintln!("[configuration of {}]\n{}", self.name, response.text());
                }
            }
        }
    }
}
