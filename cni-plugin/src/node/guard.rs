//! When the agent may write: at once, but not in an endless fight with another component.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use crate::log::Event;

/// When to try again what failed.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// Repairs within [`WINDOW`] after which somebody else is said to fight us, and repairs come every [`HOLD`] only.
const FIGHT: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
const HOLD: Duration = Duration::from_secs(10);

/// One of the two things that are kept.
#[derive(Default)]
pub(super) struct Guard {
    /// It was in place before, so whatever changed it was not us.
    pub(super) placed: bool,
    /// Repairs since `window`.
    repairs: u32,
    window: Option<Instant>,
    held_until: Option<Instant>,
    /// Why it could not be written, said once.
    pub(super) failure: Option<String>,
}

impl Guard {
    /// May it be written now? Else how long not.
    pub(super) fn allowed(&mut self, now: Instant, file: &Path) -> Result<(), Duration> {
        if let Some(left) =
            self.held_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
        {
            return Err(left);
        }
        if self.held_until.take().is_some() || !self.placed {
            return Ok(());
        }
        if self.window.is_none_or(|start| now.saturating_duration_since(start) > WINDOW) {
            (self.window, self.repairs) = (Some(now), 0);
        }
        self.repairs = self.repairs.saturating_add(1);
        if self.repairs <= FIGHT {
            return Ok(());
        }
        self.held_until = Some(now + HOLD);
        if self.repairs > FIGHT.saturating_add(1) {
            return Err(HOLD);
        }
        Event {
            file: Some(file),
            reason: Some(
                "another component changes it again and again: find it in the logs of the node's other agents and have it \
                 leave this file alone; until then it is repaired every 10 seconds only",
            ),
            ..Event::error("repairs are slowed down")
        }
        .say();
        Err(HOLD)
    }

    /// Says what was written, or why not; when to look again.
    pub(super) fn done(&mut self, file: &Path, result: io::Result<()>, event: Event<'_>) -> Duration {
        match result {
            Ok(()) => {
                self.placed = true;
                self.failure = None;
                event.say();
                Duration::MAX
            }
            Err(error) => {
                let reason = error.to_string();
                if self.failure.as_ref() != Some(&reason) {
                    Event { file: Some(file), reason: Some(&reason), ..Event::error("can not be written; trying on") }
                        .say();
                }
                self.failure = Some(reason);
                RETRY
            }
        }
    }
}
