//! A node: containerd, kubelet and kube-proxy in a place of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    address::{DNS, Host, PODS_V4, PODS_V6},
    cgroups,
    images::PAUSE,
    layout::Layout,
    mounts,
    network::Switch,
    place::Place,
    service::Service,
};

/// How long containerd may take until it answers.
const CONTAINERD: Duration = Duration::from_secs(30);

/// A node of the cluster.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: Arc<Place>,
    pub(crate) containerd: Service,
    pub(crate) kubelet: Service,
    pub(crate) kube_proxy: Service,
}

impl Node {
    /// Makes its namespaces, files and control group. Nothing runs yet.
    pub(crate) fn new(layout: &Layout, switch: &Switch, host: Host, tools: &Path, dual_stack: bool) -> Result<Self> {
        let files = layout.private().join(format!("node{}", host.0));
        fs::create_dir(&files)?;
        let place = Arc::new(Place::new(|| {
            mounts::node(&files)?;
            fs::write("/etc/cni/net.d/10-ptp.conflist", network_plugins(host, dual_stack)).map_err(Into::into)
        })?);
        switch.attach(host, &place)?;
        let group = format!("{}-node{}", layout.id(), host.0);
        cgroups::create(&group)?;

        let config = |name: &str, text: String| -> Result<PathBuf> {
            let path = files.join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        // Pods that ask for the node's own DNS (CoreDNS does) find no one: nothing here leads out of the cluster.
        let resolv = config("resolv.conf", "# no server: a cluster of tests asks nobody outside\n".to_owned())?;
        let containerd = config("containerd.toml", containerd_config())?;
        let kubelet = config("kubelet.yaml", kubelet_config(layout, &group, &resolv))?;
        let kube_proxy = config("kube-proxy.yaml", kube_proxy_config(layout, host, dual_stack))?;

        let address = if dual_stack { format!("{},{}", host.v4(), host.v6()) } else { host.v4() };
        let name = format!("node{}", host.0);
        let zone = if host.0 % 2 == 1 { "zone-a" } else { "zone-b" };
        let kubelet = format!(
            "--config={} --kubeconfig={}/{name}.conf --hostname-override={name} --node-ip={address}
             --node-labels=topology.kubernetes.io/region=region-a,topology.kubernetes.io/zone={zone}",
            kubelet.display(),
            layout.pki().display(),
        );
        let service = |program: &str, path: PathBuf, arguments: &str| {
            Service::new(&format!("{name}/{program}"), &place, path, arguments, &layout.logs())
        };
        Ok(Self {
            containerd: service("containerd", "containerd".into(), &format!("--config {}", containerd.display())),
            kubelet: service("kubelet", tools.join("kubelet"), &kubelet),
            kube_proxy: service("kube-proxy", tools.join("kube-proxy"), &format!("--config={}", kube_proxy.display())),
            place,
        })
    }

    /// Starts containerd, waits for it, and gives it these images.
    pub(crate) fn start_containerd(&self, images: &[PathBuf]) -> Result<()> {
        self.containerd.start()?;
        let end = Instant::now() + CONTAINERD;
        while self.ctr(&["version"]).is_err() {
            if let Some(trouble) = self.containerd.trouble() {
                bail!(trouble);
            }
            if Instant::now() > end {
                bail!("containerd does not answer within {CONTAINERD:?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        for image in images {
            self.ctr(&["--namespace", "k8s.io", "images", "import", &image.to_string_lossy()])?;
        }
        Ok(())
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let output = self.place.run(|| Ok(Command::new("ctr").args(arguments).output()?)).context("ctr")?;
        if !output.status.success() {
            bail!("ctr {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// `ptp` and not `bridge`: replies of translated connections between pods of one node must pass the node's own stack.
fn network_plugins(host: Host, dual_stack: bool) -> String {
    let mut ranges = vec![serde_json::json!([{"subnet": host.pods_v4()}])];
    let mut routes = vec![serde_json::json!({"dst": "0.0.0.0/0"})];
    if dual_stack {
        ranges.push(serde_json::json!([{"subnet": host.pods_v6()}]));
        routes.push(serde_json::json!({"dst": "::/0"}));
    }
    let plugins = serde_json::json!({"cniVersion": "1.0.0", "name": "cluster", "plugins": [
        {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    format!("{plugins:#}\n")
}

/// A lower `oom_score_adj` and AppArmor profiles are more than a container that runs the tests may be allowed to set.
fn containerd_config() -> String {
    format!(
        "version = 2
[plugins.\"io.containerd.grpc.v1.cri\"]
  sandbox_image = \"{PAUSE}\"
  disable_apparmor = true
  restrict_oom_score_adj = true
"
    )
}

fn kubelet_config(layout: &Layout, group: &str, resolv: &Path) -> String {
    // Whatever looks at disks is off: a node's are those of the machine, and shared.
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.pki().join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{group}"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": resolv,
        "volumePluginDir": "/var/lib/kubelet/plugins-exec",
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "1Mi"},
        "nodeStatusUpdateFrequency": "4s",
        "serializeImagePulls": false,
        "oomScoreAdj": 0,
    })
    .to_string()
}

fn kube_proxy_config(layout: &Layout, host: Host, dual_stack: bool) -> String {
    let pods = if dual_stack { format!("{PODS_V4},{PODS_V6}") } else { PODS_V4.to_owned() };
    // Zero leaves the machine's limits of connection tracking as they are: they are not a namespace's own.
    serde_json::json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": layout.pki().join("proxy.conf")},
        "mode": "iptables",
        "clusterCIDR": pods,
        "hostnameOverride": format!("node{}", host.0),
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
    .to_string()
}
