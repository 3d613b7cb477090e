//! The process that owns a cluster: brings its parts up in order, and then does what it is asked until it is to end.
//!
//! It ends when its standard input does, which is held by whoever started it: so a test that is killed takes its cluster with it, and
//! so does a person who interrupts the start. The word [`STAY`] before the end lets it stay.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use crate::{
    address::{API, Host},
    control::{Facts, Request},
    control_plane::ControlPlane,
    forward,
    layout::Layout,
    mounts,
    network::Switch,
    node::Node,
    options::Options,
    pki,
    place::Place,
    readiness::Watch,
    service::Service,
};

/// Said on standard input by a starter that leaves a cluster behind on purpose.
pub(crate) const STAY: &str = "stay\n";
/// How often it is looked for programs that have ended by themselves.
const REVIVE: Duration = Duration::from_millis(500);

/// Everything that runs.
#[derive(Debug)]
struct Parts {
    control_plane: ControlPlane,
    nodes: Vec<Node>,
    /// No process runs in its namespace: it goes when this does.
    _switch: Switch,
}

impl Parts {
    fn services(&self) -> impl Iterator<Item = &Service> {
        let plane = &self.control_plane;
        let nodes = self.nodes.iter().flat_map(|node| [&node.containerd, &node.kubelet, &node.kube_proxy]);
        [&plane.etcd, &plane.api_server].into_iter().chain(&plane.followers).chain(nodes)
    }

    fn answer(&self, request: &Request) -> Result<()> {
        let find = |name: &str| {
            let known = || self.services().map(Service::name).collect::<Vec<_>>().join(", ");
            self.services()
                .find(|service| service.name() == name)
                .ok_or_else(|| anyhow!("no {name} here, only {}", known()))
        };
        match request {
            Request::Start(name) => find(name)?.start(),
            Request::Stop(name) => find(name)?.stop(),
            Request::End => Ok(()),
        }
    }
}

/// Runs a cluster until it is to end. One line of JSON on standard output says that it is ready (`Result<Facts, String>`).
///
/// # Errors
/// When a part does not start.
pub async fn run(layout: Layout, options: Options, tools: PathBuf) -> Result<()> {
    let _hold = layout.hold()?;
    // The machine's own /proc is still mounted: this is the process id that others know.
    let pid: u32 = fs::read_link("/proc/self")?.to_string_lossy().parse()?;
    ensure!(pid != std::process::id(), "supervise wants a process namespace of its own: start it by `weir-cluster up`");
    let told = told_to_end();
    tokio::pin!(told);
    let brought = tokio::select! {
        brought = bring_up(&layout, &options, &tools, pid) => brought,
        () = &mut told => return Ok(()),
    };
    let said = brought.as_ref().map(|(facts, _)| facts).map_err(|error| format!("{error:#}"));
    let line = serde_json::to_string(&said)?;
    fs::write(layout.ready(), &line)?;
    println!("{line}");
    let (_, parts) = brought?;
    let (parts, end) = (Arc::new(parts), Arc::new(Notify::new()));
    serve(&layout, parts.clone(), end.clone())?;
    tokio::select! {
        () = told => {}
        () = end.notified() => {}
        () = revive(&parts) => {}
    }
    Ok(())
}

/// Starts again what ends by itself, for as long as the cluster is there.
async fn revive(parts: &Parts) {
    loop {
        tokio::time::sleep(REVIVE).await;
        for service in parts.services() {
            if let Err(error) = tokio::task::block_in_place(|| service.revive()) {
                eprintln!("{} can not be started again: {error:#}", service.name());
            }
        }
    }
}

async fn told_to_end() {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
    let starter = async {
        let read = tokio::task::spawn_blocking(|| io::read_to_string(io::stdin())).await;
        if matches!(read, Ok(Ok(word)) if word == STAY) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = starter => {}
        _ = terminated.recv() => {}
    }
}

