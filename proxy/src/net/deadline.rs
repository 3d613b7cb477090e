//! A deadline that moves with every request without touching the timer each time.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Moves by writing a field; the timer underneath is armed again only when it fires too early.
#[derive(Debug, Default)]
pub struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Sets the deadline to `after` from now.
    pub fn set(&mut self, after: Duration) {
        self.set_at(Instant::now() + after);
    }

    /// Sets the deadline.
    pub fn set_at(&mut self, at: Instant) {
        self.at = Some(at);
    }

    /// No deadline.
    pub fn clear(&mut self) {
        self.at = None;
    }

    /// True without a deadline.
    pub fn is_clear(&self) -> bool {
        self.at.is_none()
    }

    /// Ready when the deadline has passed. Without a deadline never ready, and no wake-up is registered.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
    }
}
