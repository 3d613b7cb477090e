//! One leader among the replicas, by a Lease: whoever holds it writes what only one should write.
//!
//! As Kubernetes' own components do it: a holder that has not renewed for the length of the lease, by the clock of whoever
//! watches it, has lost it; every write names the version that was read, so two can not take it at once. It is no fence: a leader
//! that was stopped may write once more when it wakes, so what leaders write names the version that they read as well.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch as state,
    time::{Instant, sleep, timeout},
};

use super::{MANAGER, backoff::spread, code, explain};
use crate::metrics::Metrics;

/// The Lease.
pub(super) const NAME: &str = "weir-control";
/// A holder that is silent for so long has lost it.
const LENGTH: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long gives up, before another takes over.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Between two tries.
const PERIOD: Duration = Duration::from_secs(3);
/// Time for one try.
const PATIENCE: Duration = Duration::from_secs(5);

/// The own name among replicas.
pub(super) fn replica(name: &str) -> String {
    let random = RandomState::new().build_hasher().finish();
    if name.is_empty() { format!("weir-control-{random:016x}") } else { name.to_owned() }
}

struct Candidate {
    api: Api<Lease>,
    me: String,
    /// What was seen of another holder, and when.
    rival: Option<(Option<String>, Instant)>,
    renewed: Instant,
}

/// Tries to be the leader until the shutdown, and hands over then.
pub(super) async fn run(
    client: Client,
    namespace: String,
    me: String,
    leading: state::Sender<bool>,
    mut shutdown: state::Receiver<bool>,
    metrics: Arc<Metrics>,
) {
    let api = Api::namespaced(client, &namespace);
    let mut candidate = Candidate { api, me, rival: None, renewed: Instant::now() };
    let mut troubled = false;
    loop {
        let led = *leading.borrow();
        let result = timeout(PATIENCE, candidate.attempt()).await;
        let leads = match result {
            Ok(Ok(leads)) => {
                troubled = false;
                leads
            }
            failed => {
                if !std::mem::replace(&mut troubled, true) {
                    let reason = match failed {
                        Ok(Err(error)) => explain(&error),
                        _ => "no answer in time".into(),
                    };
                    tracing::warn!(lease = NAME, reason, "the lease can not be read or written; trying again");
                }
                led && candidate.renewed.elapsed() < GIVE_UP
            }
        };
        if leads != led {
            tracing::info!(replica = candidate.me, leads, "leadership has changed");
            metrics.leader.set(usize::from(leads));
            leading.send_replace(leads);
        }
        tokio::select! {
            () = sleep(spread(PERIOD)) => {}
            _ = shutdown.wait_for(|down| *down) => break,
        }
    }
    if leading.send_replace(false) {
        metrics.leader.set(0);
        if timeout(PATIENCE, candidate.release()).await.is_err() {
            tracing::warn!(lease = NAME, "the lease was not handed over in time");
        }
    }
}

impl Candidate {
    /// Takes the lease, or renews it; says whether it is ours.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let result = match self.api.get_opt(NAME).await? {
            None => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None)) };
                self.api.create(&parameters(), &lease).await
            }
            Some(mut lease) => {
                let spec = lease.spec.take().unwrap_or_default();
                let holder = spec.holder_identity.as_deref().unwrap_or_default();
                if holder != self.me && !holder.is_empty() && !self.is_over(lease.metadata.resource_version.as_ref()) {
                    return Ok(false);
                }
                lease.spec = Some(self.spec(Some(spec)));
                self.api.replace(NAME, &parameters(), &lease).await
            }
        };
        match result {
            Ok(_) => {
                self.renewed = Instant::now();
                self.rival = None;
                Ok(true)
            }
            // Another was first.
            Err(error) if matches!(code(&error), 404 | 409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True where another holder has been silent for the length of the lease, by our own clock.
    fn is_over(&mut self, version: Option<&String>) -> bool {
        match &self.rival {
            Some((seen, since)) if seen.as_ref() == version => since.elapsed() >= LENGTH,
            _ => {
                self.rival = Some((version.cloned(), Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let before = before.unwrap_or_default();
        let same = before.holder_identity.as_ref() == Some(&self.me);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(LENGTH.as_secs()).ok(),
            acquire_time: if same { before.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(before.lease_transitions.unwrap_or_default().saturating_add(i32::from(!same))),
            ..LeaseSpec::default()
        }
    }

    /// Gives it back, so that another need not wait.
    async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.me)) else {
            return;
        };
        spec.holder_identity = Some(String::new());
        self.api.replace(NAME, &parameters(), &lease).await.ok(); // it runs out by itself
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}
