//! A cluster as a test holds it.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use kube::Client;

use crate::{
    control::{self, Facts, Request},
    guard, launch,
    layout::Layout,
    options::Options,
    readiness,
};

/// A running cluster. It ends when this is dropped, or when this process ends in any way.
pub struct Cluster {
    layout: Layout,
    facts: Facts,
    guard: Child,
    client: Client,
    /// How long each log of the cluster's own programs was when it was ready: what they say until then is of no interest.
    pub(crate) start_logs: HashMap<OsString, usize>,
}

impl Cluster {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// When this machine can not run it, or a part does not start; what the part said is in the error.
    pub async fn start(options: Options) -> Result<Self> {
        let launched = tokio::task::spawn_blocking(move || launch::start(&options)).await??;
        let client = readiness::client(&launched.layout.kubeconfig()).await?;
        let logs = fs::read_dir(launched.layout.logs())?.flatten();
        let start_logs =
            logs.map(|file| (file.file_name(), fs::read(file.path()).map_or(0, |log| log.len()))).collect();
        Ok(Self { layout: launched.layout, facts: launched.facts, guard: launched.guard, client, start_logs })
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What it said of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its files.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// For other programs on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// For programs inside, as [`Self::node`] and [`Self::outside`] run them: all rights.
    pub fn kubeconfig_inside(&self) -> PathBuf {
        self.layout.pki().join("admin.conf")
    }

    /// Runs kubectl; what it printed.
    ///
    /// # Errors
    /// When it fails; what it said is in the error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        said(self.tool("kubectl").args(arguments), None)
    }

    /// `kubectl apply` of these manifests, into this namespace.
    ///
    /// # Errors
    /// When the API server refuses one; what it said is in the error.
    pub fn apply(&self, namespace: &str, manifests: &str) -> Result<String> {
        said(self.tool("kubectl").args(["apply", "--namespace", namespace, "--filename=-"]), Some(manifests))
    }

    /// Runs Helm; what it printed.
    ///
    /// # Errors
    /// When it fails; what it said is in the error.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        said(self.tool("helm").args(arguments), None)
    }

    /// kubectl or helm, set up for this cluster.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.facts.tools.join(name));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.layout.root()).env_remove("XDG_CACHE_HOME");
        for folder in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{folder}_HOME"), self.layout.root().join("helm").join(folder));
        }
        command
    }

    /// Gives every node an image: a `docker-archive` file, as [`crate::images::Image::build`] writes it.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub fn import_image(&self, tar: &Path) -> Result<()> {
        let tar = tar.to_str().context("a path that is no text")?;
        for node in self.nodes() {
            said(node.command("ctr").args(["--namespace", "k8s.io", "images", "import", tar]), None)?;
        }
        Ok(())
    }

    /// Node 1, 2 and so on; its name is `node1`, `node2`.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, number: usize) -> Spot<'_> {
        match number.checked_sub(1).and_then(|index| self.facts.nodes.get(index)) {
            Some(entrance) => Spot { entrance },
            None => panic!("there is no node {number}, only 1 to {}", self.facts.nodes.len()),
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Spot<'_>> {
        self.facts.nodes.iter().map(|entrance| Spot { entrance })
    }

    /// The control plane's network: a client there is outside of all nodes.
    pub fn outside(&self) -> Spot<'_> {
        Spot { entrance: &self.facts.outside }
    }

    /// Stops a program: `etcd`, `apiserver`, `controller-manager`, `scheduler`, `nodeN/containerd`, `nodeN/kubelet`,
    /// `nodeN/kube-proxy`. Returns when it has ended. What it started, containers say, stays.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn stop(&self, program: &str) -> Result<()> {
        control::ask(&self.layout, &Request::Stop(program.to_owned()))
    }

    /// Starts a stopped program again. Does not wait until it answers.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn start_again(&self, program: &str) -> Result<()> {
        control::ask(&self.layout, &Request::Start(program.to_owned()))
    }

    /// Stops and starts a program.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn restart(&self, program: &str) -> Result<()> {
        self.stop(program)?;
        self.start_again(program)
    }

    /// Lets it stay when this process ends, until `weir-cluster down`.
    ///
    /// # Errors
    /// When it can not be told.
    pub fn stay(mut self) -> Result<()> {
        launch::let_go(&mut self.guard, &self.layout)?;
        std::mem::forget(self);
        Ok(())
    }

    /// Ends it, and says if something could not be removed.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        drop(self.guard.stdin.take());
        // The guard is this process' child: waited for, so that it is no zombie.
        let status = self.guard.wait()?;
        guard::end(&self.layout)?;
        if !status.success() {
            bail!("the cluster ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("weir-cluster: {error:#}");
        }
    }
}

/// Somewhere inside the cluster where programs of the machine can run.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'a> {
    entrance: &'a [String],
}

impl Spot<'_> {
    /// A program of the machine, in the namespaces of this place; it sees the place's files.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.entrance).arg("--").arg(program);
        command
    }

    /// Runs a shell script there; what it printed.
    ///
    /// # Errors
    /// When it fails; what it said is in the error.
    pub fn shell(&self, script: &str) -> Result<String> {
        said(self.command("sh").args(["-ec", script]), None)
    }
}

fn said(command: &mut Command, input: Option<&str>) -> Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    let out = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{command:?}: {status}\n{}{out}", String::from_utf8_lossy(&stderr));
    }
    Ok(out)
}
