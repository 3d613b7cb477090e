//! Lists of headers as they come.

use std::collections::VecDeque;

use super::{ENTRY, TABLE, fixed, huffman};

/// The list can not be decompressed: the tables of both sides differ from here on, so the connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a list of headers can not be decompressed")]
pub(crate) struct HpackError;

/// Follows the table that the peer fills.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    /// What the peer has said that it fills at most.
    max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    name: usize,
    bytes: Box<[u8]>,
}

impl Entry {
    fn get(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at_checked(self.name).unwrap_or_default()
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, max: TABLE, name: Vec::new(), value: Vec::new() }
    }
}

/// Where a name or a value of a literal is.
enum Text {
    /// In the block.
    Block(usize, usize),
    /// Decoded, in the scratch.
    Scratch,
}

impl Decoder {
    /// Reads a whole list: `field` gets each name and value in order, and says whether to go on.
    ///
    /// # Errors
    /// [`HpackError`]. What `field` has got until then is to be forgotten.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]) -> Result<(), HpackError>,
    ) -> Result<(), HpackError> {
        let mut at = 0;
        let mut may_resize = true;
        while let Some(first) = block.get(at).copied() {
            match first {
                0x80.. => {
                    let index = integer(block, &mut at, 7)?;
                    let (name, value) = self.entry(index)?;
                    field(name, value)?;
                }
                0x20..0x40 => {
                    let size = integer(block, &mut at, 5)?;
                    if !may_resize || size > TABLE {
                        return Err(HpackError);
                    }
                    self.max = size;
                    self.evict(0);
                    continue;
                }
                _ => {
                    let keep = first & 0x40 != 0;
                    let index = integer(block, &mut at, if keep { 6 } else { 4 })?;
                    self.literal(block, &mut at, index, keep, &mut field)?;
                }
            }
            may_resize = false;
        }
        // What a long value has needed is not kept for ever.
        for scratch in [&mut self.name, &mut self.value] {
            if scratch.capacity() > TABLE {
                *scratch = Vec::new();
            }
        }
        Ok(())
    }

    fn literal(
        &mut self,
        block: &[u8],
        at: &mut usize,
        index: usize,
        keep: bool,
        field: &mut impl FnMut(&[u8], &[u8]) -> Result<(), HpackError>,
    ) -> Result<(), HpackError> {
        let name = match index {
            0 => Some(string(block, at, &mut self.name)?),
            _ => None,
        };
        let value = string(block, at, &mut self.value)?;
        let value = match value {
            Text::Block(from, to) => block.get(from..to).ok_or(HpackError)?,
            Text::Scratch => &self.value,
        };
        let name = match name {
            Some(Text::Block(from, to)) => block.get(from..to).ok_or(HpackError)?,
            Some(Text::Scratch) => &self.name,
            None => self.entry(index)?.0,
        };
        field(name, value)?;
        if keep {
            let (length, size) = (name.len(), name.len().saturating_add(value.len()).saturating_add(ENTRY));
            let fits = size <= self.max;
            let bytes: Option<Box<[u8]>> = fits.then(|| [name, value].concat().into());
            self.evict(size);
            if let Some(bytes) = bytes {
                self.size = self.size.saturating_add(size);
                self.entries.push_front(Entry { name: length, bytes });
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError)?;
        match fixed::TABLE.get(index) {
            Some(entry) => Ok(*entry),
            None => {
                let entry = index.checked_sub(fixed::TABLE.len()).and_then(|index| self.entries.get(index));
                entry.map(Entry::get).ok_or(HpackError)
            }
        }
    }

    /// Makes room.
    fn evict(&mut self, room: usize) {
        while self.size.saturating_add(room) > self.max
            && let Some(entry) = self.entries.pop_back()
        {
            self.size = self.size.saturating_sub(entry.bytes.len().saturating_add(ENTRY));
        }
    }
}

