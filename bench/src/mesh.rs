//! Weir as it is shipped: the real control plane with a folder of manifests, and real proxies that get everything from it.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use weir_mesh::{CaptureSettings, bootstrap::env, ports};
use weir_sandbox::api::tokens::{ISSUER, Subject, TokenIssuer};

use crate::{
    candidate::{
        Candidate, FRESH_PORT, GRPC_PORT, HTTP_PORT, Kind, MANY_ROUTES_PORT, ONE_ROUTE_PORT, ROUTES, SERVICE_PORT,
        TCP_PORT, get,
    },
    lab::{Netns, link},
    process::{Launch, Process, binary},
};

const NAMESPACE: &str = "bench";
const CONTROL_NAME: &str = "weir-control.weir-system.svc";
const CONTROL_ADMIN: u16 = 15014;
/// Long enough for a machine that is busy with something else.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The rule that requests are for: one of the middle.
pub const ASKED: usize = ROUTES / 2;
/// Most rules of an HTTPRoute.
const RULES: usize = 16;
/// How long the pods' tokens hold: longer than any run.
const TOKEN_SECONDS: u64 = 6 * 3600;

/// The control plane, in a namespace of its own that every proxy has a link to.
#[derive(Debug)]
pub struct Mesh {
    _control: Process,
    netns: Netns,
    issuer: Issuer,
    dir: PathBuf,
}

struct Issuer(TokenIssuer);

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuer")
    }
}

/// One side of a candidate.
struct Side<'a> {
    role: &'static str,
    netns: &'a Netns,
    ip: Ipv4Addr,
    /// Third byte of the link to the control plane, one for each proxy.
    link: u8,
}

impl Mesh {
    /// Starts the control plane with files under `dir`.
    ///
    /// # Errors
    /// Where it does not become healthy.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join("weir");
        for folder in ["config", "ca"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let issuer = TokenIssuer::new()?;
        fs::write(dir.join("token.pub"), issuer.public_pem())?;
        fs::write(
            dir.join("config/namespace.yaml"),
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels: {{weir.dev/inject: enabled}}\n"
            ),
        )?;
        let netns = Netns::new()?;
        let path = |name: &str| dir.join(name).display().to_string();
        let args = [
            ["--listen", &format!("0.0.0.0:{}", ports::CONTROL)],
            ["--admin", &format!("127.0.0.1:{CONTROL_ADMIN}")],
            ["--config-dir", &path("config")],
            ["--ca-dir", &path("ca")],
            ["--trust-domain", "cluster.local"],
            ["--token-key", &path("token.pub")],
            ["--token-issuer", ISSUER],
            ["--server-name", CONTROL_NAME],
        ];
        let mut control = Process::start(
            &netns,
            Launch {
                name: "weir-control".into(),
                program: &binary("weir-control")?,
                args: args.iter().flatten().map(|arg| (*arg).to_owned()).collect(),
                env: Vec::new(),
                user: None,
                dir: &dir,
            },
        )?;
        control.until(START_LIMIT, || get(&netns, CONTROL_ADMIN, "/healthz").is_ok())?;
        Ok(Self { _control: control, netns, issuer: Issuer(issuer), dir })
    }

    /// Process id of the control plane.
    pub fn pid(&self) -> u32 {
        self._control.pid()
    }

    /// Starts two proxies with `workers` workers each, and waits until requests go through both by mutual TLS.
    ///
    /// # Errors
    /// Where they do not become ready, or speak plaintext with each other.
    pub fn candidate(&self, index: u8, workers: u8) -> anyhow::Result<Candidate> {
        let mut candidate = Candidate::prepare(Kind::Weir(workers), index)?;
        let pair = &candidate.pair;
        // Links to the control plane have third bytes above 100 for clients and above 200 for servers.
        let sides = [
            Side { role: "client", netns: &pair.client, ip: pair.client_ip, link: 100 + index },
            Side { role: "server", netns: &pair.server, ip: pair.server_ip, link: 200 + index },
        ];
        let manifest = self.dir.join(format!("config/pair-{index}.yaml"));
        let hidden = manifest.with_file_name(format!(".pair-{index}.yaml"));
        fs::write(&hidden, manifests(index, pair.client_ip, pair.server_ip) + &routes(index))?;
        fs::rename(&hidden, &manifest)?;
        let mut proxies = Vec::new();
        for side in &sides {
            proxies.push(self.proxy(side, index, workers)?);
        }
        let wait = binary("weir-proxy")?;
        for (side, proxy) in sides.iter().zip(&mut proxies) {
            let mut waiting = side.netns.spawn(
                Command::new(&wait)
                    .args(["wait", "--timeout", &START_LIMIT.as_secs().to_string()])
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null()),
            )?;
            let ready = waiting.wait()?.success();
            proxy.alive()?;
            ensure!(ready, "{} is not ready:\n{}", proxy.name, proxy.log_end());
        }
        candidate.proxies = proxies;
        candidate.try_once().context("the first request through Weir")?;
        let metrics = get(&candidate.pair.server, ports::METRICS, "/stats/prometheus")?;
        let proven = metrics.lines().any(|line| {
            line.starts_with("istio_requests_total{")
                && line.contains("reporter=\"destination\"")
                && line.contains("connection_security_policy=\"mutual_tls\"")
        });
        ensure!(proven, "the server's proxy has seen no request by mutual TLS");
        Ok(candidate)
    }

    fn proxy(&self, side: &Side<'_>, index: u8, workers: u8) -> anyhow::Result<Process> {
        let Side { role, netns, ip, link: third } = *side;
        let control = Ipv4Addr::new(198, 18, third, 1);
        link((&self.netns, &format!("c{third}"), control), (netns, "ctl0", Ipv4Addr::new(198, 18, third, 2)))?;
        let pod = format!("{role}-{index}");
        let uid = format!("uid-{pod}");
        let dir = self.dir.join(&pod);
        fs::create_dir_all(&dir)?;
        let token = dir.join("token");
        let subject = Subject { namespace: NAMESPACE.into(), account: role.into(), pod: pod.clone(), uid: uid.clone() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        fs::write(&token, self.issuer.0.sign(&subject, "weir-control", TOKEN_SECONDS, now)?)?;
        Process::start(
            netns,
            Launch {
                name: format!("weir-proxy-{pod}"),
                program: &binary("weir-proxy")?,
                args: vec!["run".into()],
                env: vec![
                    (env::POD_NAME, pod),
                    (env::POD_NAMESPACE, NAMESPACE.into()),
                    (env::POD_UID, uid),
                    (env::POD_IPS, ip.to_string()),
                    (env::SERVICE_ACCOUNT, role.into()),
                    (env::TRUST_DOMAIN, "cluster.local".into()),
                    (env::CONTROL, format!("{control}:{}", ports::CONTROL)),
                    (env::CONTROL_NAME, CONTROL_NAME.into()),
                    (env::MESH_CIDRS, "198.18.0.0/15".into()),
                    (env::CAPTURE, CaptureSettings::default().to_json()),
                    (env::WORKERS, workers.to_string()),
                    ("WEIR_TOKEN_FILE", token.display().to_string()),
                    ("WEIR_ROOT_FILE", self.dir.join("ca/root-cert.pem").display().to_string()),
                ],
                user: Some(ports::PROXY_UID),
                dir: &dir,
            },
        )
    }
}

