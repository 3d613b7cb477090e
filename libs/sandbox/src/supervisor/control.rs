//! The supervisor's side of the control socket.

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream as StdStream},
    },
    path::Path,
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    runtime::Handle,
    sync::watch,
};

use super::{
    cluster::Cluster,
    protocol::{Exec, Request, Response},
};
use crate::{
    fds,
    net::{self, namespace::Enter},
    runtime::{container::Streams, init::exit_code, process::CAN_NOT_RUN},
    tap::Tap,
};

/// Largest request, in bytes: a command line with room to spare.
const MAX_REQUEST: usize = 256 * 1024;

/// Opens the socket; only its owner can connect, since the folder is private.
///
/// # Errors
/// Where it can not be bound.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(path)
}

/// Answers clients, each on a thread of its own (open files come with a blocking call).
pub fn serve(listener: UnixListener, cluster: Arc<Cluster>, stop: watch::Sender<bool>) {
    let runtime = Handle::current();
    let started = std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            };
            let (cluster, stop, runtime) = (cluster.clone(), stop.clone(), runtime.clone());
            let client = std::thread::Builder::new().name("client".into());
            // Without a thread the client sees its connection closed, and says so.
            let _ = client.spawn(move || {
                if let Ok((request, files)) = receive(&stream) {
                    runtime.block_on(async move {
                        let _ = answer(stream, request, files, &cluster, &stop).await;
                    });
                }
            });
        }
    });
    if let Err(error) = started {
        tracing::error!(%error, "control socket");
    }
}

fn receive(stream: &StdStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut files = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !bytes.contains(&b'\n') {
        let (n, more) = fds::receive(stream.as_raw_fd(), &mut [IoSliceMut::new(&mut buffer)])?;
        files.extend(more);
        bytes.extend_from_slice(buffer.get(..n).filter(|read| !read.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?);
        if bytes.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok((serde_json::from_slice(&bytes)?, files))
}

async fn answer(
    stream: StdStream,
    request: Request,
    files: Vec<OwnedFd>,
    cluster: &Arc<Cluster>,
    stop: &watch::Sender<bool>,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    match request {
        Request::Status => send(&mut stream, &Response::Status(cluster.status())).await,
        Request::Stop => {
            send(&mut stream, &Response::Done).await?;
            stop.send_replace(true);
            Ok(())
        }
        Request::Follow => follow(stream, cluster).await,
        Request::Exec(exec) => {
            let response = match run(&exec, files, cluster, &mut stream).await {
                Ok(code) => Response::Exited(code),
                Err(reason) => Response::Error(reason),
            };
            send(&mut stream, &response).await
        }
        Request::Tap { pod } => tap(stream, &pod, cluster).await,
        Request::Rules { pod } => {
            let response = rules(&pod, cluster).await.map_or_else(Response::Error, Response::Rules);
            send(&mut stream, &response).await
        }
    }
}

async fn send(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn follow(mut stream: UnixStream, cluster: &Cluster) -> io::Result<()> {
    let mut events = cluster.node.events.follow();
    loop {
        match events.recv().await {
            Ok(event) => send(&mut stream, &Response::Event(event)).await?,
            // A client that is too slow misses some; they are in the file.
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn run(exec: &Exec, files: Vec<OwnedFd>, cluster: &Arc<Cluster>, stream: &mut UnixStream) -> Result<i32, String> {
    let files: [OwnedFd; 3] = files.try_into().map_err(|_| "three open files must come with the request".to_owned())?;
    let pod = cluster.find(&exec.pod)?;
    let kept = pod.container(exec.container.as_deref()).ok_or_else(|| {
        let names: Vec<String> = pod.status().containers.into_iter().map(|container| container.name).collect();
        format!("{} has no running container {:?}; it has {}", pod.reference(), exec.container, names.join(", "))
    })?;
    let (container, mut process) =
        kept.running().ok_or_else(|| format!("{} container {} is not running", pod.reference(), kept.name()))?;
    process.argv.clone_from(&exec.command);
    let mut child = container.exec(&process, Streams::handed(files)).await.map_err(|error| error.to_string())?;
    let mut reader = BufReader::new(stream);
    let mut rest = String::new();
    tokio::select! {
        status = child.wait() => match status.map(exit_code) {
            Ok(code) => Ok(code),
            Err(error) => Err(error.to_string()),
        },
        // The client has gone or was interrupted: nobody waits for the program any more.
        _ = reader.read_line(&mut rest) => {
            let _ = child.kill().await;
            Ok(CAN_NOT_RUN)
        }
    }
}

/// Looks from the node, as a container has no right to.
async fn rules(pod: &str, cluster: &Arc<Cluster>) -> Result<String, String> {
    let pod = cluster.find(pod)?;
    let netns = cluster.node.layout.netns().join(&pod.uid);
    let look = move || Enter::net(&netns)?.run(|| net::run("nft", &["list", "ruleset"], None));
    let looked = tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())?;
    looked.map_err(|error| format!("rules of {}: {error}", pod.reference()))
}

async fn tap(mut stream: UnixStream, pod: &str, cluster: &Arc<Cluster>) -> io::Result<()> {
    let tap = cluster.find(pod).and_then(|pod| {
        let interface = pod.status().host_interface.ok_or_else(|| format!("{} has no link", pod.reference()))?;
        Tap::start(&interface).map(|tap| (tap, interface)).map_err(|error| error.to_string())
    });
    match tap {
        Err(reason) => send(&mut stream, &Response::Error(reason)).await,
        Ok((tap, interface)) => {
            send(&mut stream, &Response::Tapping { interface }).await?;
            let mut line = String::new();
            // Lasts until the client says so, or is gone.
            let _ = BufReader::new(&mut stream).read_line(&mut line).await;
            let flows = tap.stop();
            send(&mut stream, &Response::Flows(flows)).await
        }
    }
}
