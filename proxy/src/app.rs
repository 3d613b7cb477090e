//! The proxy as a whole: what is started in which order, and how it ends.
//!
//! Configuration, identity and the admin endpoints run on this thread; workers get threads of their own. Captured traffic is served from
//! the moment at which the pod's own ports are known and it has a certificate; until then connections wait in the listeners' queues,
//! and the pod is not ready.

use std::{
    env, fs,
    io::{self, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use weir_init::check_as_proxy;
use weir_xds::Client;

use crate::{
    admin::{self, Addresses, Admin, Readiness, Servers, readiness},
    config::{Store, Tables},
    drain::Drain,
    identity::{self, GrpcSigner},
    overload::Overload,
    serve::{self, Shared},
    settings::Settings,
    telemetry::{AccessLog, Peer, PeerFields, Registry, log::LogControl},
    tls::MeshTls,
    upstream::Handover,
};

/// How often entries that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// How often the start looks whether what it waits for has come.
const LOOK: Duration = Duration::from_millis(10);
/// How long missing redirect rules may be mended from outside before the proxy gives up: ends before the 60 s of `weir-proxy wait`, so
/// that the reason is this one and not "not ready in time".
const REDIRECT_PATIENCE: Duration = Duration::from_secs(50);
/// Time for one look at the redirect: covers duplicate address detection.
const REDIRECT_LOOK: Duration = Duration::from_secs(5);
/// Where the kubelet reads why a container ended.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Names another file for it (`terminationMessagePath`).
const TERMINATION_LOG_ENV: &str = "WEIR_TERMINATION_LOG";
/// What is missing in the first moments of a start is not worth a line in the log.
const QUIET_START: Duration = Duration::from_secs(1);
/// How long the last log lines may take.
const FLUSH: Duration = Duration::from_secs(1);

/// Why the proxy ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A port of the proxy is taken, or the kernel refuses something that it needs.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Missing or wrong redirect.
    #[error("the redirect of this pod's traffic is not in force: {0}")]
    Redirect(String),
    /// A worker ended.
    #[error("worker {0} ended: {1}")]
    Worker(usize, String),
    /// The setting for the application's metrics.
    #[error("application metrics: {0}")]
    AppMetrics(String),
}

/// Runs the proxy until SIGTERM and the drain after it.
///
/// # Errors
/// [`AppError`]; its text also stands in the container's termination message.
pub fn run(settings: Settings, log: LogControl) -> Result<(), AppError> {
    let result = runtime::Builder::new_current_thread().enable_all().build()?.block_on(start(settings, log));
    if let Err(error) = &result {
        say_why(&error.to_string());
    }
    result
}

/// Leaves the reason where `kubectl describe pod` shows it. Outside a container there is no such file, and none is made.
fn say_why(reason: &str) {
    let file = env::var_os(TERMINATION_LOG_ENV).unwrap_or_else(|| TERMINATION_LOG.into());
    if let Ok(mut file) = fs::OpenOptions::new().write(true).truncate(true).open(file) {
        let _ = file.write_all(reason.as_bytes());
    }
}

async fn start(settings: Settings, log: LogControl) -> Result<(), AppError> {
    let settings = Arc::new(settings);
    let started = Instant::now();
    let readiness = Readiness::new([readiness::CERTIFICATE, readiness::INBOUND_CONFIG, readiness::REDIRECT]);
    let own = Peer::new(PeerFields {
        namespace: settings.identity.namespace().to_owned(),
        principal: Some(settings.identity.clone()),
        ..PeerFields::default()
    });
    let registry = Registry::new(own, env!("CARGO_PKG_VERSION"));
    let tls = MeshTls::new(settings.trust_domain.clone());
    let access_log = AccessLog::start(io::stdout(), settings.access_log, registry.proxy.access_log_dropped.clone())?;
    let store = Arc::new(Store::default());
    let tables = Tables::new(store.clone());

    // Admin first: whoever asks why the pod is not ready gets an answer from the beginning.
    let (stop, stopped) = watch::channel(false);
    let metrics = settings.app_metrics.as_deref().map(str::parse).transpose().map_err(AppError::AppMetrics)?;
    let dump = tables.clone();
    let endpoints = Admin {
        readiness: readiness.clone(),
        registry: registry.clone(),
        tls: tls.clone(),
        config_dump: Arc::new(move || dump.dump()),
        log,
        access_log: Some(access_log.clone()),
        app: admin::App { addresses: settings.addresses.clone(), calls: settings.probes.clone(), metrics },
    };
    let servers = Servers::bind(&Addresses::default())?;
    let admin = tokio::spawn(servers.run(Arc::new(endpoints), stopped));

    follow_control_plane(&settings, &tables);
    let signer = GrpcSigner { address: settings.control.clone(), server_name: settings.control_name.clone() };
    let config =
        identity::Config::new(settings.identity.clone(), settings.token_file.clone(), settings.root_file.clone());
    tokio::spawn(identity::run(config, tls.clone(), signer, readiness.clone(), registry.clone()));
    tokio::spawn({
        let tables = tables.clone();
        async move {
            loop {
                sleep(SWEEP).await;
                tables.sweep();
            }
        }
    });

    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = Drain::new(settings.workers);
    let (ended, mut worker_ended) = mpsc::unbounded_channel();
    let overload = Overload::default();
    tokio::spawn(overload.clone().follow(settings.memory_limit, registry.clone()));
    let shared = Shared {
        settings: settings.clone(),
        store: store.clone(),
        tls,
        registry: registry.clone(),
        access_log: Arc::new(access_log.clone()),
        drain: drain.clone(),
        overload,
        handover: Handover::default(),
    };
    let bring_up = async {
        wait_for_configuration(&settings, &store, &registry, &readiness).await;
        let (opened, mut open) = mpsc::channel(settings.workers);
        for id in 0..settings.workers {
            let (shared, ended, opened) = (shared.clone(), ended.clone(), opened.clone());
            thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
                let result = serve::run(id, shared, || {
                    let _ = opened.try_send(());
                });
                let _ = ended.send((id, result));
            })?;
        }
        for _ in 0..settings.workers {
            open.recv().await;
        }
        check_redirect(&settings, &readiness).await?;
        tracing::info!(pod = settings.pod, identity = %settings.identity, workers = settings.workers,
            milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), "ready");
        std::future::pending::<Result<(), AppError>>().await
    };
    let result = tokio::select! {
        result = bring_up => result,
        Some((id, result)) = worker_ended.recv() => {
            let reason = result.err().map_or_else(|| "without a reason".to_owned(), |error| error.to_string());
            Err(AppError::Worker(id, reason))
        }
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if result.is_ok() && !readiness.is_ready() {
        // The kubelet hides what the postStart hook printed: this is where a person finds out why the pod never started.
        let reasons = readiness.reasons();
        tracing::error!(reasons, "stopped before it was ready");
        say_why(&reasons);
    }
    if result.is_ok() {
        tracing::info!(in_flight = drain.in_flight(), seconds = settings.drain.as_secs(), "draining");
        tokio::select! {
            () = drain.run(settings.drain) => {}
            _ = term.recv() => tracing::warn!("second signal: ending at once"),
        }
    }
    let _ = stop.send(true);
    let _ = tokio::time::timeout(FLUSH, admin).await;
    access_log.flush(FLUSH);
    result
}

