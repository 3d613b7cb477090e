//! What must be true before a cluster counts as ready, asked of its API server.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, ServiceAccount},
};
use kube::{Api, Client, Config, api::ListParams, config::Kubeconfig};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::address::DNS;

/// The longest that any step may take on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(120);
const DNS_MANIFEST: &str = include_str!("../manifests/coredns.yaml");

/// A client with patience.
pub(crate) struct Watch {
    client: Client,
    kubeconfig: std::path::PathBuf,
}

impl Watch {
    pub(crate) async fn new(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { client: client(kubeconfig).await?, kubeconfig: kubeconfig.to_owned() })
    }

    /// Until it answers, with its first objects made.
    pub(crate) async fn api_server(&self) -> Result<()> {
        until(async || {
            let request = http_get("/readyz")?;
            self.client.request_text(request).await?;
            Ok(())
        })
        .await
    }

    /// Until all nodes are ready, and pods can be made.
    pub(crate) async fn nodes(&self, count: usize) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        until(async || {
            let listed = nodes.list(&ListParams::default()).await?;
            let ready = listed.items.iter().filter(|node| is_ready(node)).count();
            ensure!(ready == count, "{ready} of {count} are ready");
            accounts.get("default").await.context("no pod can be made before its service account is")?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn dns(&self) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "kube-system");
        until(async || {
            let status = deployments.get_status("coredns").await?.status.unwrap_or_default();
            let (available, wanted) = (status.available_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
            ensure!(wanted > 0 && available == wanted, "{available} of {wanted} pods of CoreDNS are available");
            Ok(())
        })
        .await
    }

    pub(crate) async fn apply_dns(&self, tools: &Path) -> Result<()> {
        let mut child = Command::new(tools.join("kubectl"))
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["apply", "--validate=false", "--filename=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        stdin.write_all(DNS_MANIFEST.replace("CLUSTER_DNS", DNS).as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        ensure!(output.status.success(), "apply CoreDNS: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// A client for a kubeconfig.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &Default::default()).await?;
    Ok(Client::try_from(config)?)
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn until(mut condition: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        match condition().await {
            Ok(()) => return Ok(()),
            Err(error) if tokio::time::Instant::now() > end => bail!("not ready within {LIMIT:?}: {error:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
