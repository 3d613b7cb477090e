//! A program of the cluster: it can be stopped and started, as by a machine's own manager.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::place::Place;

/// How long a program may take to end by itself. The API server would wait a minute for its clients' connections.
const GRACE: Duration = Duration::from_secs(5);

/// A program with everything that is needed to start it again.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    place: Arc<Place>,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Service {
    /// `arguments` are split at white space: none of ours has any inside.
    pub(crate) fn new(name: &str, place: &Arc<Place>, program: impl AsRef<Path>, arguments: &str, logs: &Path) -> Self {
        Self {
            name: name.to_owned(),
            place: place.clone(),
            program: program.as_ref().to_owned(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            log: logs.join(format!("{}.log", name.replace('/', "-"))),
            child: Mutex::new(None),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = child.as_mut()
            && running.try_wait()?.is_none()
        {
            return Ok(());
        }
        *child = Some(self.spawn()?);
        Ok(())
    }

    /// Starts it again if it has ended by itself: a kubelet does where its runtime is not up yet, and a machine's manager starts it
    /// again then.
    pub(crate) fn revive(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ended) = child.as_mut()
            && ended.try_wait()?.is_some()
        {
            *child = Some(self.spawn()?);
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let errors = log.try_clone()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
        let started = self.place.run(move || Ok(command.spawn()?));
        started.with_context(|| format!("start {} ({})", self.name, self.program.display()))
    }

    /// Stops it; what it started stays.
    pub(crate) fn stop(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut running) = child.take() else { return Ok(()) };
        if running.try_wait()?.is_none() {
            kill(Pid::from_raw(running.id().try_into()?), Signal::SIGTERM)?;
            let end = Instant::now() + GRACE;
            while running.try_wait()?.is_none() {
                if Instant::now() > end {
                    running.kill()?;
                    running.wait()?;
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Why it is not running, if it should be.
    pub(crate) fn trouble(&self) -> Option<String> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.as_mut()?.try_wait().ok()??;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
        Some(format!("{} ended by itself ({status}); it said last:\n{last}", self.name))
    }
}
