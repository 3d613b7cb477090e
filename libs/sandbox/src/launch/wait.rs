//! Waiting until all pods are ready, with a word on what is waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{LOOK, LaunchError, SUPERVISOR, Up, ended, owner::Owner, report::report};
use crate::{
    client::Client,
    pod::{PodStatus, state::ContainerState},
    supervisor::protocol::Status,
};

/// How long all pods must be ready before the sandbox counts as up.
const STEADY: Duration = Duration::from_millis(150);
/// Without news a line comes this often, so that nobody wonders.
const HEARTBEAT: Duration = Duration::from_secs(3);

pub(super) fn wait_until_ready(
    up: &Up,
    interrupted: &Arc<AtomicBool>,
    progress: &mut dyn FnMut(&str),
) -> Result<Client, LaunchError> {
    let client = Client::new(&up.layout);
    let owner = Owner::read(&up.layout).ok_or_else(|| ended(&up.layout))?;
    let begun = Instant::now();
    let mut reporter = Reporter::default();
    let mut steady = None;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Err(LaunchError::Interrupted);
        }
        if !owner.is_alive() {
            return Err(ended(&up.layout));
        }
        match client.status() {
            Ok(status) => {
                reporter.tell(&status, progress);
                // A program without a probe is ready as soon as it runs, even if it ends at once.
                let steady_since = *steady.get_or_insert_with(Instant::now);
                if !status.ready {
                    steady = None;
                } else if steady_since.elapsed() >= STEADY {
                    return Ok(client);
                }
                let hopeless: Vec<_> =
                    status.pods.iter().filter(|(_, pod)| pod.status.hopeless).map(|(name, _)| name.as_str()).collect();
                if !hopeless.is_empty() {
                    return Err(LaunchError::NotReady(report(up, &client, &status, "can not become ready")));
                }
                if begun.elapsed() > up.limit {
                    let what = format!("did not become ready within {} s", up.limit.as_secs());
                    return Err(LaunchError::NotReady(report(up, &client, &status, &what)));
                }
            }
            Err(_) if begun.elapsed() < SUPERVISOR => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(LOOK);
    }
}

/// Tells what changed since it told the last time.
#[derive(Default)]
struct Reporter {
    ready: Vec<String>,
    last: Option<Instant>,
}

impl Reporter {
    fn tell(&mut self, status: &Status, progress: &mut dyn FnMut(&str)) {
        let now = Instant::now();
        let last = *self.last.get_or_insert(now);
        let mut news = false;
        for (name, pod) in &status.pods {
            if pod.status.ready && !self.ready.contains(name) {
                self.ready.push(name.clone());
                progress(&format!("ready: {name}"));
                news = true;
            }
        }
        if news {
            self.last = Some(now);
        } else if now.duration_since(last) > HEARTBEAT {
            let waiting: Vec<String> = status
                .pods
                .iter()
                .filter(|(_, pod)| !pod.status.ready)
                .map(|(name, pod)| match why(&pod.status) {
                    Some(reason) => format!("{name} ({reason})"),
                    None => name.clone(),
                })
                .collect();
            progress(&format!("waiting for {}", waiting.join(", ")));
            self.last = Some(now);
        }
    }
}

/// What a pod waits for, where that is known: its own reason, or that of a container which was started before.
fn why(pod: &PodStatus) -> Option<&str> {
    let containers = pod.containers.iter().filter(|container| container.restarts > 0);
    let mut reasons = containers.filter_map(|container| match &container.state {
        ContainerState::Waiting(reason) => Some(reason.as_str()),
        _ => None,
    });
    pod.message.as_deref().or_else(|| reasons.next())
}
