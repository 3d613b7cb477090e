//! The servers: TLS for proxies, plaintext for people.
//!
//! TLS is our own accept loop in front of tonic, so that the serving certificate can be renewed while it serves, and a slow
//! handshake holds up nobody.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use rustls::{ServerConfig, server::ResolvesServerCert, sign::CertifiedKey};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use weir_xds::{
    ca::CertificateService,
    server::{AdsService, Limits},
};

use crate::{
    admin,
    ca::{CertificateAuthority, Issuing},
    catalog::Catalog,
    metrics::Metrics,
    settings::Settings,
};

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 512;
/// Silence after which a proxy is asked whether it lives, and the time for its answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Time that open requests get at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after an accept that failed (no file descriptors): it recovers, and does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Servers that run.
#[derive(Debug)]
pub struct Serving {
    /// Where proxies connect.
    pub address: SocketAddr,
    /// Where people look.
    pub admin: Option<SocketAddr>,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    others: Vec<JoinHandle<()>>,
    shutdown: watch::Receiver<bool>,
}

/// The serving certificate of the moment.
#[derive(Debug)]
struct Current(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Serving {
    /// Binds the ports and begins to serve.
    ///
    /// # Errors
    /// Where a port can not be bound, or no serving certificate can be made.
    pub async fn start(
        settings: &Settings,
        authority: &Arc<CertificateAuthority>,
        catalog: Arc<Catalog>,
        issuing: Arc<Issuing>,
        metrics: Arc<Metrics>,
        shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let names = settings.server_names();
        let (certificate, renew_in) = authority.serving(&names)?;
        let current = Arc::new(Current(Mutex::new(Arc::new(certificate))));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];

        let bind = |address: SocketAddr, flag: &'static str| async move {
            TcpListener::bind(address).await.with_context(|| format!("{flag} {address}"))
        };
        let listener = bind(settings.listen, "--listen").await?;
        let address = listener.local_addr()?;
        let admin_listener = bind(settings.admin, "--admin").await?;
        let admin_address = admin_listener.local_addr()?;
        let health_listener = match settings.health {
            Some(address) => Some(bind(address, "--health").await?),
            None => None,
        };
        let health_address = health_listener.as_ref().map(TcpListener::local_addr).transpose()?;

        let (accepted, incoming) = mpsc::channel(64);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let mut others = vec![tokio::spawn(accept(listener, acceptor, accepted, shutdown.clone()))];
        others.push(tokio::spawn(renew(authority.clone(), names, current, renew_in)));
        others.push(tokio::spawn(pages(admin_listener, admin::router(catalog.clone(), metrics), shutdown.clone())));
        if let Some(listener) = health_listener {
            // Answers until the process ends: a kubelet that asks during the shutdown is told that it is one.
            let router = admin::health(catalog.clone(), shutdown.clone());
            others.push(tokio::spawn(pages(listener, router, watch::Sender::new(false).subscribe())));
        }

        let ads = AdsService::new(catalog, Limits::default(), shutdown.clone());
        let mut down = shutdown.clone();
        let grpc = tokio::spawn(
            Server::builder()
                .http2_keepalive_interval(Some(KEEP_ALIVE.0))
                .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
                .max_concurrent_streams(Some(16))
                .add_service(ads)
                .add_service(CertificateService::new(issuing))
                .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
                    down.wait_for(|down| *down).await.ok();
                }),
        );
        let health = health_address.map(|address| address.to_string());
        tracing::info!(%address, admin = %admin_address, health, trust_domain = %settings.trust_domain, "serving");
        Ok(Self { address, admin: Some(admin_address), grpc, others, shutdown })
    }

    pub(crate) async fn wait(mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            ended = &mut self.grpc => Some(ended),
            _ = self.shutdown.wait_for(|down| *down) => None,
        };
        let ended = match ended {
            Some(ended) => Ok(ended),
            None => timeout(DRAIN, &mut self.grpc).await,
        };
        for task in &self.others {
            task.abort();
        }
        match ended {
            Ok(result) => result?.context("the server for proxies ended"),
            Err(_) => {
                self.grpc.abort();
                tracing::warn!("some connections did not end in time and were cut");
                Ok(())
            }
        }
    }
}

async fn pages(listener: TcpListener, router: axum::Router, mut down: watch::Receiver<bool>) {
    let end = async move {
        if down.wait_for(|down| *down).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(end).await {
        tracing::error!(%error, "the admin server ended");
    }
}

type Accepted = Result<TlsStream<TcpStream>, std::io::Error>;

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    accepted: mpsc::Sender<Accepted>,
    mut shutdown: watch::Receiver<bool>,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let connection = tokio::select! {
            _ = shutdown.wait_for(|down| *down) => return,
            connection = listener.accept() => connection,
        };
        let (stream, peer) = match connection {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    drop(permit);
                    accepted.send(Ok(stream)).await.ok(); // shutting down
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
            }
        });
    }
}

async fn renew(authority: Arc<CertificateAuthority>, names: Vec<String>, current: Arc<Current>, first: Duration) {
    /// Pause after a failure.
    const RETRY: Duration = Duration::from_secs(60);
    let mut wait = first;
    let mut root = authority.changes();
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = root.next() => {}
        }
        wait = match authority.serving(&names) {
            Ok((certificate, next)) => {
                *current.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
                tracing::info!("the serving certificate was renewed");
                next
            }
            Err(error) => {
                tracing::error!("the serving certificate can not be renewed: {error:#}");
                RETRY
            }
        };
    }
}
