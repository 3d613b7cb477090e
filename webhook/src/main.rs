//! `weir-webhook`: flags, log and signals around [`weir_webhook::server`].

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use ipnet::IpNet;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use weir_mesh::{TrustDomain, bootstrap, names};
use weir_webhook::{
    Redirect, RedirectBackend, Settings,
    server::{Files, Server},
};

/// The admission webhook that injects Weir's proxy into pods.
#[derive(Debug, Parser)]
#[command(name = "weir-webhook", version)]
struct Flags {
    /// Address and port to serve HTTPS on.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Serving certificate with its chain, PEM; followed when it changes.
    #[arg(long, value_name = "FILE")]
    tls_cert: PathBuf,
    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "FILE")]
    tls_key: PathBuf,
    /// Image of the proxy.
    #[arg(long, value_name = "IMAGE")]
    proxy_image: String,
    /// Image of the init container, used with --redirect init.
    #[arg(long, value_name = "IMAGE")]
    init_image: String,
    /// Who redirects a pod's traffic: cni (the plugin is installed on every node) or init (a privileged init container).
    #[arg(long, value_name = "cni|init")]
    redirect: Redirect,
    /// How the init container does, with --redirect init: nft (nf_tables), iptables (its programs, which --init-image must have), or
    /// auto (nft; iptables where the kernel refuses it).
    #[arg(long, value_name = "auto|nft|iptables", default_value = "nft")]
    redirect_backend: RedirectBackend,
    /// Addresses of the cluster's DNS, which pods with weir.dev/block-udp may ask; without them, they may ask any address on port 53.
    #[arg(long, value_name = "IP,…", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The control plane.
    #[arg(long, value_name = "HOST:PORT")]
    control: String,
    /// Name in the control plane's certificate, where it is not the host of --control.
    #[arg(long, value_name = "DNS")]
    control_name: Option<String>,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: TrustDomain,
    /// Service and pod ranges of the mesh.
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    mesh_cidrs: Vec<IpNet>,
    /// Seconds that open connections get when a pod ends.
    #[arg(long, value_name = "N", default_value_t = bootstrap::DEFAULT_DRAIN_SECONDS)]
    drain_seconds: u32,
    /// Seconds between the end of a pod and the SIGTERM of its containers that have no preStop hook; 0 for none. Needs Kubernetes
    /// 1.30.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pre_stop_seconds: u32,
    /// Log filter of the proxies.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    proxy_log: String,
    /// Namespace that Weir runs in, which is never injected.
    #[arg(long, value_name = "NAME", default_value = names::SYSTEM_NAMESPACE)]
    system_namespace: String,
    /// Root certificates of the mesh, PEM, to start pods with before their namespace has the ConfigMap.
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// Seconds to go on serving after SIGTERM, until API servers have noticed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    lame_duck_seconds: u64,
    /// Log filter of the webhook.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let flags = Flags::parse(); // exits 2 on wrong usage
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-webhook: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<()> {
    let filter = flags.log.parse::<tracing_subscriber::EnvFilter>().context("--log is no log filter")?;
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("can not start threads")?;
    runtime.block_on(serve(flags))
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let roots = flags.roots.map(|path| {
        std::fs::read_to_string(&path).with_context(|| format!("--roots {} can not be read", path.display()))
    });
    let settings = Settings {
        proxy_image: flags.proxy_image,
        init_image: flags.init_image,
        redirect: flags.redirect,
        redirect_backend: flags.redirect_backend,
        cluster_dns: flags.cluster_dns,
        control: flags.control,
        control_name: flags.control_name,
        trust_domain: flags.trust_domain,
        mesh_cidrs: flags.mesh_cidrs,
        drain_seconds: flags.drain_seconds,
        pre_stop_seconds: flags.pre_stop_seconds,
        proxy_log: flags.proxy_log,
        system_namespace: flags.system_namespace,
        roots: roots.transpose()?,
    };
    settings.check()?;
    let files = Files { cert: flags.tls_cert, key: flags.tls_key };
    let mut terminate = signal(SignalKind::terminate()).context("can not wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can not wait for SIGINT")?;
    let server = Server::bind(flags.listen, files, settings).await?;
    tracing::info!(address = %server.address()?, redirect = %flags.redirect, "serving");

    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(server.run(stopped));
    tokio::select! {
        _ = terminate.recv() => tokio::time::sleep(Duration::from_secs(flags.lame_duck_seconds)).await,
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.send_replace(true);
    serving.await.context("the server ended badly")
}
