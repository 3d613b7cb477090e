//! The CNI chain as a container runtime runs it (libcni): each plugin gets the result of the one before it, results are cached
//! for `DEL`, and pod annotations are passed by capability.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::layout::{Layout, POD_CIDR, POD_CIDR_V6, write_atomic};

/// Version of the CNI specification that the chain speaks.
const VERSION: &str = "1.0.0";
/// Name of the network; addresses are leased under it.
const NETWORK: &str = "weir-sandbox";
/// Name of the interface inside the pod.
const INTERFACE: &str = "eth0";
/// Folders where Debian and others put the standard plugins.
pub const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
/// Standard plugins that the sandbox needs.
pub const NEEDED: [&str; 2] = ["ptp", "host-local"];

/// Why a pod got no network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A plugin said no.
    #[error("CNI plugin {plugin} refused {command}: {message}")]
    Refused {
        /// Name of the plugin.
        plugin: String,
        /// `ADD` or `DEL`.
        command: &'static str,
        /// Its message and details.
        message: String,
    },
    /// A plugin could not be run, or its answer could not be read.
    #[error("CNI plugin {plugin}: {source}")]
    Io {
        /// Name of the plugin.
        plugin: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The chain gave no usable result.
    #[error("the CNI chain gave no {0}")]
    Incomplete(&'static str),
}

/// Which pod a network is for.
#[derive(Debug, Clone)]
pub struct PodNetwork<'a> {
    /// Unique id, the container id of the CNI calls.
    pub uid: &'a str,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub name: &'a str,
    /// Network namespace.
    pub netns: &'a Path,
    /// The pod's annotations.
    pub annotations: &'a Map<String, Value>,
}

/// What the chain answered.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its address of IPv6, where there is IPv6.
    pub address_v6: Option<Ipv6Addr>,
    /// Node side of the pod's link.
    pub host_interface: String,
    /// What each plugin took and said.
    pub calls: Vec<PluginCall>,
}

/// One call of one plugin.
#[derive(Debug, Clone)]
pub struct PluginCall {
    /// Name of the plugin.
    pub plugin: String,
    /// From start to end, with the start of its process.
    pub elapsed: Duration,
    /// What it said on standard error.
    pub stderr: String,
}

/// The chain of one sandbox.
#[derive(Debug, Clone)]
pub struct Chain {
    folders: Vec<PathBuf>,
    state: PathBuf,
    /// Whether `weir-cni` is part of the chain.
    mesh: bool,
    ipv6: bool,
}

impl Chain {
    /// The chain with the plugins found in `bin_dir` and the system's folders.
    pub fn new(layout: &Layout, bin_dir: &Path, mesh: bool, ipv6: bool) -> Self {
        let mut folders = vec![bin_dir.to_path_buf()];
        folders.extend(PLUGIN_FOLDERS.iter().map(PathBuf::from));
        Self { folders, state: layout.cni(), mesh, ipv6 }
    }

