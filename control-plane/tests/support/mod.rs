//! The real binary with a folder, a CA and a token issuer of its own.

pub mod cluster;

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc as sync_mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value as Json, json};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::transport::Channel;
use weir_xds::{Client, ConnectionState, Handler, Kind, Rejection, Resource, Subscriptions, client::Timing, endpoint};

pub const ISSUER: &str = "https://issuer.test";
pub const SERVER_NAME: &str = "control.test";

/// Everything that outlives one run of the binary.
pub struct Place {
    pub dir: PathBuf,
    pub signer: rcgen::KeyPair,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-control-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("config")).unwrap();
        std::fs::create_dir_all(dir.join("ca")).unwrap();
        let signer = rcgen::KeyPair::generate().unwrap();
        std::fs::write(dir.join("token.pub"), signer.public_key_pem()).unwrap();
        Self { dir, signer }
    }

    /// As the sandbox writes: a temporary file, then its name.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.dir.join("config").join(format!(".{name}.new"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.dir.join("config").join(name)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.join("config").join(name)).unwrap();
    }

    pub fn root(&self) -> String {
        std::fs::read_to_string(self.dir.join("ca/root-cert.pem")).unwrap()
    }

    pub fn claims(&self, pod: &str, uid: &str, account: &str) -> Json {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({
            "aud": ["weir-control"], "iss": ISSUER, "exp": now + 3600, "iat": now,
            "sub": format!("system:serviceaccount:shop:{account}"),
            "kubernetes.io": {"namespace": "shop", "pod": {"name": pod, "uid": uid},
                "serviceaccount": {"name": account, "uid": "sa"}},
        })
    }

    pub fn sign(&self, claims: &Json) -> String {
        let key = EncodingKey::from_ec_pem(self.signer.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
    }

    pub fn token(&self, pod: &str, uid: &str, account: &str) -> String {
        self.sign(&self.claims(pod, uid, account))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// The binary, running. Killed when it is dropped.
pub struct Control {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub health: Option<SocketAddr>,
    pub log: Arc<Mutex<Vec<String>>>,
}

impl Control {
    pub fn start(place: &Place) -> Self {
        Self::start_at(place, "127.0.0.1:0")
    }

    pub fn start_at(place: &Place, listen: &str) -> Self {
        let path = |name: &str| place.dir.join(name).display().to_string();
        Self::spawn(
            Command::new(env!("CARGO_BIN_EXE_weir-control"))
                .args(["--listen", listen, "--admin", "127.0.0.1:0"])
                .args(["--config-dir", &path("config"), "--ca-dir", &path("ca"), "--trust-domain", "cluster.local"])
                .args(["--token-key", &path("token.pub"), "--token-issuer", ISSUER, "--server-name", SERVER_NAME])
                .args(["--log", "info,weir_control=debug"]),
        )
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        let (sender, receiver) = sync_mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str::<Json>(&line)
                    && event["message"] == "serving"
                {
                    let parse = |key: &str| event[key].as_str().unwrap().parse::<SocketAddr>().unwrap();
                    let health = event["health"].as_str().map(|address| address.parse::<SocketAddr>().unwrap());
                    sender.send((parse("address"), parse("admin"), health)).ok();
                }
                lines.lock().unwrap().push(line);
            }
        });
        let addresses = receiver.recv_timeout(Duration::from_secs(20));
        let (address, admin, health) = match addresses {
            Ok(addresses) => addresses,
            Err(_) => {
                child.kill().ok();
                child.wait().ok();
                panic!("not serving: {:#?}", log.lock().unwrap());
            }
        };
        Self { child, address, admin, health, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) -> Duration {
        let start = Instant::now();
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}: {:#?}", self.log.lock().unwrap());
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(15), "does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    pub async fn get(&self, path: &str) -> String {
        Self::page(self.admin, path).await
    }

    pub async fn page(address: SocketAddr, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("no {name}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub async fn channel(&self, place: &Place) -> Channel {
        endpoint(&self.address.to_string(), SERVER_NAME, &place.root()).unwrap().connect().await.unwrap()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[derive(Debug)]
pub enum Seen {
    Added(Kind, Resource),
    Removed(Kind, String),
    Connected,
    Lost(String),
}

pub struct Recorder(pub mpsc::UnboundedSender<(Instant, Seen)>);

impl Handler for Recorder {
    fn apply(&mut self, kind: Kind, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection> {
        for resource in added {
            self.0.send((Instant::now(), Seen::Added(kind, resource))).ok();
        }
        for name in removed {
            self.0.send((Instant::now(), Seen::Removed(kind, name))).ok();
        }
        Vec::new()
    }

    fn connection(&mut self, state: ConnectionState) {
        let seen = match state {
            ConnectionState::Connected => Seen::Connected,
            ConnectionState::Disconnected { reason, .. } => Seen::Lost(reason),
        };
        self.0.send((Instant::now(), seen)).ok();
    }
}

/// A proxy, as far as the control plane sees it.
pub struct Proxy {
    pub names: Subscriptions,
    pub seen: mpsc::UnboundedReceiver<(Instant, Seen)>,
    /// Versions that it has.
    pub has: HashMap<(Kind, String), String>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub fn start(address: &Arc<Mutex<SocketAddr>>, root: &str, node: &str, token: &str) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let (address, root, token) = (address.clone(), root.to_owned(), token.to_owned());
        let endpoints = move || endpoint(&address.lock().unwrap().to_string(), SERVER_NAME, &root);
        let tokens = move || -> Result<String, std::io::Error> { Ok(token.clone()) };
        let timing = Timing { backoff_max: Duration::from_millis(200), ..Timing::default() };
        let client = Client::new(endpoints, node, tokens, Recorder(sender)).timing(timing);
        let names = client.subscriptions();
        Self { names, seen, has: HashMap::new(), task: tokio::spawn(client.run()) }
    }

    pub async fn next(&mut self) -> Seen {
        let (_, seen) = tokio::time::timeout(Duration::from_secs(20), self.seen.recv())
            .await
            .expect("nothing within 20 s")
            .unwrap();
        match &seen {
            Seen::Added(kind, resource) => {
                self.has.insert((*kind, resource.name.clone()), resource.version.clone());
            }
            Seen::Removed(kind, name) => {
                self.has.remove(&(*kind, name.clone()));
            }
            Seen::Connected | Seen::Lost(_) => {}
        }
        seen
    }

    pub async fn connected(&mut self) {
        loop {
            match self.next().await {
                Seen::Connected => return,
                Seen::Lost(_) => {}
                other => panic!("expected a connection, got {other:?}"),
            }
        }
    }

    pub async fn lost(&mut self) -> String {
        match self.next().await {
            Seen::Lost(reason) => reason,
            other => panic!("expected the loss of the connection, got {other:?}"),
        }
    }

    pub async fn added(&mut self) -> Resource {
        match self.next().await {
            Seen::Added(_, resource) => resource,
            other => panic!("expected a resource, got {other:?}"),
        }
    }

    pub async fn removed(&mut self) -> String {
        match self.next().await {
            Seen::Removed(_, name) => name,
            other => panic!("expected a removal, got {other:?}"),
        }
    }

    /// True where nothing arrives for a while.
    pub async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.seen.recv()).await.is_err()
    }
}

pub fn at(control: &Control) -> Arc<Mutex<SocketAddr>> {
    Arc::new(Mutex::new(control.address))
}

pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
