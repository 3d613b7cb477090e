//! How the pod gets its certificate and keeps it fresh.
//!
//! Makes a key in memory (it never touches a disk), has it signed by the control plane with the pod's token, and installs the
//! result in [`MeshTls`]. Renews at half life, keeps what is still valid while a renewal fails, and takes over new roots when
//! their file changes. What the certificate is used for is not its business.

mod files;
mod issue;
mod schedule;
mod signer;
#[cfg(test)]
mod tests;

pub use files::FileError;
pub use signer::{GrpcSigner, SignError, SignRequest, Signer};

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use weir_mesh::Identity;

use self::{
    files::Roots,
    issue::{Issued, Request},
    schedule::{Backoff, Jitter},
};
use crate::{
    admin::readiness::{self, Readiness},
    telemetry::Registry,
    tls::{InstallError, MeshTls},
};

/// How often the files are looked at, and the wall clock (which may jump over a suspension of the machine).
const POLL: Duration = Duration::from_secs(10);
/// Longest time for one call to the control plane.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// A certificate is not asked for more often than this, however short it lives.
const SHORTEST_TERM: Duration = Duration::from_secs(1);

/// What is needed besides a [`Signer`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Who we are; a certificate for anybody else is refused.
    pub identity: Identity,
    /// The projected token. Read for every call: the kubelet replaces it.
    pub token_file: PathBuf,
    /// The mesh's roots, PEM. Followed.
    pub root_file: PathBuf,
    /// How long a certificate is asked for.
    pub validity: Duration,
    /// Seed of the jitter; `None` for a random one.
    pub seed: Option<u64>,
}

