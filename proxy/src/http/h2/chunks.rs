//! Chunks of data in the order in which they came.
//!
//! A chunk may be a part of the buffer that it was read into, and keeps all of it: a peer that sends a byte a frame would have much kept for
//! little. Small ones are therefore copied, and together where there are several.

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

/// Below this size a chunk behind others is copied.
const SMALL: usize = 4 * 1024;

/// Chunks, and how many of them have been looked at.
#[derive(Debug, Default)]
pub struct Chunks {
    whole: SmallVec<[Bytes; 2]>,
    /// Small ones behind them.
    tail: BytesMut,
    next: usize,
}

impl Chunks {
    /// Puts a chunk behind the others. A single one is not copied: most messages are no more.
    pub fn push(&mut self, data: &Bytes) {
        if data.is_empty() {
        } else if data.len() < SMALL && !(self.whole.is_empty() && self.tail.is_empty()) {
            self.tail.extend_from_slice(data);
        } else {
            self.close();
            self.whole.push(data.clone());
        }
    }

    /// The same for bytes that are still in the buffer they were read into: `from` loses them.
    pub fn push_from(&mut self, from: &mut BytesMut, len: usize) {
        if len >= SMALL {
            self.close();
            self.whole.push(from.split_to(len).freeze());
            return;
        }
        let data = from.get(..len).unwrap_or_default();
        if self.whole.is_empty() && self.tail.is_empty() {
            self.whole.push(Bytes::copy_from_slice(data)); // of just this size: most messages are no more
        } else {
            self.tail.extend_from_slice(data);
        }
        from.advance(len);
    }

    /// The next one, which stays.
    pub fn look(&mut self) -> Option<Bytes> {
        if self.next >= self.whole.len() {
            self.close();
        }
        let chunk = self.whole.get(self.next)?.clone();
        self.next = self.next.saturating_add(1);
        Some(chunk)
    }

    /// The next one, which is gone from here.
    pub fn take(&mut self) -> Option<Bytes> {
        let chunk = self.look()?;
        if let Some(place) = self.next.checked_sub(1).and_then(|at| self.whole.get_mut(at)) {
            *place = Bytes::new();
        }
        if self.is_at_end() {
            self.whole.clear();
            self.next = 0;
        }
        Some(chunk)
    }

    /// All of them, copied together.
    pub fn all(&self) -> Bytes {
        match (self.whole.as_slice(), &self.tail[..]) {
            ([], tail) => Bytes::copy_from_slice(tail),
            ([one], []) => one.clone(),
            (whole, tail) => whole.iter().map(|chunk| &chunk[..]).chain([tail]).collect::<Vec<_>>().concat().into(),
        }
    }

    /// True when all have been looked at.
    pub fn is_at_end(&self) -> bool {
        self.next >= self.whole.len() && self.tail.is_empty()
    }

    /// From the first one again.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    fn close(&mut self) {
        if !self.tail.is_empty() {
            self.whole.push(self.tail.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_become_one_and_keep_their_order() {
        let mut chunks = Chunks::default();
        let large = Bytes::from(vec![b'L'; SMALL]);
        for part in [&b"a"[..], b"b", b"c", &large, b"", b"d", b"e"] {
            chunks.push(&Bytes::copy_from_slice(part));
        }
        let look = |chunks: &mut Chunks| -> Vec<usize> {
            std::iter::from_fn(|| chunks.look()).map(|chunk| chunk.len()).collect()
        };
        assert_eq!(look(&mut chunks), [1, 2, SMALL, 2]);
        assert!(chunks.is_at_end());
        chunks.rewind();
        assert_eq!(look(&mut chunks), [1, 2, SMALL, 2]);
    }

    #[test]
    fn small_parts_of_a_buffer_do_not_keep_it() {
        let mut buffer = BytesMut::from(&vec![b'x'; 3 * SMALL][..]);
        let mut chunks = Chunks::default();
        for len in [1, 2, 3, SMALL, 4] {
            chunks.push_from(&mut buffer, len);
        }
        assert_eq!(buffer.len(), 2 * SMALL - 10);
        let taken: Vec<usize> = std::iter::from_fn(|| chunks.take()).map(|chunk| chunk.len()).collect();
        assert_eq!(taken, [1, 5, SMALL, 4]);
    }

    #[test]
    fn what_is_taken_is_not_kept() {
        let mut chunks = Chunks::default();
        let buffer = Bytes::from(vec![b'x'; 3 * SMALL]);
        chunks.push(&buffer);
        assert_eq!(chunks.take().unwrap().len(), 3 * SMALL);
        assert!(buffer.is_unique() && chunks.is_at_end() && chunks.take().is_none());
        for _ in 0..1000 {
            chunks.push(&buffer.slice(..1));
        }
        let first = chunks.take().unwrap();
        assert_eq!((first.len(), chunks.take().unwrap().len()), (1, 999));
        drop(first);
        assert!(buffer.is_unique() && chunks.is_at_end());
    }
}
