//! Counts the frames that a peer sends and that move nothing: floods of them cost the receiver work and the sender next to none.
//!
//! What such a frame costs comes back with time, with requests, and with what is sent to the peer: updates of its windows follow that.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes of a frame's header (RFC 9113, 4.1).
const HEADER: usize = 9;
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
/// The preface of a client.
const PREFACE: usize = 24;

/// The peer sends too many frames that move nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer floods the connection with HTTP/2 control frames")]
pub struct Flood;

/// Follows the frames in a stream of bytes.
#[derive(Debug)]
pub struct FrameGuard {
    /// Payload (or preface) that is still to come.
    skip: usize,
    header: [u8; HEADER],
    has: usize,
    left: u64,
    at: Instant,
}

impl FrameGuard {
    /// For what a client sends, or a server.
    pub fn new(from_client: bool) -> Self {
        let skip = if from_client { PREFACE } else { 0 };
        Self { skip, header: [0; HEADER], has: 0, left: MOST, at: Instant::now() }
    }

    /// So many bytes were sent to the peer.
    pub fn sent(&mut self, bytes: usize) {
        let back = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(COST) / BYTES;
        self.left = self.left.saturating_add(back).min(MOST);
    }

    /// These bytes have come.
    ///
    /// # Errors
    /// [`Flood`]: the connection is to be closed.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        self.read_at(bytes, &Instant::now)
    }

    fn read_at(&mut self, mut bytes: &[u8], now: &impl Fn() -> Instant) -> Result<(), Flood> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = (HEADER - self.has).min(bytes.len());
            let (piece, rest) = bytes.split_at(taken);
            if let Some(room) = self.header.get_mut(self.has..self.has + taken) {
                room.copy_from_slice(piece);
            }
            self.has += taken;
            bytes = rest;
            if self.has == HEADER {
                self.has = 0;
                self.frame(now)?;
            }
        }
    }

    fn frame(&mut self, now: &impl Fn() -> Instant) -> Result<(), Flood> {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const END_STREAM: u8 = 1;
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.skip = length;
        match kind {
            HEADERS => {
                self.left = self.left.saturating_add(EACH_REQUEST).min(MOST);
                Ok(())
            }
            DATA if length > 0 || flags & END_STREAM != 0 => Ok(()),
            _ => self.charge(now),
        }
    }

    fn charge(&mut self, now: &impl Fn() -> Instant) -> Result<(), Flood> {
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

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(payload).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(HEADER + payload, 0xff);
        bytes
    }

    fn until_flood(guard: &mut FrameGuard, frames: &[u8]) -> Option<usize> {
        let now = guard.at;
        (0..20_000).find(|_| guard.read_at(frames, &|| now).is_err())
    }

    #[test]
    fn floods_are_found_and_ordinary_traffic_is_not() {
        let rapid_reset = [frame(1, 5, 30), frame(3, 0, 4)].concat();
        for (what, flood) in [
            ("ping", frame(6, 0, 8)),
            ("settings", frame(4, 0, 6)),
            ("priority", frame(2, 0, 5)),
            ("empty data", frame(0, 0, 0)),
            ("window updates", frame(8, 0, 4)),
            ("continuation", frame(9, 0, 100)),
            ("unknown", frame(0xee, 0, 3)),
            ("rapid reset", rapid_reset),
        ] {
            let at = until_flood(&mut FrameGuard::new(false), &flood);
            assert!(at.is_some_and(|at| (1999..=4001).contains(&at)), "{what}: {at:?}");
        }
        for (what, traffic) in [
            ("requests", [frame(1, 4, 30), frame(0, 1, 100)].concat()),
            ("empty bodies", [frame(1, 4, 30), frame(0, 1, 0)].concat()),
            ("every second one cancelled", [frame(1, 5, 30), frame(1, 5, 30), frame(3, 0, 4)].concat()),
        ] {
            assert_eq!(until_flood(&mut FrameGuard::new(false), &traffic), None, "{what}");
        }
    }

    #[test]
    fn what_is_spent_comes_back() {
        let mut guard = FrameGuard::new(false);
        let ping = frame(6, 0, 8);
        assert!(until_flood(&mut guard, &ping).is_some());
        guard.skip = 0;
        guard.at -= Duration::from_secs(1);
        let now = guard.at + Duration::from_secs(1);
        assert_eq!((0..1000).find(|_| guard.read_at(&ping, &|| now).is_err()), Some(200));
        // A download: two updates of windows for each 16 kB.
        for _ in 0..50_000 {
            guard.sent(16 * 1024);
            guard.read(&frame(8, 0, 4)).unwrap();
            guard.read(&frame(8, 0, 4)).unwrap();
        }
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = vec![0; PREFACE];
        for _ in 0..3000 {
            bytes.extend(frame(6, 0, 8));
        }
        let whole = FrameGuard::new(true).read(&bytes);
        assert_eq!(whole, Err(Flood));
        for size in [1, 2, 7, 9, 10, 100] {
            let mut guard = FrameGuard::new(true);
            let end = bytes.chunks(size).position(|piece| guard.read(piece).is_err()).unwrap() * size;
            assert!(end.abs_diff(PREFACE + 2000 * 17) <= 17 + size, "{size}: {end}");
        }
    }
}