impl Config {
    /// With the usual validity.
    pub fn new(identity: Identity, token_file: PathBuf, root_file: PathBuf) -> Self {
        Self { identity, token_file, root_file, validity: Duration::from_secs(24 * 3600), seed: None }
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Token or roots can not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The control plane did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The key or the request could not be made.
    #[error("no certificate request could be made: {0}")]
    Request(#[source] rcgen::Error),
    /// What came back is no certificate chain.
    #[error("the control plane's answer is not a certificate chain: {0}")]
    Answer(&'static str),
    /// What came back is somebody else's.
    #[error("the control plane signed for {got}, asked was {asked}")]
    Foreign {
        /// Who we are.
        asked: Identity,
        /// Whose certificate came.
        got: Identity,
    },
    /// What came back is not usable.
    #[error(transparent)]
    Install(#[from] InstallError),
}

impl IdentityError {
    /// A word for metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Sign(error) => error.reason(),
            Self::Request(_) => "request",
            Self::Answer(_) | Self::Foreign { .. } => "answer",
            Self::Install(_) => "install",
        }
    }
}

/// Gets a certificate and keeps it fresh, for as long as it is polled. To be spawned on the control thread.
pub async fn run<S: Signer>(
    config: Config,
    tls: MeshTls,
    signer: S,
    readiness: Readiness,
    registry: Arc<Registry>,
) -> std::convert::Infallible {
    let jitter = config.seed.map_or_else(Jitter::random, Jitter::seeded);
    let mut keeper = Keeper {
        config,
        tls,
        signer,
        readiness,
        registry,
        roots: Roots::default(),
        issued: None,
        backoff: Backoff::default(),
        jitter,
        next: Instant::now(),
        last_error: None,
    };
    loop {
        keeper.step(Now { monotonic: Instant::now(), wall: SystemTime::now() }).await;
        let next = keeper.next.min(Instant::now() + POLL);
        tokio::time::sleep_until(next.into()).await;
    }
}

/// Both clocks. Waits are counted on the monotonic one; certificates are valid by the other, which may jump.
#[derive(Debug, Clone, Copy)]
struct Now {
    monotonic: Instant,
    wall: SystemTime,
}

struct Keeper<S> {
    config: Config,
    tls: MeshTls,
    signer: S,
    readiness: Readiness,
    registry: Arc<Registry>,
    roots: Roots,
    issued: Option<Issued>,
    backoff: Backoff,
    jitter: Jitter,
    /// When the next certificate is asked for.
    next: Instant,
    last_error: Option<String>,
}

impl<S: Signer> Keeper<S> {
    async fn step(&mut self, now: Now) {
        self.follow_roots(now);
        let due_by_wall = self.issued.as_ref().is_some_and(|issued| now.wall >= issued.renew_at);
        // A wall clock that jumped makes a renewal due at once, but never cuts a back-off short.
        if now.monotonic >= self.next || (due_by_wall && self.backoff.is_fresh()) {
            match tokio::time::timeout(CALL_LIMIT, self.renew(now)).await {
                Ok(Ok(())) => self.renewed(),
                Ok(Err(error)) => self.failed(now, error.reason(), &error.to_string()),
                Err(_) => self.failed(now, "timeout", "the control plane did not answer in time"),
            }
        }
        self.publish(now);
    }

    /// New roots take effect without a new certificate, unless ours does not stand on them: then one is asked for at once.
    fn follow_roots(&mut self, now: Now) {
        match self.roots.follow(&self.config.root_file) {
            Ok(false) => {}
            Ok(true) => {
                let Some(issued) = &mut self.issued else { return };
                // What came with the chain bridges the time until the file has it. Once the file speaks again it is the newer
                // word: a root that was taken out of it must not live on because an older chain brought it along.
                issued.roots.clear();
                match self.tls.install(issued.chain.clone(), issued.key.clone_key(), issued.anchors(&self.roots)) {
                    Ok(facts) => tracing::info!(generation = facts.generation, "new root certificates are in use"),
                    Err(error) => {
                        tracing::warn!(%error, "the certificate does not fit the new roots: asking for another");
                        self.next = now.monotonic;
                    }
                }
            }
            Err(error) if self.issued.is_some() => {
                tracing::warn!(%error, "the root certificates stay as they were");
            }
            // Said by the attempt that needs them.
            Err(_) => {}
        }
    }

    async fn renew(&mut self, now: Now) -> Result<(), IdentityError> {
        self.roots.required()?;
        let token = files::token(&self.config.token_file)?;
        let request = Request::new()?;
        let answer = self
            .signer
            .sign(SignRequest {
                csr_pem: &request.csr_pem,
                token: &token,
                validity: self.config.validity,
                roots: &self.roots.pem,
            })
            .await?;
        let mut issued = request.fulfilled(&answer)?;
        let got = issued.identity()?;
        if got != self.config.identity {
            return Err(IdentityError::Foreign { asked: self.config.identity.clone(), got });
        }
        let facts = self.tls.install(issued.chain.clone(), issued.key.clone_key(), issued.anchors(&self.roots))?;
        let expiry = at(facts.svid.not_after);
        // By a clock that is behind there would be more left than the certificate's whole life.
        let whole = expiry.duration_since(at(facts.svid.not_before)).unwrap_or_default();
        let left = expiry.duration_since(now.wall).unwrap_or_default().min(whole);
        let wait = self.jitter.around_half(left).max(SHORTEST_TERM);
        issued.expiry = expiry;
        issued.renew_at = now.wall + wait;
        self.next = now.monotonic + wait;
        self.issued = Some(issued);
        Ok(())
    }

    fn renewed(&mut self) {
        self.backoff = Backoff::default();
        self.last_error = None;
        self.registry.proxy.certificate_renewals.inc();
        if let Some(facts) = self.tls.facts() {
            tracing::info!(
                identity = %facts.svid.identity,
                serial = facts.svid.serial,
                not_after = facts.svid.not_after,
                generation = facts.generation,
                "certificate installed"
            );
        }
    }

    fn failed(&mut self, now: Now, reason: &'static str, error: &str) {
        self.registry.proxy.certificate_renew_failures.inc([reason]);
        let mut wait = self.jitter.add(self.backoff.next());
        if let Some(issued) = &self.issued {
            let left = issued.expiry.duration_since(now.wall).unwrap_or_default();
            if !left.is_zero() {
                wait = wait.min(left);
            }
        }
        self.next = now.monotonic + wait;
        tracing::warn!(
            reason,
            error,
            retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "no new certificate"
        );
        self.last_error = Some(error.to_owned());
    }

    fn publish(&self, now: Now) {
        let metrics = &self.registry.proxy;
        if let Some(facts) = self.tls.facts() {
            metrics.certificate_expiry.set(facts.svid.not_after);
            metrics.certificate_issued.set(facts.svid.not_before);
            metrics.root_expiry.set(facts.roots.iter().map(|root| root.not_after).min().unwrap_or_default());
        }
        let because = self.last_error.as_deref().unwrap_or("it was not asked for yet");
        let state = match &self.issued {
            None => Err(format!("there is none, because {because}")),
            Some(issued) if issued.expiry <= now.wall => Err(format!("it has expired, because {because}")),
            Some(_) => Ok(()),
        };
        self.readiness.set(readiness::CERTIFICATE, state);
    }
}

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
