//! A real etcd and a real API server on loopback, without nodes: what is stored, watched, reviewed and refused is Kubernetes' own.

use std::{
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config, Error,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value as Json, json};

use super::Control;

const ADMIN_TOKEN: &str = "admin-of-the-tests";
pub const SYSTEM: &str = "weir-system";
/// Where `tools/cluster-tools` describes what it builds; the folder of the results is named by its hash.
const GO_MODULES: &str = "../tests/cluster/go";

/// Programs of the tests' cluster, or why there are none.
pub fn tools() -> Result<PathBuf, String> {
    let folder = match std::env::var_os("WEIR_CLUSTER_TOOLS") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let hash = Command::new("sh")
                .args([
                    "-c",
                    "cd \"$1\" 2>/dev/null && sha256sum */go.mod */go.sum | sha256sum | cut -c1-16",
                    "sh",
                    GO_MODULES,
                ])
                .output()
                .map_err(|error| format!("sh: {error}"))?;
            let hash = String::from_utf8_lossy(&hash.stdout).trim().to_owned();
            let root = std::env::var_os("CACHE").map(PathBuf::from).unwrap_or_else(|| {
                let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
                if is_root() { "/var/cache/weir".into() } else { home.join(".cache/weir") }
            });
            if hash.is_empty() {
                return Err("tests/cluster/go is not there".into());
            }
            root.join("tools").join(hash)
        }
    };
    if !folder.join("kube-apiserver").exists() {
        return Err(format!("no kube-apiserver in {}: run tools/cluster-tools", folder.display()));
    }
    match Command::new(etcd(&folder)).arg("--version").stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(folder),
        _ => Err("no etcd: install the package etcd-server".into()),
    }
}

/// The one that was built with the others, or the system's.
fn etcd(tools: &Path) -> PathBuf {
    Some(tools.join("etcd")).filter(|etcd| etcd.exists()).unwrap_or_else(|| "etcd".into())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.starts_with(b"0\n"))
}

/// A cluster, or `None` where none can be: that is said, and is an error in CI.
pub async fn start(name: &str) -> Option<Cluster> {
    match tools() {
        Ok(tools) => Some(Cluster::start(name, &tools).await),
        Err(reason) => {
            assert!(std::env::var("CI").is_err(), "CI must run this: {reason}");
            eprintln!("SKIPPED {name}: {reason}");
            None
        }
    }
}

pub struct Process(Child);

impl Process {
    fn spawn(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        Self(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub struct Cluster {
    pub dir: PathBuf,
    tools: PathBuf,
    etcd_port: u16,
    pub client: Client,
    pub server: Option<Process>,
    pub port: u16,
    _etcd: Process,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.join("apiserver.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            writeln!(std::io::stderr(), "API server's last lines, newest first: {lines:#?}").ok();
        }
        self.server = None;
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    async fn start(name: &str, tools: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("weir-control-{}-{number}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let etcd = Process::spawn(
            Command::new(etcd(tools)).arg("--data-dir").arg(dir.join("etcd")).args([
                "--unsafe-no-fsync",
                &format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
                &format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
                &format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
            ]),
            &dir.join("etcd.log"),
        );
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(dir.join("ca.crt"), params.self_signed(&authority).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join("tls.crt"), leaf.pem()).unwrap();
        std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        let signer = rcgen::KeyPair::generate().unwrap();
        std::fs::write(dir.join("sa.key"), signer.serialize_pem()).unwrap();
        std::fs::write(dir.join("sa.pub"), signer.public_key_pem()).unwrap();
        std::fs::write(dir.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,system:masters\n")).unwrap();
        let server = Some(api_server(&dir, tools, etcd_port, port));
        let client = client(&kubeconfig(&dir, port, "admin", ADMIN_TOKEN)).await;
        let mut cluster = Self { dir, tools: tools.to_owned(), etcd_port, client, server, port, _etcd: etcd };
        cluster.ready().await;
        cluster.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})).await;
        cluster.account(SYSTEM, "weir-control").await;
        cluster.apply_file(include_str!("../data/rbac.yaml")).await;
        cluster
    }

    pub async fn ready(&mut self) {
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            let ended = self.server.as_mut().and_then(|server| server.0.try_wait().unwrap());
            assert!(ended.is_none(), "the API server ended: {ended:?}");
            match self.client.request_text(request).await {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < end, "the API server is not ready: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops the API server; watches break.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    pub async fn start_server(&mut self) {
        self.server = Some(api_server(&self.dir, &self.tools, self.etcd_port, self.port));
        self.ready().await;
    }

    /// A second API server on the same etcd, with a client for it.
    pub async fn another_server(&self) -> (Process, Client) {
        let port = free_port();
        let server = api_server(&self.dir, &self.tools, self.etcd_port, port);
        let client = client(&kubeconfig(&self.dir, port, "another", ADMIN_TOKEN)).await;
        super::until("the second API server is ready", async || {
            client.request_text(http::Request::get("/readyz").body(Vec::new()).unwrap()).await.is_ok()
        })
        .await;
        (server, client)
    }

    pub fn api(&self, api_version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        api(&self.client, api_version, kind, namespace)
    }

    pub async fn apply(&self, object: Json) -> DynamicObject {
        apply(&self.client, object).await
    }

    pub async fn apply_file(&self, text: &str) {
        for document in text.split("\n---\n") {
            self.apply(serde_saphyr::from_str(document).unwrap()).await;
        }
    }

    pub async fn status(&self, api_version: &str, kind: &str, namespace: &str, name: &str, status: Json) {
        let parameters = PatchParams::default();
        let api = self.api(api_version, kind, Some(namespace));
        api.patch_status(name, &parameters, &Patch::Merge(json!({"status": status}))).await.unwrap();
    }

    pub async fn get(&self, api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Option<Json> {
        let object = self.api(api_version, kind, namespace).get_opt(name).await.unwrap();
        object.map(|object| serde_json::to_value(object).unwrap())
    }

    pub async fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) {
        let parameters = DeleteParams::default().grace_period(0);
        self.api(api_version, kind, Some(namespace)).delete(name, &parameters).await.unwrap();
    }

    pub async fn account(&self, namespace: &str, name: &str) {
        self.apply(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}),
        )
        .await;
    }

