//! Follows the frames that a peer sends: it counts those that move nothing, and knows when a head has begun and not ended.
//!
//! Floods of frames that move nothing cost the receiver work and the sender next to none. What such a frame costs comes back with time,
//! with requests, and with what is sent to the peer: updates of its windows follow that.

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
/// Data frames of less than this are small.
const SMALL: usize = 256;
/// So many small ones are read before those who wait for them have their turn: each takes more memory than it has data.
const AT_ONCE: u32 = 2000;
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
    /// The frame that `skip` belongs to, or the one before: whether its list of headers goes on behind it.
    list: List,
    /// Lists of headers that have begun.
    lists: u64,
    /// Small frames of data since the last turn of others.
    small: u32,
    left: u64,
    at: Instant,
}

/// Where a list of headers stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// None is under way.
    None,
    /// Its last frame is being read.
    Last,
    /// Another frame of it follows.
    Continued,
}

impl FrameGuard {
    /// For what a client sends, or a server.
    pub fn new(from_client: bool) -> Self {
        let skip = if from_client { PREFACE } else { 0 };
        Self { skip, header: [0; HEADER], has: 0, list: List::None, lists: 0, small: 0, left: MOST, at: Instant::now() }
    }

    /// So many bytes were sent to the peer.
    pub fn sent(&mut self, bytes: usize) {
        let back = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(COST) / BYTES;
        self.left = self.left.saturating_add(back).min(MOST);
    }

    /// The number of the head that has begun and not ended: a list of headers, or the beginning of a frame. Nothing else can come on the
    /// connection before its end.
    pub fn unfinished_head(&self) -> Option<u64> {
        let unfinished = match self.list {
            List::Continued => true,
            List::Last => self.skip > 0,
            List::None => false,
        };
        (unfinished || self.has > 0).then_some(self.lists)
    }

    /// True from time to time while many small frames come: then others have their turn.
    pub fn is_others_turn(&mut self) -> bool {
        let turn = self.small >= AT_ONCE;
        if turn {
            self.small = 0;
        }
        turn
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
        const CONTINUATION: u8 = 9;
        const END_STREAM: u8 = 1;
        const END_HEADERS: u8 = 4;
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.skip = length;
        if kind != CONTINUATION {
            self.lists = self.lists.wrapping_add(1);
        }
        self.list = match kind {
            HEADERS | CONTINUATION if flags & END_HEADERS == 0 => List::Continued,
            HEADERS | CONTINUATION => List::Last,
            _ => List::None,
        };
        match kind {
            HEADERS => {
                self.left = self.left.saturating_add(EACH_REQUEST).min(MOST);
                Ok(())
            }
            DATA if length > 0 || flags & END_STREAM != 0 => {
                self.small = self.small.saturating_add(u32::from(length < SMALL));
                Ok(())
            }
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
    fn a_head_is_unfinished_from_its_first_byte_to_its_last() {
        let begun = frame(1, 0, 30);
        let more = frame(9, 0, 10);
        let last = frame(9, 4, 10);
        let whole = [&begun[..], &more, &last].concat();
        for size in [1, 3, 9, 50] {
            let mut guard = FrameGuard::new(false);
            let mut number = None;
            let pieces: Vec<&[u8]> = whole.chunks(size).collect();
            for (at, piece) in pieces.iter().enumerate() {
                guard.read(piece).unwrap();
                let now = guard.unfinished_head();
                assert_eq!(now.is_some(), at + 1 < pieces.len(), "{size}: {at}");
                if at * size > HEADER && at + 1 < pieces.len() {
                    assert_eq!(*number.get_or_insert(now), now, "one head, one number");
                }
            }
            // Between frames, and within the payload of others, nothing is owed.
            let data = frame(0, 0, 100);
            guard.read(&data[..50]).unwrap();
            assert_eq!(guard.unfinished_head(), None);
            guard.read(&data[50..]).unwrap();
            guard.read(&begun[..5]).unwrap();
            assert!(guard.unfinished_head().is_some() && guard.unfinished_head() != number.flatten());
        }
    }

    #[test]
    fn many_small_frames_give_others_their_turn() {
        let mut guard = FrameGuard::new(false);
        let turns = |guard: &mut FrameGuard, frame: &[u8]| {
            (0..10_000).filter(|_| guard.read(frame).is_ok() && guard.is_others_turn()).count()
        };
        assert_eq!(turns(&mut guard, &frame(0, 0, 5)), 5);
        assert_eq!(turns(&mut guard, &frame(0, 0, 1000)), 0);
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