/// A Service with one endpoint, and the pods of both sides as the API server would hold them.
fn manifests(index: u8, client: Ipv4Addr, server: Ipv4Addr) -> String {
    let service_ip = Kind::service_ip(index);
    let pod = |role: &str, ip: Ipv4Addr, app_ports: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {role}-{index}, namespace: {NAMESPACE}, uid: uid-{role}-{index}, labels: {{app: {role}, pair: p{index}}}}}
spec:
  serviceAccountName: {role}
  initContainers: [{{name: weir-proxy, image: weir-proxy, restartPolicy: Always}}]
  containers: [{{name: app, image: app{app_ports}}}]
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}
---
"
        )
    };
    // Names and numbers of a Service's port and of the application's.
    let ports = [
        ("http", SERVICE_PORT, HTTP_PORT),
        ("http-one", ONE_ROUTE_PORT, HTTP_PORT),
        ("http-many", MANY_ROUTES_PORT, HTTP_PORT),
        ("tcp", TCP_PORT, TCP_PORT),
        ("grpc", GRPC_PORT, GRPC_PORT),
        ("tcp-fresh", FRESH_PORT, FRESH_PORT),
    ];
    let list = |entry: &dyn Fn(&str, u16, u16) -> String| {
        let all: Vec<String> = ports.iter().map(|(name, port, target)| entry(name, *port, *target)).collect();
        format!("[{}]", all.join(", "))
    };
    let app_ports = list(&|name, _, target| format!("{{name: {name}, containerPort: {target}}}"));
    let app_ports = format!(", ports: {app_ports}");
    let service_ports = list(&|name, port, _| format!("{{name: {name}, port: {port}, targetPort: {name}}}"));
    let slice_ports = list(&|name, _, target| format!("{{name: {name}, port: {target}}}"));
    pod("client", client, "")
        + &pod("server", server, &app_ports)
        + &format!(
            "apiVersion: v1
kind: Service
metadata: {{name: server-{index}, namespace: {NAMESPACE}}}
spec:
  clusterIP: {service_ip}
  clusterIPs: [{service_ip}]
  selector: {{app: server, pair: p{index}}}
  ports: {service_ports}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: server-{index}-a, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: server-{index}}}}}
addressType: IPv4
ports: {slice_ports}
endpoints:
- {{addresses: [{server}], conditions: {{ready: true, serving: true}}, targetRef: {{kind: Pod, name: server-{index}, namespace: {NAMESPACE}}}}}
"
        )
}

/// The path that a rule is for.
pub fn path_of(rule: usize) -> String {
    format!("/shop/department-{rule}/items")
}

/// One rule for one port of the Service, and very many for another. Requests that match none are answered with 404.
fn routes(index: u8) -> String {
    let rules: Vec<usize> = (0..ROUTES).collect();
    let parts =
        [(ONE_ROUTE_PORT, &[ASKED][..])].into_iter().chain(rules.chunks(RULES).map(|part| (MANY_ROUTES_PORT, part)));
    parts
        .enumerate()
        .map(|(number, (port, rules))| {
            let rule = |rule: &usize| {
                format!(
                    "  - {{matches: [{{path: {{type: PathPrefix, value: {}}}}}], backendRefs: [{{name: server-{index}, port: {SERVICE_PORT}}}]}}\n",
                    path_of(*rule)
                )
            };
            let rules: String = rules.iter().map(rule).collect();
            format!(
                "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: server-{index}-{number}, namespace: {NAMESPACE}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: server-{index}, port: {port}}}]
  rules:
{rules}"
            )
        })
        .collect()
}
