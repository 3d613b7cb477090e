//! Counts the frames of a peer that move nothing.
//!
//! Floods of them cost the receiver work and the sender next to none. What such a frame costs comes back with time, with requests, and
//! with what is sent to the peer: updates of its windows follow that.

use std::time::Duration;

use tokio::time::Instant;

use super::frame::{FrameHeader, Kind, flag};

/// What one frame costs.
const COST: u64 = 1000;
/// As many frames at once as nobody needs.
const MOST: u64 = 2000 * COST;
/// Comes back in a second.
const EACH_SECOND: u64 = 200 * COST;
/// Comes back with a request: who cancels every second one does not run out.
const EACH_REQUEST: u64 = COST / 2;
/// Comes back for so many bytes sent to the peer.
const BYTES: u64 = 256;

/// The peer sends too many frames that move nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer floods the connection with HTTP/2 control frames")]
pub(super) struct Flood;

/// What a peer may still send that moves nothing.
#[derive(Debug)]
pub(super) struct Guard {
    left: u64,
    at: Instant,
}

impl Default for Guard {
    fn default() -> Self {
        Self { left: MOST, at: Instant::now() }
    }
}

impl Guard {
    /// So many bytes were sent to the peer.
    pub(super) fn sent(&mut self, bytes: usize) {
        let back = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(COST) / BYTES;
        self.left = self.left.saturating_add(back).min(MOST);
    }

    /// A frame begins.
    ///
    /// # Errors
    /// [`Flood`]: the connection is to be closed.
    pub(super) fn frame(&mut self, frame: &FrameHeader) -> Result<(), Flood> {
        match frame.kind {
            Kind::Headers => {
                self.left = self.left.saturating_add(EACH_REQUEST).min(MOST);
                Ok(())
            }
            Kind::Data if frame.length > 0 || frame.has(flag::END_STREAM) => Ok(()),
            _ => self.charge(),
        }
    }

    /// Something that moves nothing has cost work: a frame, or a stream that was ended for what came on it.
    ///
    /// # Errors
    /// [`Flood`]: the connection is to be closed.
    pub(super) fn charge(&mut self) -> Result<(), Flood> {
        self.charge_at(Instant::now)
    }

    fn charge_at(&mut self, now: impl Fn() -> Instant) -> Result<(), Flood> {
        if self.left < COST {
            let now = now();
            let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(60));
            self.at = now;
            let back = u64::try_from(passed.as_millis()).unwrap_or(0).saturating_mul(EACH_SECOND) / 1000;
            self.left = self.left.saturating_add(back).min(MOST);
        }
        self.left = self.left.checked_sub(COST).ok_or(Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, flags: u8, length: usize) -> FrameHeader {
        FrameHeader { length, kind, flags, stream: 1 }
    }

    fn until_flood(frames: &[FrameHeader]) -> Option<usize> {
        let mut guard = Guard { at: Instant::now() + Duration::from_secs(3600), ..Guard::default() }; // time gives nothing back
        (0..20_000).find(|_| frames.iter().any(|frame| guard.frame(frame).is_err()))
    }

    #[test]
    fn floods_are_found_and_ordinary_traffic_is_not() {
        for (what, flood) in [
            ("ping", vec![frame(Kind::Ping, 0, 8)]),
            ("settings", vec![frame(Kind::Settings, 0, 6)]),
            ("priority", vec![frame(Kind::Priority, 0, 5)]),
            ("empty data", vec![frame(Kind::Data, 0, 0)]),
            ("window updates", vec![frame(Kind::WindowUpdate, 0, 4)]),
            ("continuation", vec![frame(Kind::Continuation, 0, 100)]),
            ("unknown", vec![frame(Kind::Unknown, 0, 3)]),
            ("rapid reset", vec![frame(Kind::Headers, 5, 30), frame(Kind::Reset, 0, 4)]),
        ] {
            let at = until_flood(&flood);
            assert!(at.is_some_and(|at| (1999..=4001).contains(&at)), "{what}: {at:?}");
        }
        let (head, whole) = (frame(Kind::Headers, flag::END_HEADERS, 30), frame(Kind::Headers, 5, 30));
        for (what, traffic) in [
            ("requests", vec![head, frame(Kind::Data, flag::END_STREAM, 100)]),
            ("empty bodies", vec![head, frame(Kind::Data, flag::END_STREAM, 0)]),
            ("every second one cancelled", vec![whole, whole, frame(Kind::Reset, 0, 4)]),
        ] {
            assert_eq!(until_flood(&traffic), None, "{what}");
        }
    }

    #[test]
    fn what_is_spent_comes_back() {
        let mut guard = Guard::default();
        let then = guard.at;
        assert_eq!((0..5000).find(|_| guard.charge_at(|| then).is_err()), Some(2000));
        let later = then + Duration::from_secs(1);
        assert_eq!((0..1000).find(|_| guard.charge_at(|| later).is_err()), Some(200));
        // A download: two updates of windows for each 16 kB.
        for _ in 0..50_000 {
            guard.sent(16 * 1024);
            assert!(guard.charge_at(|| later).is_ok() && guard.charge_at(|| later).is_ok());
        }
    }
}