/// An integer whose first `bits` are in the byte at `at` (RFC 7541, 5.1).
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Result<usize, HpackError> {
    let mask = (1_u8 << bits) - 1;
    let mut next = || {
        let byte = block.get(*at).copied().ok_or(HpackError)?;
        *at = at.saturating_add(1);
        Ok(byte)
    };
    let first = next()? & mask;
    let mut value = usize::from(first);
    if first == mask {
        // No length or index that can be meant has more than these.
        for shift in [0, 7, 14, 21] {
            let byte = next()?;
            value = value.saturating_add(usize::from(byte & 0x7f) << shift);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        return Err(HpackError);
    }
    Ok(value)
}

/// A string (RFC 7541, 5.2).
fn string(block: &[u8], at: &mut usize, scratch: &mut Vec<u8>) -> Result<Text, HpackError> {
    let coded = block.get(*at).is_some_and(|byte| byte & 0x80 != 0);
    let length = integer(block, at, 7)?;
    let from = *at;
    let to = from.checked_add(length).ok_or(HpackError)?;
    let bytes = block.get(from..to).ok_or(HpackError)?;
    *at = to;
    if !coded {
        return Ok(Text::Block(from, to));
    }
    scratch.clear();
    huffman::decode(bytes, scratch).map_err(|_| HpackError)?;
    Ok(Text::Scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, HpackError> {
        let mut all = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |name, value| {
            all.push((text(name), text(value)));
            Ok(())
        })?;
        Ok(all)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// Appendix C.3 and C.4 of the RFC: three requests on one connection, in plain text and coded.
    #[test]
    fn requests_of_the_rfc() {
        for blocks in [
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
        ] {
            let mut decoder = Decoder::default();
            let [one, two, three] = blocks.map(|block| list(&mut decoder, &bytes(block)).unwrap());
            let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            assert_eq!(
                one,
                [
                    pair(":method", "GET"),
                    pair(":scheme", "http"),
                    pair(":path", "/"),
                    pair(":authority", "www.example.com")
                ]
            );
            assert_eq!(two[3..], [pair(":authority", "www.example.com"), pair("cache-control", "no-cache")]);
            assert_eq!(three[2], pair(":path", "/index.html"));
            assert_eq!(three[4], pair("custom-key", "custom-value"));
            assert_eq!((decoder.size, decoder.entries.len()), (164, 3));
        }
    }

    /// Appendix C.5: entries are pushed out of a table of 256 bytes.
    #[test]
    fn responses_of_the_rfc_with_eviction() {
        let mut decoder = Decoder::default();
        let first = "3fe1 01 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 \
                     3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
        assert_eq!(list(&mut decoder, &bytes(first)).unwrap().len(), 4);
        assert_eq!(decoder.size, 222);
        assert_eq!(list(&mut decoder, &bytes("4803 3330 37c1 c0bf")).unwrap()[0].1, "307");
        assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
        list(&mut decoder, &bytes("20 82")).unwrap();
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for bad in [
            "80",              // index 0
            "be",              // an empty table
            "ff ffff ffff 7f", // an integer too long
            "82 20",           // a size behind a field
            "3fe2 1f",         // a size above ours: 4,097
            "40 05 6162",      // a name cut short
            "40 01 61",        // no value
            "44",              // the same, by index
            "7f",              // an integer cut short
            "00 81 00 01 61",  // bad code
        ] {
            assert_eq!(list(&mut Decoder::default(), &bytes(bad)), Err(HpackError), "{bad}");
        }
        let mut decoder = Decoder::default();
        assert_eq!(
            decoder.decode(&bytes("82 86"), |_, _| Err(HpackError)),
            Err(HpackError),
            "whoever reads may end it"
        );
        // An entry larger than the table empties it, and is read all the same.
        let long = [bytes("40 01 61 7f 81 1f").as_slice(), &[b'x'; 4096]].concat();
        assert_eq!(list(&mut decoder, &long).unwrap()[0].1.len(), 4096);
        assert!(decoder.entries.is_empty());
    }
}
