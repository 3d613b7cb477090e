//! A worker: one thread, its own sockets, pool and timers; nothing on the way of a request is shared but atomics.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    task::LocalSet,
    time::{Instant, MissedTickBehavior, interval},
};
use weir_mesh::ports;

use super::{checks, inbound, outbound, refuse::reset};
use crate::{
    capture::{Listeners, accept_loop, original_dst},
    config::Store,
    drain::Drain,
    http::Limits,
    memory,
    net::{Io, Slot, lost, tune},
    overload::Overload,
    policy::Admissions,
    settings::Settings,
    telemetry::{AccessLog, AccessLogHandle, Direction, Registry, SeriesCache},
    tls::MeshTls,
    upstream::{
        Breaker, Cluster, ClusterInfo, Connector, Endpoint, EndpointSet, Full, Handover, Pool, SharedPool, Verdict,
    },
};

/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// What the proxy was told at start.
    pub settings: Arc<Settings>,
    /// Tables.
    pub store: Arc<Store>,
    /// Certificate and roots.
    pub tls: MeshTls,
    /// Series.
    pub registry: Arc<Registry>,
    /// Where access log lines go.
    pub access_log: Arc<AccessLog>,
    /// The end.
    pub drain: Drain,
    /// Nothing new is taken.
    pub overload: Overload,
    /// Limited connections move from worker to worker.
    pub handover: Handover,
}

/// One worker, seen from its connections' tasks.
pub struct Worker {
    /// Number, from 0.
    pub id: usize,
    /// Itself, for tasks that outlive who starts them.
    pub me: Weak<Self>,
    /// Copies of requests that are under way.
    pub copies: Cell<usize>,
    /// What all workers share.
    pub shared: Shared,
    /// Idle upstream connections of HTTP/1.1.
    pub pool: Pool,
    /// Upstream connections of HTTP/2.
    pub shared_pool: SharedPool,
    /// Makes upstream connections.
    pub connector: Connector,
    /// Limits of the HTTP codec.
    pub limits: Limits,
    /// This worker's way to the series.
    pub series: RefCell<SeriesCache>,
    /// Open connections into the pod, and whether the access rules still let them be.
    pub admissions: Rc<Admissions>,
    /// This worker's lines.
    pub access_log: RefCell<AccessLogHandle>,
}

/// Runs a worker on the current thread until the drain ends. `ready` is called when its sockets are open.
///
/// # Errors
/// Sockets that can not be opened.
pub fn run(id: usize, shared: Shared, ready: impl FnOnce()) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let listeners = Listeners::bind()?;
        let worker = Rc::new_cyclic(|me| Worker {
            id,
            me: me.clone(),
            copies: Cell::new(0),
            pool: Pool::default(),
            shared_pool: SharedPool::default(),
            connector: Connector { tls: shared.tls.clone() },
            limits: Limits::default(),
            series: RefCell::new(SeriesCache::new(shared.registry.clone())),
            access_log: RefCell::new(shared.access_log.handle()),
            admissions: Rc::default(),
            shared,
        });
        let (judge, mut changes) = (worker.clone(), worker.shared.store.inbound_changes());
        tokio::task::spawn_local(async move {
            while changes.changed().await.is_ok() {
                judge.admissions.judge_again(judge.shared.store.inbound().as_deref());
            }
        });
        let (giver, mut wishes) = (worker.clone(), worker.shared.handover.wishes());
        tokio::task::spawn_local(async move {
            while let Some(of) = wishes.next().await {
                of.fulfil(|| giver.pool.spare(&of).is_some() || giver.shared_pool.spare(&of));
            }
        });
        if id == 0 {
            tokio::task::spawn_local(checks::run(worker.clone()));
        }
        for (direction, listener) in listeners.0 {
            let worker = worker.clone();
            let drain = worker.shared.drain.clone();
            let stop = async move {
                match direction {
                    // The application and other sidecars may call until the end.
                    Direction::Outbound => drain.stopped().await,
                    Direction::Inbound => drain.closed().await,
                }
            };
            tokio::task::spawn_local(async move {
                accept_loop(direction, listener, stop, |stream, peer| accepted(&worker, direction, stream, peer)).await;
            });
        }
        ready();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = stopped(worker.shared.drain.clone());
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = sweep.tick() => {
                    worker.pool.sweep(Instant::now());
                    worker.shared_pool.sweep(Instant::now());
                    let ended = lost::sweep(Instant::now());
                    if ended > 0 {
                        tracing::warn!(connections = ended, "peers have not been heard of for {} s: their connections were ended", lost::SILENCE.as_secs());
                    }
                    memory::give_back();
                }
                () = &mut stop => return Ok(()),
            }
        }
    })
}

