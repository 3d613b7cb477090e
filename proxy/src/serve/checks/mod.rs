//! Asks endpoints from time to time whether they are well, where their clusters want that. One worker does it for all: what it finds out lies
//! in the endpoints' standing, which all workers see.

mod grpc;

use std::{
    collections::HashMap,
    io,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::Worker;
use crate::{
    http::{Asked, h1::ResponseDecoder},
    net::Conn,
    tls::Alpn,
    upstream::{Check, Cluster, Endpoint, Probe, Standing},
};

/// How exact the times between checks are.
const GRAIN: Duration = Duration::from_millis(50);
/// Checks at a time; others have their turn when some of them are done.
const AT_ONCE: usize = 256;

/// When each endpoint is to be asked next, by the place of its standing and the number of the check, and whether it is being asked.
type Due = HashMap<(*const Standing, usize), (Instant, Weak<()>)>;

/// Checks for ever.
pub(super) async fn run(worker: Rc<Worker>) {
    let mut due = Due::new();
    let under_way = Rc::new(());
    loop {
        let clusters = worker.shared.store.checked();
        if clusters.is_empty() {
            due.clear();
            worker.shared.store.checked_changes().await;
            continue;
        }
        let mut next = Due::new();
        for cluster in &clusters {
            look(&worker, cluster, &due, &mut next, &under_way);
        }
        due = next;
        sleep(GRAIN).await;
    }
}

/// Begins the checks of a cluster that are due.
fn look(worker: &Rc<Worker>, cluster: &Arc<Cluster>, due: &Due, next: &mut Due, under_way: &Rc<()>) {
    let info = cluster.info().clone();
    let Some(set) = cluster.endpoints().as_ref().cloned() else { return };
    let now = Instant::now();
    for endpoint in &set.endpoints {
        for (number, check) in info.checks.iter().enumerate() {
            let key = (Arc::as_ptr(&endpoint.standing), number);
            let (at, asking) = due.get(&key).cloned().unwrap_or((now, Weak::new()));
            // One that takes longer than its interval is not asked again meanwhile.
            if now < at || asking.strong_count() > 0 || Rc::strong_count(under_way) > AT_ONCE {
                next.insert(key, (at, asking));
                continue;
            }
            let asking = Rc::new(());
            next.insert(key, (now + check.interval, Rc::downgrade(&asking)));
            let once = once(worker.clone(), cluster.clone(), endpoint.clone(), check.clone());
            let under_way = under_way.clone();
            tokio::task::spawn_local(async move {
                once.await;
                drop((asking, under_way));
            });
        }
    }
}

async fn once(worker: Rc<Worker>, cluster: Arc<Cluster>, endpoint: Arc<Endpoint>, check: Check) {
    let asked = timeout(check.timeout, ask(&worker, &cluster.name, &endpoint, &check)).await;
    let (good, why) = match asked {
        Ok(Ok(())) => (true, "answered"),
        Ok(Err(error)) => {
            tracing::debug!(endpoint = %endpoint.address, cluster = &*cluster.name, %error, "a check failed");
            (false, "failed")
        }
        Err(_) => (false, "timed_out"),
    };
    worker.shared.registry.proxy.health_checks.inc([why]);
    match check.note(&endpoint.standing, good, Instant::now()) {
        Some(true) => {
            tracing::info!(endpoint = %endpoint.address, cluster = &*cluster.name, "an endpoint is well again")
        }
        Some(false) => {
            tracing::warn!(endpoint = %endpoint.address, cluster = &*cluster.name, why, "an endpoint is not well");
        }
        None => {}
    }
}

/// Asks once.
async fn ask(worker: &Worker, cluster: &str, to: &Endpoint, check: &Check) -> io::Result<()> {
    let alpn = match check.probe {
        Probe::Tcp => Alpn::Opaque,
        Probe::Http { .. } => Alpn::Http1,
        Probe::Grpc { .. } => Alpn::Http2,
    };
    let conn = worker.connector.connect(to, alpn, check.timeout).await.map_err(io::Error::other)?;
    let name = cluster.replace('|', "_"); // a name of ours is no host
    match &check.probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path, host, expected } => {
            let status = get(worker, conn, path, host.as_deref().unwrap_or(&name)).await?;
            if expected.has(status) { Ok(()) } else { Err(io::Error::other(format!("status {status}"))) }
        }
        Probe::Grpc { service } => grpc::check(conn, &name, service).await,
    }
}

/// The status of the answer to a GET.
async fn get(worker: &Worker, mut conn: Conn, path: &str, host: &str) -> io::Result<u16> {
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: weir-health-check\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    conn.write_all(head.as_bytes(), &[]).await?;
    status(worker, &mut conn).await
}

async fn status(worker: &Worker, conn: &mut Conn) -> io::Result<u16> {
    let mut decoder = ResponseDecoder::new();
    loop {
        if !conn.read.is_empty() {
            match decoder.decode(&mut conn.read, Asked::Other, &worker.limits) {
                Ok(Some(head)) if head.is_interim() => continue,
                Ok(Some(head)) => return Ok(head.status()),
                Ok(None) => {}
                Err(refused) => return Err(io::Error::other(refused.reason)),
            }
        }
        if conn.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