    fn plugins(&self) -> Vec<Value> {
        let mut ranges = vec![json!([{"subnet": POD_CIDR}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if self.ipv6 {
            ranges.push(json!([{"subnet": POD_CIDR_V6}]));
            routes.push(json!({"dst": "::/0"}));
        }
        let ptp = json!({
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "dataDir": self.state.join("leases"),
                "routes": routes,
            },
        });
        let mut plugins = vec![ptp];
        if self.mesh {
            plugins.push(
                json!({"type": "weir-cni", "capabilities": {weir_mesh::names::CNI_ANNOTATIONS_CAPABILITY: true}}),
            );
        }
        plugins
    }

    fn cache(&self, uid: &str) -> PathBuf {
        self.state.join(format!("result-{uid}.json"))
    }

    /// Attaches a pod: `ADD` of every plugin, in order. A chain that fails half-way is taken back.
    ///
    /// # Errors
    /// [`CniError`] with the plugin's own words.
    pub fn add(&self, pod: &PodNetwork<'_>) -> Result<Attached, CniError> {
        let mut result = None;
        let mut calls = Vec::new();
        for plugin in self.plugins() {
            match self.call("ADD", &plugin, pod, result.as_ref()) {
                Ok((answer, call)) => {
                    calls.push(call);
                    result = answer;
                }
                Err(error) => {
                    let _ = self.del(pod);
                    return Err(error);
                }
            }
        }
        let result = result.ok_or(CniError::Incomplete("result"))?;
        let cached = json!({"result": result, "annotations": pod.annotations});
        write_atomic(&self.cache(pod.uid), cached.to_string().as_bytes())
            .map_err(|source| CniError::Io { plugin: "cache".into(), source })?;
        let (address, address_v6) = addresses(&result);
        let address = address.ok_or(CniError::Incomplete("IPv4 address"))?;
        if self.ipv6 && address_v6.is_none() {
            return Err(CniError::Incomplete("IPv6 address"));
        }
        let host_interface = result
            .get("interfaces")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|interface| interface.get("sandbox").and_then(Value::as_str).unwrap_or_default().is_empty())
            .and_then(|interface| interface.get("name")?.as_str())
            .ok_or(CniError::Incomplete("interface on the node"))?
            .to_owned();
        Ok(Attached { address, address_v6, host_interface, calls })
    }

    /// Detaches a pod: `DEL` of every plugin, last first, with the cached result. Every plugin is called, whatever one says.
    ///
    /// # Errors
    /// The first plugin's error.
    pub fn del(&self, pod: &PodNetwork<'_>) -> Result<(), CniError> {
        let cached: Option<Value> =
            fs::read(self.cache(pod.uid)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let result = cached.as_ref().and_then(|cached| cached.get("result"));
        let mut first = Ok(());
        for plugin in self.plugins().iter().rev() {
            if let Err(error) = self.call("DEL", plugin, pod, result)
                && first.is_ok()
            {
                first = Err(error);
            }
        }
        let _ = fs::remove_file(self.cache(pod.uid));
        first
    }

    fn call(
        &self,
        command: &'static str,
        plugin: &Value,
        pod: &PodNetwork<'_>,
        previous: Option<&Value>,
    ) -> Result<(Option<Value>, PluginCall), CniError> {
        let name = plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let failed = |source| CniError::Io { plugin: name.clone(), source };
        let mut config = plugin.as_object().cloned().unwrap_or_default();
        config.insert("cniVersion".into(), VERSION.into());
        config.insert("name".into(), NETWORK.into());
        let wants = config.remove("capabilities").and_then(|capabilities| {
            capabilities.get(weir_mesh::names::CNI_ANNOTATIONS_CAPABILITY).and_then(Value::as_bool)
        });
        if wants == Some(true) {
            config
                .insert("runtimeConfig".into(), json!({weir_mesh::names::CNI_ANNOTATIONS_CAPABILITY: pod.annotations}));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        let binary =
            self.folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file()).ok_or_else(|| {
                let folders: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
                failed(io::Error::new(io::ErrorKind::NotFound, format!("not found in {}", folders.join(", "))))
            })?;
        let path = self.folders.iter().map(|folder| folder.as_os_str()).collect::<Vec<_>>().join(":".as_ref());
        let started = Instant::now();
        let mut child = Command::new(binary)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod.uid)
            .env("CNI_NETNS", pod.netns)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", path)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                    pod.namespace, pod.name, pod.uid, pod.uid
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            use io::Write;
            // A plugin that ends without reading says why in its answer.
            let _ = stdin.write_all(Value::Object(config).to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        let call = PluginCall {
            plugin: name.clone(),
            elapsed: started.elapsed(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        };
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            return Ok((answer, call));
        }
        let said = |key: &str| answer.as_ref()?.get(key)?.as_str().map(str::to_owned);
        let message = match (said("msg"), said("details")) {
            (Some(message), Some(details)) if !details.is_empty() => format!("{message}: {details}"),
            (Some(message), _) => message,
            _ => format!("{} {}", output.status, call.stderr),
        };
        Err(CniError::Refused { plugin: name, command, message })
    }
}

/// The first address of each family in a result.
fn addresses(result: &Value) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten() {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        match text.split('/').next().unwrap_or_default().parse() {
            Ok(IpAddr::V4(address)) => v4 = v4.or(Some(address)),
            Ok(IpAddr::V6(address)) => v6 = v6.or(Some(address)),
            Err(_) => {}
        }
    }
    (v4, v6)
}