    /// A pod with our proxy, running and ready at an address.
    pub async fn pod(&self, namespace: &str, name: &str, account: &str, address: &str) {
        self.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": account}},
            "spec": {
                "serviceAccountName": account, "nodeName": "node-1", "automountServiceAccountToken": false,
                "initContainers": [{"name": "weir-proxy", "image": "proxy", "restartPolicy": "Always"}],
                "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
            },
        }))
        .await;
        self.status(
            "v1",
            "Pod",
            namespace,
            name,
            json!({
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }),
        )
        .await;
    }

    /// A token as the kubelet gets it for a pod; without a pod, one of the account alone.
    pub async fn token(&self, namespace: &str, account: &str, pod: Option<&str>, audience: &str) -> String {
        let mut spec = json!({"audiences": [audience], "expirationSeconds": 3600});
        if let Some(pod) = pod {
            spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": pod});
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request =
            http::Request::post(path).header("content-type", "application/json").body(body.to_string().into_bytes());
        let answer: Json = self.client.request(request.unwrap()).await.unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// The command of a replica of the control plane, with the rights of its own service account.
    pub async fn control(&self, replica: &str) -> Command {
        let token = self.token(SYSTEM, "weir-control", None, "https://kubernetes.test").await;
        let file = kubeconfig(&self.dir, self.port, replica, &token);
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-control"));
        command
            .args(["--source", "kubernetes", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--health", "127.0.0.1:0", "--server-name", super::SERVER_NAME, "--replica", replica])
            .args(["--log", "info,weir_control=debug", "--kubeconfig"])
            .arg(file);
        command
    }

    /// The roots that are in force.
    pub async fn roots(&self) -> String {
        let secret = self.get("v1", "Secret", Some(SYSTEM), "weir-ca").await.unwrap();
        text(&secret["data"]["ca-cert.pem"])
    }
}

/// Several replicas, started at the same moment.
pub fn together(commands: Vec<Command>) -> Vec<Control> {
    let barrier = std::sync::Barrier::new(commands.len());
    std::thread::scope(|scope| {
        let starts: Vec<_> = commands
            .into_iter()
            .map(|mut command| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    Control::spawn(&mut command)
                })
            })
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    })
}

pub fn text(data: &Json) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    String::from_utf8(STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap()
}

fn api(client: &Client, api_version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Creates an object, or merges into the one that is there.
pub async fn apply(client: &Client, object: Json) -> DynamicObject {
    let field = |key: &str| object[key].as_str().unwrap().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let api = api(client, &field("apiVersion"), &field("kind"), object["metadata"]["namespace"].as_str());
    let typed: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    match api.create(&PostParams::default(), &typed).await {
        Err(Error::Api(status)) if status.code == 409 => {
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await.unwrap()
        }
        other => other.unwrap(),
    }
}

fn kubeconfig(dir: &Path, port: u16, user: &str, token: &str) -> PathBuf {
    let file = dir.join(format!("{user}.kubeconfig"));
    let content = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": dir.join("ca.crt")}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&file, content.to_string()).unwrap();
    file
}

async fn client(kubeconfig: &Path) -> Client {
    let read = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn api_server(dir: &Path, tools: &Path, etcd_port: u16, port: u16) -> Process {
    let file = |name: &str| dir.join(name).display().to_string();
    Process::spawn(
        Command::new(tools.join("kube-apiserver")).args([
            &format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
            "--bind-address=127.0.0.1",
            "--advertise-address=198.18.0.1",
            "--endpoint-reconciler-type=none",
            &format!("--secure-port={port}"),
            &format!("--cert-dir={}", file("certs")),
            &format!("--tls-cert-file={}", file("tls.crt")),
            &format!("--tls-private-key-file={}", file("tls.key")),
            &format!("--token-auth-file={}", file("tokens.csv")),
            &format!("--service-account-key-file={}", file("sa.pub")),
            &format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-account-issuer=https://kubernetes.test",
            "--service-cluster-ip-range=198.19.0.0/16",
            "--authorization-mode=RBAC",
            // Without controllers nobody makes the accounts' defaults.
            "--disable-admission-plugins=ServiceAccount",
            "--shutdown-delay-duration=0",
        ]),
        &dir.join("apiserver.log"),
    )
}
