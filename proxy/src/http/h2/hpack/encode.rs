//! Lists of headers as they go out.

use std::{collections::VecDeque, hash::Hasher};

use bytes::{BufMut, BytesMut};
use rustc_hash::FxHasher;

use super::{ENTRY, TABLE, fixed};

/// Values that were seen are remembered by so many hashes.
const SEEN: usize = 64;

/// How a header may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// As it is shortest.
    Plain,
    /// By no hop's table (RFC 7541, 7.1.3): whoever can send through a table can guess what is in it.
    Secret,
}

/// Fills the table that the peer follows.
///
/// A header enters when it comes for the second time: ids and times, which never do, push nothing out. Text is not coded: a copy costs both
/// sides less, and what comes often is an index anyway.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
    /// The peer has changed what it keeps, and this was the least of it: said at the beginning of the next list (RFC 7541, 4.2).
    resized: Option<usize>,
    seen: Option<Box<[u32; SEEN]>>,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    name: usize,
    bytes: Box<[u8]>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, max: TABLE, resized: None, seen: None }
    }
}

impl Encoder {
    /// The peer keeps a table of so many bytes; never more than ours is.
    pub(crate) fn resize(&mut self, size: usize) {
        let size = size.min(TABLE);
        if size != self.max {
            self.max = size;
            self.resized = Some(self.resized.map_or(size, |least| least.min(size)));
            self.evict(0);
        }
    }

    /// A list begins.
    pub(crate) fn begin(&mut self, out: &mut BytesMut) {
        if let Some(least) = self.resized.take() {
            if least < self.max {
                integer(out, 0x20, 5, least);
            }
            integer(out, 0x20, 5, self.max);
        }
    }

    /// Writes one header; its name is in lower case.
    pub(crate) fn field(&mut self, out: &mut BytesMut, name: &[u8], value: &[u8], how: Field) {
        let known = fixed::name(name);
        if how == Field::Secret {
            return literal(out, 0x10, 4, known, name, value);
        }
        let same = |entry: &&(&[u8], &[u8])| entry.0 == name;
        if known > 0 {
            let from = known.saturating_sub(1);
            let alike = fixed::TABLE.get(from..).unwrap_or_default().iter().take_while(same);
            if let Some(at) = alike.enumerate().find_map(|(at, entry)| (entry.1 == value).then_some(at)) {
                return integer(out, 0x80, 7, known.saturating_add(at));
            }
        }
        let hash = hash(name, value);
        let is = |entry: &Entry| entry.hash == hash && entry.bytes.split_at_checked(entry.name) == Some((name, value));
        if let Some(at) = self.entries.iter().position(is) {
            return integer(out, 0x80, 7, fixed::TABLE.len().saturating_add(1).saturating_add(at));
        }
        let size = name.len().saturating_add(value.len()).saturating_add(ENTRY);
        if size > self.max / 4 || !self.comes_again(hash) {
            return literal(out, 0, 4, known, name, value);
        }
        literal(out, 0x40, 6, known, name, value);
        self.evict(size);
        self.size = self.size.saturating_add(size);
        self.entries.push_front(Entry { hash, name: name.len(), bytes: [name, value].concat().into() });
    }

    /// True where the same was seen before, not long ago.
    fn comes_again(&mut self, hash: u64) -> bool {
        let seen = self.seen.get_or_insert_with(|| Box::new([0; SEEN]));
        let (place, mark) = ((hash % SEEN as u64) as usize, (hash >> 32) as u32 | 1);
        let Some(place) = seen.get_mut(place) else { return false };
        std::mem::replace(place, mark) == mark
    }

    fn evict(&mut self, room: usize) {
        while self.size.saturating_add(room) > self.max
            && let Some(entry) = self.entries.pop_back()
        {
            self.size = self.size.saturating_sub(entry.bytes.len().saturating_add(ENTRY));
        }
    }
}

fn hash(name: &[u8], value: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(name);
    hasher.write(value);
    hasher.finish()
}

fn literal(out: &mut BytesMut, kind: u8, bits: u32, known: usize, name: &[u8], value: &[u8]) {
    integer(out, kind, bits, known);
    if known == 0 {
        string(out, name);
    }
    string(out, value);
}

fn string(out: &mut BytesMut, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.put_slice(text);
}

/// An integer whose first `bits` stand in a byte with `kind` above them (RFC 7541, 5.1).
fn integer(out: &mut BytesMut, kind: u8, bits: u32, value: usize) {
    let mask = (1_usize << bits) - 1;
    if value < mask {
        return out.put_u8(kind | value as u8);
    }
    out.put_u8(kind | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Decoder, *};

    type List = Vec<(Vec<u8>, Vec<u8>)>;

    fn write(encoder: &mut Encoder, list: &List, how: Field) -> BytesMut {
        let mut out = BytesMut::new();
        encoder.begin(&mut out);
        for (name, value) in list {
            encoder.field(&mut out, name, value, how);
        }
        out
    }

    fn read(decoder: &mut Decoder, block: &[u8]) -> List {
        let mut all = Vec::new();
        decoder
            .decode(block, |name, value| {
                all.push((name.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
        all
    }

    fn call(id: usize) -> List {
        [
            (":method", "POST".into()),
            (":path", "/shop.Catalog/Get".into()),
            ("content-type", "application/grpc".into()),
            ("x-request-id", format!("{id}")),
        ]
        .map(|(name, value): (&str, String)| (name.into(), value.into()))
        .into()
    }

    #[test]
    fn what_comes_again_becomes_an_index_and_what_does_not_stays_out() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut sizes = Vec::new();
        for id in 100..200 {
            let out = write(&mut encoder, &call(id), Field::Plain);
            sizes.push(out.len());
            assert_eq!(read(&mut decoder, &out), call(id));
        }
        assert_eq!(encoder.entries.len(), 2, "{:?}", encoder.entries);
        assert_eq!(sizes[99], 1 + 1 + 1 + 1 + 1 + 12 + 1 + 3);
    }

    #[test]
    fn a_secret_is_never_in_a_table() {
        let mut encoder = Encoder::default();
        let list = vec![(b"authorization".to_vec(), b"Bearer x".to_vec())];
        for _ in 0..3 {
            let out = write(&mut encoder, &list, Field::Secret);
            assert_eq!((out[0], out.len()), (0x1f, 2 + 1 + 8));
        }
        assert!(encoder.entries.is_empty());
    }

    #[test]
    fn a_smaller_table_is_said_and_kept() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for size in [4096, 0, 100, 1 << 20] {
            encoder.resize(size);
            for id in 0..5 {
                let out = write(&mut encoder, &call(id), Field::Plain);
                assert_eq!(read(&mut decoder, &out), call(id), "{size}");
                assert!(encoder.size <= size);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            lists in prop::collection::vec(
                prop::collection::vec(("[a-c]{1,3}|:path|cookie|content-type", prop::collection::vec(any::<u8>(), 0..40)), 0..20),
                1..30,
            ),
            sizes in prop::collection::vec(prop::option::weighted(0.2, 0_usize..5000), 30),
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for (list, size) in lists.into_iter().zip(sizes) {
                let list: List = list.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
                if let Some(size) = size {
                    encoder.resize(size);
                }
                let out = write(&mut encoder, &list, Field::Plain);
                prop_assert_eq!(read(&mut decoder, &out), list);
            }
        }
    }
}