/// Starts the client that keeps the tables current.
fn follow_control_plane(settings: &Arc<Settings>, tables: &Tables) {
    let node = format!("{}.{}", settings.pod, settings.identity.namespace());
    let (roots, token) = (settings.clone(), settings.clone());
    let client = Client::new(
        move || {
            let pem = fs::read_to_string(&roots.root_file)
                .map_err(|error| format!("root certificates {}: {error}", roots.root_file.display()))?;
            weir_xds::endpoint(&roots.control, &roots.control_name, &pem).map_err(|error| error.to_string())
        },
        node,
        move || {
            fs::read_to_string(&token.token_file)
                .map(|token| token.trim().to_owned())
                .map_err(|error| format!("{}: {error}", token.token_file.display()))
        },
        tables.clone(),
    );
    tables.attach(client.subscriptions());
    tokio::spawn(client.run());
}

/// Waits until the pod's own ports and name are known, and takes over the name for metrics.
async fn wait_for_configuration(settings: &Settings, store: &Store, registry: &Registry, readiness: &Readiness) {
    let begin = Instant::now();
    loop {
        match store.inbound().and_then(|inbound| inbound.own.clone()) {
            Some(own) => {
                registry.set_own(own);
                readiness.set(readiness::INBOUND_CONFIG, Ok(()));
                return;
            }
            None => {
                let why = store.trouble().map_or_else(
                    || "the control plane has not said yet what this pod is".to_owned(),
                    |why| format!("no answer from the control plane {}: {why}", settings.control),
                );
                if readiness.set(readiness::INBOUND_CONFIG, Err(why.clone())) && begin.elapsed() > QUIET_START {
                    tracing::warn!(reason = why, "still waiting");
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// Proves that the pod's traffic comes here. Rules that are missing may be mended from outside for a while.
async fn check_redirect(settings: &Arc<Settings>, readiness: &Readiness) -> Result<(), AppError> {
    if settings.capture.is_none() {
        readiness.set(readiness::REDIRECT, Ok(()));
        return Ok(());
    }
    let begin = Instant::now();
    loop {
        let addresses = settings.addresses.clone();
        let checked = spawn_blocking(move || check_as_proxy(&addresses, REDIRECT_LOOK)).await;
        let failed = match checked {
            Ok(Ok(())) => {
                readiness.set(readiness::REDIRECT, Ok(()));
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if readiness.set(readiness::REDIRECT, Err(failed.clone())) {
            tracing::error!(reason = failed, "the redirect is not in force; waiting for it to be mended");
        }
        if begin.elapsed() > REDIRECT_PATIENCE {
            return Err(AppError::Redirect(failed));
        }
        sleep(Duration::from_millis(250)).await;
    }
}