async fn bring_up(layout: &Layout, options: &Options, tools: &Path, pid: u32) -> Result<(Facts, Parts)> {
    let begun = Instant::now();
    mounts::machine(&layout.private())?;
    pki::create(layout, options.nodes)?;
    let switch = Switch::new(options.nodes, options.dual_stack)?;
    let outside = Arc::new(Place::new(|| Ok(()))?);
    switch.attach(Host(0), &outside)?;
    let port = forward::start(outside.clone(), SocketAddr::new(API.parse::<IpAddr>()?, 6443)).await?;
    fs::write(layout.kubeconfig(), pki::kubeconfig(&layout.pki(), "admin", &format!("https://127.0.0.1:{port}")))?;

    let control_plane = ControlPlane::new(layout, &outside, tools, options.dual_stack);
    control_plane.etcd.start()?;
    control_plane.api_server.start()?;
    let mut images: Vec<PathBuf> =
        fs::read_dir(layout.images())?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    images.extend(options.images.iter().cloned());
    let nodes = tokio::task::block_in_place(|| make_nodes(layout, &switch, options, tools, &images))?;
    let parts = Parts { control_plane, nodes, _switch: switch };

    let watch = Watch::new(&layout.kubeconfig()).await?;
    healthy(&parts, watch.api_server()).await.context("the API server")?;
    for service in &parts.control_plane.followers {
        service.start()?;
    }
    for node in &parts.nodes {
        node.kubelet.start()?;
        node.kube_proxy.start()?;
    }
    if options.dns {
        watch.apply_dns(tools).await?;
    }
    healthy(&parts, watch.nodes(options.nodes.into())).await.context("the nodes")?;
    if options.dns {
        healthy(&parts, watch.dns()).await.context("cluster DNS")?;
    }
    let facts = Facts {
        took_ms: u64::try_from(begun.elapsed().as_millis())?,
        outside: outside.entrance(pid),
        nodes: parts.nodes.iter().map(|node| node.place.entrance(pid)).collect(),
        tools: tools.to_owned(),
    };
    Ok((facts, parts))
}

fn make_nodes(
    layout: &Layout,
    switch: &Switch,
    options: &Options,
    tools: &Path,
    images: &[PathBuf],
) -> Result<Vec<Node>> {
    thread::scope(|scope| {
        let make = |number| {
            let node = Node::new(layout, switch, Host(number), tools, options.dual_stack)?;
            node.start_containerd(images)?;
            Ok(node)
        };
        let threads: Vec<_> = (1..=options.nodes).map(|number| scope.spawn(move || make(number))).collect();
        let nodes = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("making a node panicked"))?);
        nodes.collect()
    })
}

/// Waits, but not for something that has ended.
async fn healthy(parts: &Parts, condition: impl Future<Output = Result<()>>) -> Result<()> {
    let trouble = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Some(trouble) = parts.services().find_map(Service::trouble) {
                return trouble;
            }
        }
    };
    tokio::select! {
        met = condition => met,
        trouble = trouble => Err(anyhow!(trouble)),
    }
}

fn serve(layout: &Layout, parts: Arc<Parts>, end: Arc<Notify>) -> Result<()> {
    let listener = UnixListener::bind(layout.control())?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (parts, end) = (parts.clone(), end.clone());
            tokio::spawn(async move { answer(stream, parts, &end).await });
        }
    });
    Ok(())
}

async fn answer(stream: UnixStream, parts: Arc<Parts>, end: &Notify) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    let request: Request = serde_json::from_str(&line)?;
    let ends = matches!(request, Request::End);
    let said = tokio::task::spawn_blocking(move || parts.answer(&request)).await?;
    let said = serde_json::to_string(&said.map_err(|error| format!("{error:#}")))?;
    write.write_all(format!("{said}\n").as_bytes()).await?;
    if ends {
        end.notify_one();
    }
    Ok(())
}
