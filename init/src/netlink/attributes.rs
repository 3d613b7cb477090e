//! Netlink attributes (`struct nlattr`): length, type, value, padded to four bytes; nested by containing more of them.
//!
//! Writing can not fail but by length; reading takes any bytes and never panics: what does not fit ends the list.

/// Bytes of `struct nlattr`.
const HEADER: usize = 4;
/// Flag of an attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
/// The type without its flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// The next multiple of four, which netlink pads to.
pub(crate) const fn align(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// Appends attributes to a message.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.out.extend_from_slice(value);
        self.close(start);
        self
    }

    /// A text with the terminating zero that the kernel wants.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(0);
        self.close(start);
        self
    }

    /// A number in network order, as all of nf_tables' own numbers are.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Writer<'_>)) -> &mut Self {
        let start = self.open(kind | NESTED);
        fill(&mut Writer::new(self.out));
        self.close(start);
        self
    }

    /// Attributes behind a header of their own, as the peer of a pair of interfaces has it.
    pub(crate) fn headed(&mut self, kind: u16, header: &[u8], fill: impl FnOnce(&mut Writer<'_>)) -> &mut Self {
        let start = self.open(kind | NESTED);
        self.out.extend_from_slice(header);
        fill(&mut Writer::new(self.out));
        self.close(start);
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        self.out.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        // The longest attribute is one rule's expressions: a few hundred bytes.
        let len = u16::try_from(self.out.len().saturating_sub(start)).unwrap_or(u16::MAX);
        if let Some(field) = self.out.get_mut(start..start.saturating_add(2)) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
        self.out.resize(align(self.out.len()), 0);
    }
}

/// Goes through the attributes in `bytes`.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of this type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Reader<'a>> {
        self.get(kind).map(Reader::new)
    }

    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text, up to its terminating zero.
    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        text(self.get(kind)?)
    }
}

/// Bytes up to the first zero, as text.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(bytes.get(..end)?).ok()
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(self.rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.rest.get(HEADER..len)?;
        self.rest = self.rest.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut out = Vec::new();
        Writer::new(&mut out).text(1, "weir").nested(2, |w| {
            w.be32(3, 7).bytes(4, &[1, 2, 3]);
        });
        let reader = Reader::new(&out);
        assert_eq!(reader.text(1), Some("weir"));
        let inner = reader.nested(2).unwrap();
        assert_eq!((inner.be32(3), inner.get(4)), (Some(7), Some(&[1, 2, 3][..])));
        assert_eq!(reader.get(9), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut seen = 0usize;
            for (kind, value) in Reader::new(&bytes) {
                seen += HEADER + value.len();
                let _ = (Reader::new(value).be32(kind), Reader::new(value).text(kind), Reader::new(value).count());
            }
            prop_assert!(seen <= bytes.len());
        }
    }
}