async fn stopped(drain: Drain) {
    drain.stopped().await;
}

fn accepted(worker: &Rc<Worker>, direction: Direction, stream: TcpStream, peer: SocketAddr) {
    let destination = match original_dst(&stream) {
        Ok(destination) => destination,
        Err(error) => {
            // The caller's address is enough to find who does this; a scan must not fill the log.
            tracing::debug!(direction = direction.as_str(), %peer, %error, "refused");
            worker.refused(direction, "not_redirected");
            return;
        }
    };
    let check = matches!(destination.0.port(), ports::CHECK_OUTBOUND | ports::CHECK_INBOUND);
    if worker.shared.overload.is_on() && !check {
        reset(&Io::Plain(stream));
        worker.refused(direction, "overload"); // what is wrong is said once for all of them
        return;
    }
    if tune(&stream).is_err() {
        return; // gone already
    }
    // Each way has a task of its own kind: a task is as large as the largest future that it may hold.
    let worker = worker.clone();
    match (direction, destination.0.port()) {
        (Direction::Outbound, ports::CHECK_OUTBOUND) | (Direction::Inbound, ports::CHECK_INBOUND) => {
            tokio::task::spawn_local(answer_check(stream, direction));
        }
        (Direction::Outbound, _) => {
            tokio::task::spawn_local(outbound::serve(worker, stream, peer, destination));
        }
        (Direction::Inbound, _) => {
            tokio::task::spawn_local(inbound::serve(worker, stream, peer, destination));
        }
    }
}

/// Answers the proxy's own check of the redirect.
async fn answer_check(mut stream: TcpStream, direction: Direction) {
    use tokio::io::AsyncWriteExt;
    let _ = stream.write_all(format!("weir redirect {}\n", direction.as_str()).as_bytes()).await;
}

impl Worker {
    /// Room for another connection of a cluster. Idle ones of this worker give way.
    ///
    /// # Errors
    /// [`Full`]
    pub fn slot(&self, breaker: &Breaker) -> Result<Option<Slot>, Full> {
        breaker.connection().or_else(|full| self.pool.spare(breaker).map(Some).ok_or(full))
    }

    /// The same in turn with all who wait; other workers give one up.
    ///
    /// # Errors
    /// [`Full`]: its turn has not come until `end`.
    pub async fn slot_in_turn(&self, breaker: &Breaker, end: Instant) -> Result<Option<Slot>, Full> {
        breaker.connection_in_turn(end, || self.shared.handover.wish(breaker)).await
    }

    /// Tells a cluster's outlier detection what came of an attempt.
    pub fn judge(
        &self,
        cluster: &Cluster,
        info: &ClusterInfo,
        endpoints: &EndpointSet,
        endpoint: &Endpoint,
        verdict: Verdict,
    ) {
        let Some(rule) = &info.outlier else { return };
        if let Some(ejected) = cluster.detector.judge(rule, endpoints, endpoint, verdict, Instant::now()) {
            self.shared.registry.proxy.ejections.inc([ejected.why]);
            tracing::warn!(endpoint = %endpoint.address, cluster = &*cluster.name, reason = ejected.why,
                seconds = ejected.pause.as_secs_f32(), "an endpoint is ejected");
        }
    }

    /// Counts a refused connection.
    pub fn refused(&self, direction: Direction, reason: &'static str) {
        self.shared.registry.proxy.refused.inc([direction.as_str(), reason]);
    }

    /// Counts what a connection was taken for, and why.
    pub fn detected(&self, direction: Direction, protocol: &'static str, reason: &'static str) {
        self.shared.registry.proxy.detection.inc([direction.as_str(), protocol, reason]);
    }
}
